"""Keras' legacy HDF5 files: the contract on samples of every era, and what is special about them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, Checkpoint, same_values
from ckpt_doctor.errors import RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from tests.formats.contract import FEW_FAILURES, Expected, FormatContract, altered, copy_into
from tests.formats.keras_samples import SAMPLES, attributes, expected, raw_values, recorded

LEGACY = [
    ("keras03_weights.h5", "keras-weights-hdf5", "0.3"),
    ("keras03_graph.h5", "keras-weights-hdf5", "0.3"),
    ("keras12_weights.h5", "keras-weights-hdf5", "1.x"),
    ("keras12_whole.h5", "keras-hdf5", "1.x"),
    ("keras22_weights.h5", "keras-weights-hdf5", "2.x"),
    ("keras22_whole.h5", "keras-hdf5", "2.x"),
    ("tf_keras_weights.h5", "keras-weights-hdf5", "2.x"),
    ("tf_keras_whole.h5", "keras-hdf5", "2.x"),
    ("tf_keras_chunked.h5", "keras-weights-hdf5", "2.x"),
    ("keras3_whole.h5", "keras-hdf5", "3.x"),
    ("keras3_float16.h5", "keras-hdf5", "3.x"),
    ("keras3_bfloat16.h5", "keras-hdf5", "3.x"),
]


class LegacyContract(FormatContract):
    samples = 80
    sample: str
    # A new variable and its value's shape.
    added: str

    def make(self, folder: Path) -> str:
        copy_into(folder, SAMPLES / self.sample)
        return str(folder / self.sample)

    def expected(self) -> Expected:
        return expected(self.sample)

    def raw_values(self, path: str) -> dict[str, Array]:
        return raw_values(path)

    def target(self, folder: Path) -> Path:
        return folder / "fixed.h5"

    def new_variable(self) -> tuple[str, Array] | None:
        return self.added, np.arange(2, dtype=np.float32)


class TestKeras2Whole(LegacyContract):
    format_name = "keras-hdf5"
    sample = "keras22_whole.h5"
    samples, header = 20, 16
    added = "model_weights/bn/bn/renorm_mean:0"
    failures = FEW_FAILURES


class TestKeras2Weights(LegacyContract):
    format_name = "keras-weights-hdf5"
    sample = "keras22_weights.h5"
    added = "bn/bn/renorm_mean:0"


class TestBfloat16(LegacyContract):
    format_name = "keras-hdf5"
    sample = "keras3_bfloat16.h5"
    samples, header = 40, 16
    added = "model_weights/bn/sequential_1/bn/renorm_mean"
    failures = FEW_FAILURES


@pytest.mark.parametrize(("name", "format_name", "era"), LEGACY)
def test_every_era_is_read(name: str, format_name: str, era: str) -> None:
    checkpoint = open_checkpoint(SAMPLES / name)
    assert (checkpoint.format, checkpoint.attributes["era"]) == (format_name, era)
    assert checkpoint.producer == recorded(name)["producer"]
    assert checkpoint.attributes["absent"] == ()
    values = expected(name)
    assert {variable.name for variable in checkpoint.variables} == set(values)
    for variable in checkpoint.variables:
        dtype, value = values[variable.name]
        assert (variable.dtype, variable.shape) == (dtype, value.shape)
        assert variable.nbytes == value.nbytes
        assert same_values(variable.read(), value)
    assert not list(format_of(checkpoint).verify(checkpoint))


@pytest.mark.parametrize("name", [name for name, _, era in LEGACY if era in ("0.3", "1.x")])
def test_the_oldest_eras_are_not_rewritten(name: str, tmp_path: Path) -> None:
    shutil.copyfile(SAMPLES / name, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    first = checkpoint.variables[0]
    changes = Changes({first.name: altered(first.read())})
    for rewrite in (
        lambda: format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.h5", changes),
        lambda: format_of(checkpoint).rewrite_in_place(checkpoint, changes),
    ):
        with pytest.raises(RepairRefused, match=r"not rewritten: .* standard deviation.*load it with Keras 2"):
            rewrite()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_variables_follow_the_order_of_the_lists() -> None:
    checkpoint = open_checkpoint(SAMPLES / "keras22_whole.h5")
    labels = [variable.label for variable in checkpoint.variables]
    assert labels[:8] == [
        *("bn/gamma:0", "bn/beta:0", "bn/moving_mean:0", "bn/moving_variance:0"),
        *("inner_dense/kernel:0", "inner_dense/bias:0", "inner_bn/gamma:0", "inner_bn/beta:0"),
    ]
    assert checkpoint.attributes["layer_names"][:3] == ("inputs", "bn", "inner")
    assert checkpoint.attributes["weight_names"]["inner"][-2:] == (
        "inner_bn_2/moving_mean:0",
        "inner_bn_2/moving_variance:0",
    )


def test_configs_are_handed_over() -> None:
    descriptions = open_checkpoint(SAMPLES / "keras3_whole.h5").descriptions
    assert '"class_name": "Functional"' in (descriptions.keras_config or "")
    assert '"optimizer_config"' in (descriptions.keras_training or "")


def test_chunked_names_are_one_list_and_stay_chunked(tmp_path: Path) -> None:
    path = SAMPLES / "tf_keras_chunked.h5"
    with h5py.File(path) as file:
        assert "weight_names1" in file["inner"].attrs
    checkpoint = open_checkpoint(path)
    names = checkpoint.attributes["weight_names"]["inner"]
    assert len(names) == 96
    gone = [f"inner/{name}" for name in names if "moving_" in name]
    broken = without(path, tmp_path / "broken.h5", "inner", gone)
    old = {variable.name: variable.read() for variable in checkpoint.variables}
    order = Changes({name: old[name] for name in gone}, weight_names={"inner": names})
    format_of(broken).rewrite(broken, tmp_path / "fixed.h5", order)
    assert attributes(str(tmp_path / "fixed.h5")) == attributes(str(path))


def test_rewriting_keeps_attributes_order_and_user_block(tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    value = np.arange(6, dtype=">f4").reshape(2, 3)
    with h5py.File(path, "w", userblock_size=512, track_order=True) as file:
        file.attrs["layer_names"] = [b"zeta", b"alpha"]
        file.attrs["keras_version"] = b"2.1.0"
        file.attrs["backend"] = "tensorflow"
        for layer in ("zeta", "alpha"):
            group = file.create_group(layer, track_order=True)
            group.attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
            group.create_dataset(f"{layer}/kernel:0", data=value, chunks=(1, 3), compression="gzip", shuffle=True)
            group[f"{layer}/kernel:0"].attrs["note"] = 7
    with path.open("r+b") as block:
        block.write(b"mine")
    checkpoint = open_checkpoint(path)
    assert checkpoint.producer == "Keras 2.1.0 (tensorflow)"
    assert [variable.name for variable in checkpoint.variables] == ["zeta/zeta/kernel:0", "alpha/alpha/kernel:0"]
    new = np.full((2, 3), 5, dtype=np.float32)
    target = tmp_path / "new.h5"
    format_of(checkpoint).rewrite(checkpoint, target, Changes({"zeta/zeta/kernel:0": new}))
    assert target.read_bytes()[:4] == b"mine"
    assert attributes(str(target)) == attributes(str(path))
    with h5py.File(target) as file:
        stored = file["zeta/zeta/kernel:0"]
        assert (stored.dtype, stored.chunks, stored.compression, stored.shuffle) == (value.dtype, (1, 3), "gzip", True)
        assert stored[()].tolist() == new.tolist()
        assert file["alpha/alpha/kernel:0"][()].tolist() == value.tolist()


def test_a_listed_weight_without_dataset_is_recorded(tmp_path: Path) -> None:
    shutil.copyfile(SAMPLES / "keras22_weights.h5", tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["bn/bn/moving_mean:0"]
    checkpoint = open_checkpoint(tmp_path / "m.h5")
    assert checkpoint.attributes["absent"] == ("bn/bn/moving_mean:0",)
    assert checkpoint.variable("bn/bn/moving_mean:0") is None
    assert not checkpoint.damages
    values = {"bn/bn/moving_mean:0": np.ones(2, np.float32)}
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes(values))
    again = open_checkpoint(tmp_path / "m.h5")
    assert again.attributes["absent"] == ()
    assert again.attributes["weight_names"] == checkpoint.attributes["weight_names"]


def test_a_layer_whose_group_is_gone_is_a_damage(tmp_path: Path) -> None:
    shutil.copyfile(SAMPLES / "keras22_weights.h5", tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["bn"]
    damages = open_checkpoint(tmp_path / "m.h5").damages
    assert [damage.message for damage in damages] == ["layer_names lists 'bn', and there is no such group"]


def without(path: Path, target: Path, layer: str, names: list[str]) -> Checkpoint:
    """Open a copy of a file that lacks some variables, and their entries in the layer's list."""
    shutil.copyfile(path, target)
    checkpoint = open_checkpoint(path)
    root = checkpoint.attributes["root"]
    prefix = f"{root}/{layer}/" if root else f"{layer}/"
    with h5py.File(target, "r+") as file:
        group = file[prefix]
        for name in names:
            del file[name]
        kept = [name for name in checkpoint.attributes["weight_names"][layer] if prefix + name not in names]
        keys = [key for key in group.attrs if key.startswith("weight_names")]
        as_text = group.attrs[keys[0]].dtype.kind == "O"
        for key in keys:
            del group.attrs[key]
        group.attrs["weight_names"] = kept if as_text else np.array([name.encode() for name in kept])
    return open_checkpoint(target)


@pytest.mark.parametrize("name", ["keras22_whole.h5", "tf_keras_whole.h5", "keras3_whole.h5", "keras22_weights.h5"])
def test_missing_statistics_return_to_their_places(name: str, tmp_path: Path) -> None:
    whole = open_checkpoint(SAMPLES / name)
    gone = [each for each in raw_values(str(SAMPLES / name)) if "/bn/" in each and "/moving_" in each]
    assert len(gone) == 2
    broken = without(SAMPLES / name, tmp_path / name, "bn", gone)
    values = {each: whole.variable(each).read() for each in reversed(gone)}  # type: ignore[union-attr]
    format_of(broken).rewrite(broken, tmp_path / "fixed.h5", Changes(values))
    fixed = open_checkpoint(tmp_path / "fixed.h5")
    assert fixed.attributes["weight_names"] == whole.attributes["weight_names"]
    assert attributes(str(tmp_path / "fixed.h5")) == attributes(str(SAMPLES / name))
    for key, value in raw_values(str(SAMPLES / name)).items():
        assert same_values(raw_values(str(tmp_path / "fixed.h5"))[key], value)


def nested(tmp_path: Path, **options: Any) -> tuple[Checkpoint, Checkpoint, Changes]:
    """Return a whole file, one whose nested model lost its statistics, and the changes that bring them back."""
    name = options.get("name", "keras3_whole.h5")
    whole = open_checkpoint(SAMPLES / name)
    gone = [each for each in raw_values(str(SAMPLES / name)) if "inner/" in each and "/moving_" in each]
    assert len(gone) == 4
    broken = without(SAMPLES / name, tmp_path / name, "inner", gone)
    values = {each: whole.variable(each).read() for each in gone}  # type: ignore[union-attr]
    return whole, broken, Changes(values)


def test_statistics_of_a_nested_model_follow_its_weights(tmp_path: Path) -> None:
    whole, broken, changes = nested(tmp_path)
    format_of(broken).rewrite(broken, tmp_path / "fixed.h5", changes)
    assert open_checkpoint(tmp_path / "fixed.h5").attributes["weight_names"] == whole.attributes["weight_names"]


def test_without_a_config_the_order_of_a_nested_model_must_be_given(tmp_path: Path) -> None:
    whole, broken, changes = nested(tmp_path, name="keras22_weights.h5")
    with pytest.raises(RepairRefused, match="inner: holds several layers, some of which may be frozen"):
        format_of(broken).rewrite(broken, tmp_path / "fixed.h5", changes)
    names = whole.attributes["weight_names"]
    for wrong in (names["inner"][1:], (*names["inner"], "x")):
        given = Changes(changes.values, weight_names={"inner": wrong})
        with pytest.raises(RepairRefused, match="does not contain every weight exactly once"):
            format_of(broken).rewrite(broken, tmp_path / "fixed.h5", given)
    given = Changes(changes.values, weight_names={"inner": names["inner"]})
    format_of(broken).rewrite(broken, tmp_path / "fixed.h5", given)
    assert open_checkpoint(tmp_path / "fixed.h5").attributes["weight_names"] == names


def test_a_frozen_layer_makes_the_order_uncertain(tmp_path: Path) -> None:
    _, broken, changes = nested(tmp_path)
    with h5py.File(broken.path, "r+") as file:
        config = file.attrs["model_config"]
        text = config.decode() if isinstance(config, bytes) else config
        file.attrs["model_config"] = text.replace('"trainable": true', '"trainable": false').encode()
    frozen = open_checkpoint(broken.path)
    with pytest.raises(RepairRefused, match="some of which may be frozen"):
        format_of(frozen).rewrite(frozen, tmp_path / "fixed.h5", changes)


def test_a_variable_outside_every_layer_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(SAMPLES / "keras22_weights.h5", tmp_path / "m.h5")
    checkpoint = open_checkpoint(tmp_path / "m.h5")
    changes = Changes({"nowhere/moving_mean:0": np.ones(2, np.float32)})
    with pytest.raises(RepairRefused, match="is not in any layer group"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.h5", changes)
    assert not (tmp_path / "new.h5").exists()


def test_a_sound_hdf5_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros((2, 2))
    with pytest.raises(UnreadableCheckpoint, match="a sound HDF5 file that Keras did not write"):
        open_checkpoint(tmp_path / "data.h5")
