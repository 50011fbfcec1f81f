"""Keras 3 and tf_keras load what was rewritten."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from tests.formats.contract import copy_into
from tests.formats.keras_samples import SAMPLES

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]
WHOLE = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def tf_keras() -> Any:
    pytest.importorskip("tensorflow")
    return pytest.importorskip("tf_keras")


def doubled(path: Path, target: Path) -> None:
    """Rewrite a file with every weight doubled."""
    checkpoint = open_checkpoint(path)
    values = {
        variable.name: variable.read() * 2
        for variable in checkpoint.variables
        if "optimizer" not in variable.name and variable.dtype == "float32"
    }
    format_of(checkpoint).rewrite(checkpoint, target, Changes(values))
    return values


@pytest.mark.parametrize("name", ["keras3_whole.h5", "keras3.keras", "tf_keras_whole.h5", "tf_keras.keras"])
def test_whole_models_load(tmp_path: Path, keras: Any, tf_keras: Any, name: str) -> None:
    target = tmp_path / f"new{Path(name).suffix}"
    loader = (keras if name.startswith("keras3") else tf_keras).models.load_model
    load = functools.partial(loader, compile=False)
    doubled(SAMPLES / name, target)
    old, new = load(SAMPLES / name), load(target)
    for before, after in zip(old.get_weights(), new.get_weights(), strict=True):
        assert np.array_equal(before * 2, after)


@pytest.mark.parametrize("name", ["keras3.weights.h5", "keras3_sharded.weights.json"])
def test_weights_load(tmp_path: Path, keras: Any, name: str) -> None:
    model = keras.models.load_model(SAMPLES / "keras3.keras")
    old = model.get_weights()
    target = tmp_path / f"new{name[name.index('.') :]}"
    doubled(SAMPLES / name, target)
    model.load_weights(target)
    for before, after in zip(old, model.get_weights(), strict=True):
        assert np.array_equal(before * 2, after)


@pytest.mark.parametrize(
    "name", ["keras3_whole.h5", "keras3.keras", "keras3.weights.h5", "keras3_sharded.weights.json"]
)
@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_only_staged_loads(tmp_path: Path, keras: Any, name: str, in_place: bool) -> None:
    copy_into(tmp_path, SAMPLES / name, *SAMPLES.glob("keras3_sharded_*"))
    checkpoint = open_checkpoint(tmp_path / name)
    mean = keras.models.load_model(SAMPLES / "keras3.keras", compile=False).get_layer("bn").get_weights()[2]
    (stored,) = (each.name for each in checkpoint.variables if same_values(each.read(), mean))
    changes = Changes({stored: np.array([7, 8], dtype=np.float32)})
    target = None if in_place else tmp_path / f"new{name[name.index('.') :]}"
    with format_of(checkpoint).stage(checkpoint, target, changes) as staged:
        place = staged.open().place
        model = keras.models.load_model(SAMPLES / "keras3.keras" if "weights" in name else place, compile=False)
        if "weights" in name:
            model.load_weights(place)
        assert model.get_layer("bn").get_weights()[2].tolist() == [7, 8]


def test_shards_changed_in_place_load(tmp_path: Path, keras: Any) -> None:
    copy_into(tmp_path, SAMPLES / "keras3_sharded.weights.json", *SAMPLES.glob("keras3_sharded_*"))
    path = tmp_path / "keras3_sharded.weights.json"
    model = keras.models.load_model(SAMPLES / "keras3.keras")
    old = model.get_layer("bn").get_weights()
    checkpoint = open_checkpoint(path)
    name = "layers/batch_normalization/vars/2"
    changes = Changes({name: np.array([7, 8], dtype=np.float32)})
    format_of(checkpoint).rewrite_in_place(checkpoint, changes)
    model.load_weights(path)
    new = model.get_layer("bn").get_weights()
    assert new[2].tolist() == [7, 8]
    assert all(same_values(old[index], new[index]) for index in (0, 1, 3))


@pytest.mark.parametrize("name", ["keras3_whole.h5", "tf_keras_whole.h5"])
def test_statistics_that_were_missing_load(tmp_path: Path, keras: Any, tf_keras: Any, name: str) -> None:
    """Those of the layer at the top, in the wrapper and in the nested model: order is all that Keras goes by."""
    loader = (keras if name.startswith("keras3") else tf_keras).models.load_model
    load = functools.partial(loader, compile=False)
    whole = open_checkpoint(SAMPLES / name)
    broken = tmp_path / "broken.h5"
    shutil.copyfile(SAMPLES / name, broken)
    gone = [variable.name for variable in whole.variables if "/moving_" in variable.name]
    assert len(gone) == 8
    with h5py.File(broken, "r+") as file:
        for each in gone:
            del file[each]
        for layer, names in whole.attributes["weight_names"].items():
            kept = [item for item in names if "/moving_" not in item]
            if len(kept) < len(names):
                file[f"model_weights/{layer}"].attrs["weight_names"] = np.array([item.encode() for item in kept])
    checkpoint = open_checkpoint(broken)
    values = {each: whole.variable(each).read() for each in gone}  # type: ignore[union-attr]
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes(values), backup=False)
    for before, after in zip(load(SAMPLES / name).get_weights(), load(broken).get_weights(), strict=True):
        assert np.array_equal(before, after)


def test_the_trained_models_load_when_nothing_changes(tmp_path: Path, keras: Any) -> None:
    for path in (WHOLE / "keras_h5" / "healthy.h5", WHOLE / "keras_v3" / "healthy.keras"):
        target = tmp_path / path.name
        checkpoint = open_checkpoint(path)
        format_of(checkpoint).rewrite(checkpoint, target, Changes())
        pairs = zip(
            keras.models.load_model(path).get_weights(), keras.models.load_model(target).get_weights(), strict=True
        )
        assert all(np.array_equal(before, after) for before, after in pairs)
