"""SavedModels of TensorFlow 1, TensorFlow 2 and Keras 3."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats._fingerprint import fingerprint64
from ckpt_doctor.formats.interface import Changes
from tests.formats import raw_bundle
from tests.formats.contract import FEW_FAILURES, Expected, FormatContract, altered, snapshot

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"


class SavedModelContract(FormatContract):
    format_name = "saved-model"
    has_checksums = True
    samples = 60
    sample: str

    def make(self, folder: Path) -> str:
        shutil.copytree(SAMPLES / self.sample / "sample", folder / "sample")
        return str(folder / "sample")

    def expected(self) -> Expected:
        return raw_bundle.expected(SAMPLES / self.sample)

    def raw_values(self, path: str) -> dict[str, Array]:
        return raw_bundle.bundle(f"{path}/variables/variables")

    def target(self, folder: Path) -> Path:
        return folder / "fixed"

    def files(self, path: str) -> list[Path]:
        return [file for file in super().files(path) if file.parent.name == "variables"]


class TestTensorFlow1(SavedModelContract):
    sample = "saved_model_tf1"
    failures = FEW_FAILURES


class TestTensorFlow2(SavedModelContract):
    sample = "saved_model_tf2"
    failures = FEW_FAILURES


class TestKeras3(SavedModelContract):
    sample = "saved_model_keras3"


@pytest.mark.parametrize(
    ("sample", "producer"),
    [
        ("saved_model_tf1", "TensorFlow 1.15.5"),
        ("saved_model_tf2", "TensorFlow 2."),
        ("saved_model_keras3", "TensorFlow 2."),
    ],
)
def test_descriptions(sample: str, producer: str) -> None:
    folder = SAMPLES / sample / "sample"
    for path in (folder, folder / "saved_model.pb", f"{folder}/"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == str(folder)
        assert (checkpoint.producer or "").startswith(producer)
        assert checkpoint.descriptions.saved_model == (folder / "saved_model.pb").read_bytes()
        assert (checkpoint.descriptions.object_graph is None) == (sample == "saved_model_tf1")


def test_rewrite_copies_everything_else_and_renews_the_fingerprint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(SAMPLES / "saved_model_tf2" / "sample")
    name = checkpoint.variables[0].name
    form = format_of(checkpoint)
    form.rewrite(checkpoint, tmp_path / "out", Changes({name: altered(checkpoint.variables[0].read())}))
    old, new = snapshot(SAMPLES / "saved_model_tf2" / "sample"), snapshot(tmp_path / "out")
    assert set(old) == set(new)
    assert {path for path in old if old[path] != new[path]} == {
        "fingerprint.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    }
    for folder in (SAMPLES / "saved_model_tf2" / "sample", tmp_path / "out"):
        fingerprint = dict(raw_bundle.fields((folder / "fingerprint.pb").read_bytes()))
        assert fingerprint[5] == fingerprint64((folder / "variables" / "variables.index").read_bytes())


def test_the_fingerprint_of_any_length_is_that_of_tensorflow() -> None:
    """The digest is of `tf.raw_ops.Fingerprint(data, method="farmhash64")` of the first 0 to 399 bytes (2.21.0)."""
    data = bytes((i * i * 7 + i * 13 + (i >> 3)) & 255 for i in range(400))
    found = b"".join(fingerprint64(data[:size]).to_bytes(8, "little") for size in range(400))
    assert hashlib.sha256(found).hexdigest() == "15435f0086320c7efb69a6b358e86157176738153f2bbef3739390c7b6c4a95c"


def test_in_place_changes_the_bundle_and_the_fingerprint_only(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "saved_model_keras3" / "sample", tmp_path / "m")
    before = snapshot(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    name = checkpoint.variables[0].name
    format_of(checkpoint).rewrite_in_place(
        checkpoint, Changes({name: altered(checkpoint.variables[0].read())}), backup=False
    )
    after = snapshot(tmp_path / "m")
    assert {path for path in before if before[path] != after[path]} == {
        "fingerprint.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    }


def test_variables_behind_a_link_are_not_changed_in_place(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "saved_model_tf2" / "sample", tmp_path / "m")
    (tmp_path / "m" / "variables").rename(tmp_path / "shared")
    (tmp_path / "m" / "variables").symlink_to("../shared")
    before = snapshot(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "m")
    first = next(variable for variable in checkpoint.variables if variable.dtype == "float32")
    changes = Changes({first.name: altered(first.read())})
    with pytest.raises(RepairRefused, match="is a symbolic link: others may share"):
        format_of(checkpoint).rewrite_in_place(checkpoint, changes)
    assert snapshot(tmp_path) == before
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "new", changes)
    assert not (tmp_path / "new" / "variables").is_symlink()


def test_without_variables(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.variables == ()
    assert not checkpoint.damages
    with pytest.raises(RepairRefused, match="no variables"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({"x": np.zeros(2, np.float32)}))


def test_damages(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "saved_model_tf2" / "sample", tmp_path / "m")
    model = tmp_path / "m" / "saved_model.pb"
    whole = model.read_bytes()
    model.write_bytes(whole[:-100])
    checkpoint = open_checkpoint(tmp_path / "m")
    assert [damage.kind for damage in checkpoint.damages] == ["truncated"]
    assert checkpoint.variables
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert [damage.kind for damage in open_checkpoint(model).damages] == ["not-a-checkpoint"]
    model.write_bytes(whole)
    index = tmp_path / "m" / "variables" / "variables.index"
    index.write_bytes(b"")
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(tmp_path / "m")
    assert (caught.value.format, caught.value.path) == ("saved-model", str(tmp_path / "m"))
    index.unlink()
    assert [damage.kind for damage in open_checkpoint(tmp_path / "m").damages] == ["unfinished-save"]


@pytest.mark.parametrize("text", [False, True])
def test_a_variable_that_the_graph_would_not_load_is_not_added(tmp_path: Path, text: bool) -> None:
    folder = tmp_path / "sample"
    shutil.copytree(SAMPLES / "saved_model_tf1" / "sample", folder)
    if text:
        (folder / "saved_model.pb").unlink()
        (folder / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n", encoding="utf-8")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(RepairRefused, match="the graph would not load it"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({"new": np.zeros(3, np.float32)}))
    model = (SAMPLES / "saved_model_tf1" / "sample" / "saved_model.pb").read_bytes()
    changes = Changes({"new": np.zeros(3, np.float32)}, saved_model=model)
    if text:
        with pytest.raises(RepairRefused, match=r"its model is not a saved_model\.pb"):
            format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", changes)
    else:
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", changes)
        assert (tmp_path / "out" / "saved_model.pb").read_bytes() == model
    assert (tmp_path / "out").exists() != text


def test_no_meta_lies_with_a_saved_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(SAMPLES / "saved_model_tf1" / "sample")
    with pytest.raises(RepairRefused, match=r"has no \.meta"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes(meta_graph=b""))
