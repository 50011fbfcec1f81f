"""Keras 3's own files: the contract on an archive, bare weights and shards, and what is special about them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, same_values
from ckpt_doctor.errors import BadRequest, RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from tests.formats.contract import FEW_FAILURES, Expected, FormatContract, altered, copy_into
from tests.formats.keras_samples import SAMPLES, attributes, expected, raw_values, recorded

V3 = [
    ("keras3.keras", "keras-v3", "3.x", "layers"),
    ("keras3.weights.h5", "keras-weights-v3", None, "layers"),
    ("keras3_sharded.weights.json", "keras-weights-v3", "3.x", "layers"),
    ("keras3_custom.weights.h5", "keras-weights-v3", None, "layers"),
    ("keras3_float16.weights.h5", "keras-weights-v3", None, "layers"),
    ("keras3_bfloat16.weights.h5", "keras-weights-v3", None, "layers"),
    ("tf_keras.keras", "keras-v3", "2.x", "layers"),
    ("tf_keras.weights.h5", "keras-weights-v3", None, "layers"),
    ("tensorflow212.keras", "keras-v3", "2.x", "_layer_checkpoint_dependencies"),
    ("tensorflow212.weights.h5", "keras-weights-v3", None, "_layer_checkpoint_dependencies"),
]


class V3Contract(FormatContract):
    format_name = "keras-weights-v3"
    samples = 80
    sample: str
    extension = ".weights.h5"

    def make(self, folder: Path) -> str:
        copy_into(folder, SAMPLES / self.sample)
        return str(folder / self.sample)

    def expected(self) -> Expected:
        return expected(self.sample)

    def raw_values(self, path: str) -> dict[str, Array]:
        return raw_values(path)

    def target(self, folder: Path) -> Path:
        return folder / f"fixed{self.extension}"

    def new_variable(self) -> tuple[str, Array] | None:
        return "layers/batch_normalization/vars/10", np.arange(2, dtype=np.float32)


class TestArchive(V3Contract):
    format_name = "keras-v3"
    has_checksums = True
    sample = "tensorflow212.keras"
    extension = ".keras"

    def new_variable(self) -> tuple[str, Array] | None:
        return "_layer_checkpoint_dependencies/batch_normalization/vars/10", np.arange(2, dtype=np.float32)


class TestDeflatedArchive(TestArchive):
    samples, header = 40, 16
    failures = FEW_FAILURES

    def make(self, folder: Path) -> str:
        path = folder / "packed.keras"
        with zipfile.ZipFile(SAMPLES / self.sample) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
        return str(path)


class TestBareWeights(V3Contract):
    sample = "keras3_custom.weights.h5"

    def new_variable(self) -> tuple[str, Array] | None:
        return "bn/vars/4", np.arange(2, dtype=np.float32)


class TestBfloat16(V3Contract):
    sample = "keras3_bfloat16.weights.h5"
    samples, header = 40, 16
    failures = FEW_FAILURES

    def new_variable(self) -> tuple[str, Array] | None:
        return "layers/batch_normalization/vars/4", np.arange(3).astype(ml_dtypes.bfloat16)


class TestShards(V3Contract):
    sample = "keras3_sharded.weights.json"
    extension = ".weights.json"
    samples, header = 10, 8
    # Several files are committed, each as one of bare weights is: of each place one way to fail.
    failures = (
        ("copy", "disk full"),
        ("overwrite", "interrupt"),
        ("in place", "interrupt"),
        ("in place without links", "disk full"),
    )

    def make(self, folder: Path) -> str:
        copy_into(folder, SAMPLES / self.sample, *SAMPLES.glob("keras3_sharded_*"))
        return str(folder / self.sample)

    def files(self, path: str) -> list[Path]:
        # What the index says of bytes in total is not checked by anyone.
        return [file for file in super().files(path) if file.suffix == ".h5"]


@pytest.mark.parametrize(("name", "format_name", "era", "layout"), V3)
def test_every_layout_is_read(name: str, format_name: str, era: str | None, layout: str) -> None:
    checkpoint = open_checkpoint(SAMPLES / name)
    assert checkpoint.format == format_name
    assert (checkpoint.attributes["era"], checkpoint.attributes["layout"]) == (era, layout)
    assert checkpoint.producer == recorded(name)["producer"]
    values = expected(name)
    labels = recorded(name)["labels"]
    assert {variable.name for variable in checkpoint.variables} == set(values)
    for variable in checkpoint.variables:
        dtype, value = values[variable.name]
        assert (variable.dtype, variable.shape) == (dtype, value.shape)
        assert variable.nbytes == value.nbytes
        assert same_values(variable.read(), value)
        assert variable.label == labels.get(variable.name.rpartition("/")[0])
    assert {group: label for group, label in checkpoint.attributes["groups"].items() if label} == labels
    assert not checkpoint.damages
    assert not list(format_of(checkpoint).verify(checkpoint))


def test_an_archive_hands_over_config_and_training() -> None:
    checkpoint = open_checkpoint(SAMPLES / "keras3.keras")
    config = json.loads(checkpoint.descriptions.keras_config or "")
    assert config["class_name"] == "Functional"
    assert json.loads(checkpoint.descriptions.keras_training or "") == config["compile_config"]
    assert checkpoint.variable("layers/functional/layers/batch_normalization/vars/2") is not None


def test_weights_are_numbered_in_numeric_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for index in range(11):
            file[f"layers/dense/vars/{index}"] = np.float32(index)
    names = [variable.name for variable in open_checkpoint(tmp_path / "m.weights.h5").variables]
    assert names == [f"layers/dense/vars/{index}" for index in range(11)]


def test_an_unpacked_archive_has_its_config(tmp_path: Path) -> None:
    with zipfile.ZipFile(SAMPLES / "keras3.keras") as archive:
        archive.extractall(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "model.weights.h5")
    assert checkpoint.format == "keras-weights-v3"
    assert checkpoint.producer == recorded("keras3.keras")["producer"]
    assert checkpoint.descriptions.keras_config


def test_rewriting_an_archive_leaves_the_other_members_alone(tmp_path: Path) -> None:
    source = tmp_path / "in.keras"
    with zipfile.ZipFile(SAMPLES / "keras3.keras") as old, zipfile.ZipFile(source, "w") as new:
        for name in ("config.json", "model.weights.h5", "metadata.json"):
            info = zipfile.ZipInfo(name, (1999, 12, 31, 23, 59, 58))
            info.comment, info.external_attr = b"kept", 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name == "config.json" else zipfile.ZIP_STORED
            new.writestr(info, old.read(name))
        new.writestr("assets/words.txt", "one\ntwo\n", zipfile.ZIP_BZIP2)
        new.comment = b"whole"
    checkpoint = open_checkpoint(source)
    first = checkpoint.variables[0]
    changes = Changes({first.name: altered(first.read()), "layers/batch_normalization/vars/9": np.ones(3, np.float32)})
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out.keras", changes)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "out.keras") as new:
        assert new.testzip() is None
        assert new.comment == b"whole"
        assert new.namelist() == old.namelist()
        for before, after in zip(old.infolist(), new.infolist(), strict=True):
            for field in ("date_time", "compress_type", "comment", "external_attr", "create_system"):
                assert getattr(before, field) == getattr(after, field), (before.filename, field)
            if before.filename != "model.weights.h5":
                assert (before.CRC, before.compress_size) == (after.CRC, after.compress_size)
    assert raw_values(str(tmp_path / "out.keras"))["layers/batch_normalization/vars/9"].tolist() == [1, 1, 1]


def test_rewriting_keeps_attributes_and_order(tmp_path: Path) -> None:
    for name, target in (("keras3.keras", "new.keras"), ("keras3_bfloat16.weights.h5", "new.weights.h5")):
        checkpoint = open_checkpoint(SAMPLES / name)
        changes = Changes({variable.name: altered(variable.read()) for variable in checkpoint.variables})
        format_of(checkpoint).rewrite(checkpoint, tmp_path / target, changes)
        assert attributes(str(tmp_path / target)) == attributes(str(SAMPLES / name))


def test_a_wrong_byte_gets_no_right_checksum(tmp_path: Path) -> None:
    content = bytearray((SAMPLES / "tensorflow212.keras").read_bytes())
    checkpoint = open_checkpoint(SAMPLES / "tensorflow212.keras")
    variable = checkpoint.variables[0]
    content[content.index(variable.read().tobytes())] ^= 1
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    damaged = open_checkpoint(path)
    assert not damaged.damages
    message = r"m.keras!model.weights.h5: stored bytes fail their check: Bad CRC-32"
    with pytest.raises(UnreadableCheckpoint, match=message):
        damaged.variables[-1].read()
    (damage,) = format_of(damaged).verify(damaged)
    assert damage.kind == "checksum-mismatch"
    changes = Changes({damaged.variables[3].name: checkpoint.variables[3].read() + 1})
    with pytest.raises(UnreadableCheckpoint, match=message):
        format_of(damaged).rewrite(damaged, tmp_path / "new.keras", changes)
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]


def test_shards_are_renamed_with_their_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(SAMPLES / "keras3_sharded.weights.json")
    assert [Path(file).name for file in checkpoint.files][-1] == "keras3_sharded.weights.json"
    written = format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.weights.json", Changes())
    names = [f"new_0000{index}.weights.h5" for index in range(3)]
    assert [file.name for file in written] == [*names, "new.weights.json"]
    with pytest.raises(BadRequest, match=r"must end in \.weights\.json"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.h5", Changes())


def test_in_place_only_the_shards_that_change_are_replaced(tmp_path: Path) -> None:
    copy_into(tmp_path, *SAMPLES.glob("keras3_sharded*weights.*[h5on]"))
    checkpoint = open_checkpoint(tmp_path / "keras3_sharded.weights.json")
    last = checkpoint.variables[-1]
    form = format_of(checkpoint)
    kept = form.rewrite_in_place(checkpoint, Changes({last.name: altered(last.read())}))
    assert [file.name for file in kept] == [f"{checkpoint.attributes['shard_of'][last.name]}.bak"]
    total = json.loads((tmp_path / "keras3_sharded.weights.json").read_text())["metadata"]["total_size"]
    new = Changes({"layers/batch_normalization/vars/10": np.ones(2, np.float32)})
    form.rewrite_in_place(open_checkpoint(tmp_path / "keras3_sharded.weights.json"), new, backup=False)
    index = json.loads((tmp_path / "keras3_sharded.weights.json").read_text())
    assert index["metadata"]["total_size"] == total + 8


def test_a_missing_shard_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    copy_into(tmp_path, *SAMPLES.glob("keras3_sharded*weights.*[h5on]"))
    (tmp_path / "keras3_sharded_00001.weights.h5").unlink()
    checkpoint = open_checkpoint(tmp_path / "keras3_sharded.weights.json")
    (damage,) = checkpoint.damages
    assert damage.kind == "missing-shard"
    assert damage.variables
    assert checkpoint.variables
    with pytest.raises(RepairRefused, match="the shard is missing"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.weights.json", Changes())


def test_a_new_variable_in_no_group_of_the_index_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(SAMPLES / "keras3_sharded.weights.json")
    changes = Changes({"layers/nowhere/vars/0": np.ones(2, np.float32)})
    with pytest.raises(RepairRefused, match="the index has no group"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "new.weights.json", changes)
    assert not list(tmp_path.iterdir())


def test_a_legacy_file_is_recognised_under_the_new_name(tmp_path: Path) -> None:
    shutil.copyfile(SAMPLES / "keras22_weights.h5", tmp_path / "m.weights.h5")
    assert open_checkpoint(tmp_path / "m.weights.h5").format == "keras-weights-hdf5"
    shutil.copyfile(SAMPLES / "keras22_whole.h5", tmp_path / "m.keras")
    assert open_checkpoint(tmp_path / "m.keras").format == "keras-hdf5"
    shutil.copyfile(SAMPLES / "keras3.weights.h5", tmp_path / "m.h5")
    assert open_checkpoint(tmp_path / "m.h5").format == "keras-weights-v3"
    shutil.copyfile(SAMPLES / "keras3.keras", tmp_path / "zip.h5")
    assert open_checkpoint(tmp_path / "zip.h5").format == "keras-v3"
