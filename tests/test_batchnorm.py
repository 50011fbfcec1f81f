"""Which variables form which layer: every sample of the zoo against what was put in, and the accounts of every file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import graphs, scan
from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.batchnorm.relatives import find_twins
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.discovery import discover

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
