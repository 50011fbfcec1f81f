"""`scan` and `fix` over every checkpoint that is kept: one verdict, whichever of them gives it.

The properties are in `tests/contracts.py`. Every checkpoint is held to them as it is, which runs no model; those that
a model can be run for, and some healthy ones, with data too. A checkpoint and its options are taken through `scan`,
`fix --dry-run`, `fix`, `scan` and `fix` once, whatever the number of properties that look at it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.formats.discovery import discover
from tests import contracts
from tests.catalogue import BROKEN, CALIBRATION, FIXTURES
from tests.contracts import Contract

# A contract asks the same of one checkpoint many times over.
pytestmark = pytest.mark.usefixtures("models_loaded_once")

DEMO = Path(ckpt_doctor.__file__).parent / "demo"
CHECKPOINTS = [Path(path) for path in discover([FIXTURES, DEMO], all_listed=True).checkpoints]
BY_NAME = {str(path.relative_to(DEMO.parent if DEMO in path.parents else FIXTURES)): path for path in CHECKPOINTS}

ZOO = {path.stem: json.loads(path.read_text("utf-8")) for path in FIXTURES.glob("zoo/*.json")}

# What a model is run for: every broken network that was trained on the digits, of the zoo one or two of each defect,
# and healthy ones. `demo/model.ckpt-400` is `tf1_layers/trainable`.
RUN = """
demo/model.ckpt-400 keras_h5/broken.h5 keras_v3/healthy.keras tf1_handwritten/trainable/model.ckpt-400
tf1_no_update_ops/full/model.ckpt-400 tf1_no_update_ops/trainable/model.ckpt-400 tf1_slim/trainable/model.ckpt-400
tf1_training_only/trainable/model.ckpt-600
zoo/tf1/cold zoo/tf1/hand_ema_forgotten zoo/tf1/hand_written_out zoo/tf1/keras_updates_forgotten zoo/tf1/layers_default
zoo/tf1/negative zoo/tf1/not_finite zoo/tf1/serves_stored zoo/tf1/trained_by_gradient zoo/tf1/zero_debias_absent
zoo/tf2/float16.keras zoo/tf2/frozen.keras zoo/tf2/nested_swap.keras zoo/tf2/use_ema.keras
""".split()
RUN_UNPROVEN = "keras_v3/broken.keras zoo/tf1/keras_updates_forgotten zoo/tf2/cold.keras".split()
# What only a graph from elsewhere can be run for.
RUN_BY_MODEL = """
zoo/tf1/cold_fingerprint zoo/tf1/fresh zoo/tf1/names_never_updated zoo/tf1/names_trainable_only
zoo/tf1/negative_by_sharing zoo/tf1/swapped
""".split()
OF_EIGHT = ("zoo/tf1/swapped", "zoo/tf2/nested_swap.keras")
ADVISED = (
    """
demo/model.ckpt-400 keras_h5/broken.h5 keras_v3/broken.keras tf1_handwritten/trainable/model.ckpt-400
tf1_no_update_ops/full/model.ckpt-400 zoo/tf2/cold.keras zoo/tf2/keras_export_patched
""".split()
    # The numbers that are fed to the zoo are not those of training, and healthy layers of this one say so (BN401).
    + [name for name in (*RUN, *RUN_BY_MODEL) if name.startswith("zoo/") and name != "zoo/tf1/negative"]
)
# What `scan` says of them on data leads to advice of its own.
ADVISED_ON_DATA = """
demo/model.ckpt-400 zoo/tf1/cold zoo/tf1/keras_updates_forgotten zoo/tf1/layers_default zoo/tf1/negative
zoo/tf1/serves_stored zoo/tf1/trained_by_gradient zoo/tf2/cold.keras zoo/tf2/frozen.keras zoo/tf2/use_ema.keras
zoo/tf2/keras_export_patched
""".split()
# A dry run of a healthy checkpoint is cut short in the same way for all of one format.
HEALTHY = """
formats/keras/keras3.keras formats/keras/keras3_sharded.weights.json formats/keras/keras22_weights.h5
formats/saved_model_keras3/sample formats/v1_shards/sample-?????-of-00002 zoo/tf1/layers_control
""".split()


@dataclass(frozen=True)
class Case:
    """One checkpoint and the options to look at it with."""

    name: str
    with_data: bool = False
    with_model: bool = False
    unproven: bool = False

    def __str__(self) -> str:
        return " ".join([self.name, *(f"--{key}" for key in ("data", "model") if getattr(self, f"with_{key}"))]) + (
            " --unproven" if self.unproven else ""
        )


CASES = [
    *(Case(name) for name in BY_NAME),
    *(Case(name, unproven=True) for name in ("zoo/tf1/swapped", "zoo/tf1/resnet_by_hand", "zoo/tf1/cold")),
    *(Case(name, with_data=True) for name in RUN),
    *(Case(name, with_data=True, unproven=True) for name in RUN_UNPROVEN),
    *(Case(name, with_model=True) for name in RUN_BY_MODEL),
    *(Case(name, with_data=True, with_model=True) for name in RUN_BY_MODEL),
    Case("zoo/tf1/names_never_updated", with_data=True, with_model=True, unproven=True),
]


def marked(case: Case):
    return pytest.param(case, id=str(case), marks=[pytest.mark.tensorflow] * (case.with_data or case.with_model))


def has_findings(name: str) -> bool:
    """Return whether something is to be found, by the lists that were written by hand."""
    if name.startswith("zoo/"):
        _, zoo, member = name.split("/")
        return bool(ZOO[zoo][member]["findings"])
    return name == "demo/model.ckpt-400" or any(name == str(one) for one in BROKEN)


every_case = pytest.mark.parametrize("case", [marked(case) for case in CASES])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the data of a fixture, as for `--data`; nearly every network of the zoo takes four numbers."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    for columns in (4, 8):
        scale = np.tile([1.0, 2.0, 0.5, 3.0], columns // 4)
        np.savez(folder / f"{columns}.npz", x=(random.normal(1, 1, (256, columns)) * scale).astype(np.float32))
    with np.load(CALIBRATION) as arrays:
        np.savez(folder / "digits.npz", x=arrays["x"][:256])

    def data(name: str) -> str:
        if not name.startswith("zoo/"):
            return str(folder / "digits.npz")
        return str(folder / ("8.npz" if name in OF_EIGHT else "4.npz"))

    return data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a graph, as for `--model`, in which every layer of a file of mere names normalises the input."""
    folder = tmp_path_factory.mktemp("models")

    def model(name: str) -> str:
        target = folder / f"{name.replace('/', '_')}.meta"
        if not target.exists():
            layers = contracts.scan(BY_NAME[name]).checkpoint["batch_norm_layers"]
            write_graph(target, layers)
        return str(target)

    return model


def write_graph(target: Path, layers: list[dict]) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, layers[0]["channels"]], "x")
        for layer in layers:
            names = [layer[role] or f"{layer['name']}/{role}" for role in ("moving_mean", "moving_variance")]
            names += [layer[role] for role in ("beta", "gamma")]
            mean, variance, beta, gamma = (
                v1.get_variable(name, [layer["channels"]], use_resource=False) if name else None for name in names
            )
            v1.identity(v1.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3), f"{layer['name']}/out")
        v1.train.Saver()
        v1.train.export_meta_graph(str(target))


@pytest.fixture(scope="module")
def contract(tmp_path_factory, data, model):
    made: dict[Case, Contract] = {}

    def contract(case: Case) -> Contract:
        if case not in made:
            made[case] = contracts.contract(
                BY_NAME[case.name],
                tmp_path_factory.mktemp("contract"),
                data(case.name) if case.with_data else None,
                model(case.name) if case.with_model else None,
                *(["--unproven"] if case.unproven else []),
            )
        return made[case]

    return contract


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Work where no configuration of this project is found."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


def assert_holds(breaches: contracts.Breaches) -> None:
    found = list(breaches)
    assert not found, "\n".join(found)


def test_the_checkpoints_are_here():
    assert len(BY_NAME) == len(CHECKPOINTS) > 180
    assert {*RUN, *RUN_UNPROVEN, *RUN_BY_MODEL, *ADVISED, *ADVISED_ON_DATA, *HEALTHY} <= BY_NAME.keys()


@every_case
def test_nothing_to_repair_is_what_scan_says(case, contract):
    assert_holds(contracts.nothing_to_repair_is_what_scan_says(contract(case)))


@every_case
def test_what_is_repaired_scans_clean(case, contract):
    assert_holds(contracts.what_is_repaired_scans_clean(contract(case)))


@pytest.mark.parametrize(
    "case",
    [marked(case) for case in CASES if str(case) != case.name or case.name in HEALTHY or has_findings(case.name)],
)
def test_a_dry_run_foretells_the_repair(case, contract):
    assert_holds(contracts.a_dry_run_foretells_the_repair(contract(case)))


@every_case
def test_a_second_repair_changes_nothing(case, contract):
    assert_holds(contracts.a_second_repair_changes_nothing(contract(case)))


@every_case
def test_the_source_is_only_read(case, contract):
    assert_holds(contracts.the_source_is_only_read(contract(case)))


@pytest.mark.parametrize("option", ["--meta", "--model"])
@pytest.mark.parametrize("name", [name for name, path in BY_NAME.items() if Path(f"{path}.meta").exists()])
def test_a_description_by_name_is_one_beside(name, option, tmp_path, contract):
    beside = contract(Case(name)).before
    assert_holds(contracts.a_description_by_name_is_one_beside(BY_NAME[name], tmp_path, option, beside))


@pytest.mark.parametrize("option", ["--meta", "--model"])
def test_a_description_by_name_says_what_wrote_the_checkpoint(option, tmp_path):
    path = BY_NAME["demo/model.ckpt-400"]
    alone = contracts.copied(path, tmp_path / "alone", meta=False)
    assert contracts.scan(alone, option, f"{path}.meta").checkpoint["producer"] == "TensorFlow 1.15.5"


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ADVISED)
def test_what_scan_advises_works(name, tmp_path, data, model):
    # The graph only serves, and does not tell how a layer without statistics was trained (tests/repair/test_untold.py).
    of_model = model(name) if name in RUN_BY_MODEL and name != "zoo/tf1/names_trainable_only" else None
    assert_holds(contracts.what_scan_advises_works(BY_NAME[name], tmp_path, data(name), of_model))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [*ADVISED_ON_DATA, *RUN_BY_MODEL])
def test_what_scan_advises_after_running_the_model_works(name, tmp_path, data, model):
    of_model = model(name) if name in RUN_BY_MODEL else None
    given = ["--data", data(name), *(["--model", of_model] if of_model else [])]
    assert_holds(contracts.what_scan_advises_works(BY_NAME[name], tmp_path, data(name), of_model, *given))
