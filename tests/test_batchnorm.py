"""Which variables form which layer: every sample of the zoo against what was put in, and the accounts of every file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import graphs, scan
from ckpt_doctor.batchnorm import BatchNormLayer, take_inventory
from ckpt_doctor.batchnorm.relatives import find_twins, with_twins
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.graphs.facts import LayerFacts, ModelFacts

pytestmark = pytest.mark.usefixtures("graphs_read_once")

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
SAMPLES = [
    pytest.param(path.with_suffix("") / name, entry, id=f"{path.stem}-{name}")
    for path in sorted((FIXTURES / "zoo").glob("*.json"))
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
]


def test_the_zoo_is_there():
    assert len(SAMPLES) > 90
    assert {entry.values[1]["failure"] for entry in SAMPLES} >= {f"F{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13)}


@pytest.mark.parametrize(("path", "expected"), SAMPLES)
def test_layers_roles_and_findings_are_what_was_put_in(path, expected):
    result = scan([str(path)])
    assert not result.errors
    (checkpoint,) = result.checkpoints
    layers = {
        layer.name: {role: getattr(layer, role) for role in ROLES if getattr(layer, role)}
        | {"companions": sorted(layer.companions)}
        for layer in checkpoint.batch_norm_layers
    }
    assert layers == expected["layers"]
    findings: dict[str, list[str]] = {}
    for finding in checkpoint.findings:
        findings.setdefault(finding.rule, []).extend(finding.layers)
    assert {code: sorted(names) for code, names in findings.items()} == {
        code: sorted(names) for code, names in expected["findings"].items()
    }
    assert sorted(item.where for item in checkpoint.not_judged) == expected["not_judged"]


def whole_checkpoints(folder: Path) -> list[str]:
    return list(discover([str(folder)], all_listed=True).checkpoints)


def assert_accounts(path: str) -> None:
    """Assert that every variable of a checkpoint is in exactly one place."""
    try:
        checkpoint = open_checkpoint(path)
    except CkptDoctorError:
        return
    inventory = take_inventory(checkpoint, graphs.describe(checkpoint))
    places = [
        *(name for layer in inventory.layers for name in (*layer.variables.values(), *layer.companions.values())),
        *inventory.others,
        *inventory.not_judged,
    ]
    assert sorted(places) == sorted(variable.name for variable in checkpoint.variables), path
    assert len({layer.name for layer in inventory.layers}) == len(inventory.layers), path


def test_every_variable_of_every_fixture_is_in_exactly_one_place():
    paths = whole_checkpoints(FIXTURES)
    assert len(paths) > 100
    for path in paths:
        assert_accounts(path)


@pytest.mark.corpus
def test_every_variable_of_every_published_checkpoint_is_in_exactly_one_place(corpus):
    paths = whole_checkpoints(corpus)
    assert len(paths) > 20
    for path in paths:
        assert_accounts(path)


def test_a_name_that_several_variables_share_pairs_no_twins():
    """Keras 3 calls all variables of a subclassed model `net/kernel` when it exports it."""
    shared = "net/kernel"
    lists = {"variables": range(2), "_all_variables": range(2, 4)}
    variables = tuple(
        Variable(f"{name}/{number}/.ATTRIBUTES/VARIABLE_VALUE", (3,), "float32", 12, lambda: np.zeros(3), label)
        for label in (shared, "net/bias")
        for name, numbers in lists.items()
        for number in (numbers if label == shared else [9])
    )
    twins = find_twins(Checkpoint("x", "saved-model", variables, (), 0), set())
    pairs = {frozenset({name.split("/.")[0], first.split("/.")[0]}) for name, (first, _) in twins.items()}
    assert pairs == {frozenset({"variables/9", "_all_variables/9"})}


def listed(name, value, label):
    array = np.float32(value)
    return Variable(f"{name}/.ATTRIBUTES/VARIABLE_VALUE", array.shape, "float32", 12, lambda: array, label)


def test_without_a_graph_copies_that_share_a_name_are_paired_by_values_that_occur_once():
    """Two layers are called `bn`, and nothing but what they hold tells which copy is whose."""
    values = {"4": [1, 2, 3], "10": [4, 5, 6], "16": [0, 0, 0], "22": [0, 0, 0]}
    firsts = [listed(f"variables/{number}", value, "bn/moving_mean") for number, value in values.items()]
    seconds = [
        listed(f"_all_variables/{number}", value, "bn/moving_mean")
        for number, value in enumerate([*list(values.values())[1::-1], [0, 0, 0], [0, 0, 0]])
    ]
    twins = find_twins(Checkpoint("x", "saved-model", (*firsts, *seconds), (), 0), set())
    pairs = {name.split("/.")[0]: (first.split("/.")[0], kind) for name, (first, kind) in twins.items()}
    assert pairs == {"_all_variables/0": ("variables/10", "twin"), "_all_variables/1": ("variables/4", "twin")}


def test_what_the_graph_pairs_is_believed_before_names_and_values():
    copies = {"_all_variables/1": "variables/4", "_all_variables/2": "variables/4", "_all_variables/3": "variables/4"}
    names = ["variables/4", *copies]
    variables = [listed(name, [number, 0, 0], "net/kernel") for number, name in enumerate(names[:3])]
    variables.append(listed(names[3], [0, 0], "net/kernel"))
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    graph = {f"{name}{end}": f"{first}{end}" for name, first in copies.items()}
    twins = find_twins(Checkpoint("x", "saved-model", tuple(variables), (), 0), set(), graph)
    # What has another shape is no copy.
    assert set(twins) == {f"_all_variables/1{end}", f"_all_variables/2{end}"}
    layer = BatchNormLayer("bn", {"moving_mean": f"variables/4{end}"})
    assert set(with_twins([layer], twins)[0].companions) == {"moving_mean/twin", "moving_mean/twin_2"}


def test_layers_that_a_file_calls_by_one_name_are_told_apart():
    """An export keeps a second `bn`, which no signature runs."""
    facts = ModelFacts("graph", (LayerFacts("bn", None, None, "m", "v"),), names=frozenset({"m", "v"}))
    variables = [Variable(name, (2,), "float32", 8, lambda: np.ones(2, np.float32)) for name in ("m", "v")]
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    for number, role in enumerate(("gamma", "beta", "moving_mean", "moving_variance"), start=8):
        variables.append(listed(f"variables/{number}", [1, 1], f"bn/{role}"))
    layers = take_inventory(Checkpoint("x", "saved-model", tuple(variables), (), 0), facts).layers
    assert [(layer.name, layer.variables["moving_mean"]) for layer in layers] == [
        ("bn", "m"),
        ("variables/8", f"variables/10{end}"),
    ]
