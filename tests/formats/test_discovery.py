"""From PATH arguments to checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint, UnsupportedFormat
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.discovery import discover
from tests.formats.test_tensor_bundle import SAMPLES, make_bundle


def bundle(folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return make_bundle(folder, {"x": np.zeros(2, np.float32)}, name=name)


def state(folder: Path, latest: str, *others: str) -> None:
    lines = [f'model_checkpoint_path: "{latest}"', *(f'all_model_checkpoint_paths: "{name}"' for name in others)]
    (folder / "checkpoint").write_text("\n".join(lines) + "\n")


def test_of_what_a_state_file_lists_the_latest_counts(tmp_path: Path) -> None:
    paths = [bundle(tmp_path, f"m-{number}") for number in (1, 2, 10)]
    other = bundle(tmp_path, "best")
    state(tmp_path, "m-10", "m-1", "m-2", "m-10")
    found = discover([tmp_path])
    assert found.checkpoints == (other, paths[2])
    assert found.passed_over == 2
    assert not found.damages
    everything = discover([tmp_path], all_listed=True)
    assert set(everything.checkpoints) == {other, *paths}
    assert everything.passed_over == 0
    assert discover([tmp_path / "checkpoint"]).checkpoints == (paths[2],)
    # What is named itself is always taken.
    assert discover([paths[0], tmp_path]).checkpoints == (paths[0], other, paths[2])


@pytest.mark.parametrize("latest", ["gone", "/elsewhere/m-2", "C:\\train\\m-2", ""])
def test_stale_state_file(tmp_path: Path, latest: str) -> None:
    path = bundle(tmp_path, "m-2")
    state(tmp_path, latest.replace("\\", "\\\\"), latest.replace("\\", "\\\\"))
    found = discover([tmp_path])
    assert found.checkpoints == (path,)
    ((damage,),) = found.damages.values()
    assert damage.kind == "stale-checkpoint-state"
    assert damage.where == str(tmp_path / "checkpoint")
    assert list(found.damages) == [path]


def test_stale_state_file_alone(tmp_path: Path) -> None:
    state(tmp_path, "gone")
    found = discover([tmp_path])
    assert found.checkpoints == ()
    assert not found.errors
    (unopened,) = found.unopened
    assert unopened.damages[0].kind == "stale-checkpoint-state"
    assert "gone" in str(unopened)


def test_state_file_with_absolute_paths_that_are_right(tmp_path: Path) -> None:
    path = bundle(tmp_path, "m-2")
    state(tmp_path, path, path)
    assert not discover([tmp_path]).damages


def test_state_file_that_is_something_else(tmp_path: Path) -> None:
    bundle(tmp_path, "m")
    (tmp_path / "checkpoint").write_bytes(b"\x80\x04\x95 a pickle, not a text file at all")
    ((damage,),) = discover([tmp_path]).damages.values()
    assert "pickle" in damage.message


def test_remains_of_a_save(tmp_path: Path) -> None:
    path = bundle(tmp_path, "whole")
    (tmp_path / "whole.data-00000-of-00001.tempstate123").write_bytes(b"x")
    (tmp_path / "gone.data-00000-of-00001").write_bytes(b"x")
    (tmp_path / "other_temp_0123abc").mkdir()
    (tmp_path / "other_temp_0123abc" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"x")
    found = discover([tmp_path])
    assert found.checkpoints == (path,)
    assert [damage.kind for damage in found.damages[path]] == ["unfinished-save"]
    assert [unopened.damages[0].kind for unopened in found.unopened] == ["unfinished-save"] * 2
    assert {Path(unopened.path).name for unopened in found.unopened} == {"gone", "other"}


def test_every_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path / "a", "m")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "self").symlink_to("self")
    monkeypatch.chdir(tmp_path)
    names = [path, f"{path}.index", f"{path}.data-00000-of-00001", tmp_path, "a/m", "./a", f"{tmp_path}/link/m"]
    assert discover(names).checkpoints == (path,)


def test_hidden_folders_and_other_files_are_skipped(tmp_path: Path) -> None:
    for folder in (".git", "__pycache__", ".venv"):
        bundle(tmp_path / folder, "m")
    (tmp_path / "README.md").write_text("nothing here\n" * 9)
    (tmp_path / "data.tfrecord-00000-of-00002").write_bytes(bytes(100))
    (tmp_path / "lightning.ckpt").write_bytes(b"PK\x03\x04" + bytes(60))
    (tmp_path / "empty.index").write_bytes(b"")
    found = discover([tmp_path])
    assert found.checkpoints == (str(tmp_path / "empty"),)
    (tmp_path / "empty.index").unlink()
    found = discover([tmp_path])
    assert found.checkpoints == ()
    assert found.errors == ((str(tmp_path), f"{tmp_path}: no checkpoint in this folder"),)


def test_samples_are_all_found() -> None:
    found = discover([SAMPLES])
    own = [path for path in found.checkpoints if "/keras/" not in path]
    assert [str(Path(path).relative_to(SAMPLES)) for path in own] == [
        "bundle_dtypes/sample",
        "bundle_module/sample",
        "bundle_objects/sample",
        "bundle_shards/sample",
        "saved_model_keras3/sample",
        "saved_model_tf1/sample",
        "saved_model_tf2/sample",
        "tf1_bundle/sample",
        "v1/sample",
        "v1_shards/sample-?????-of-00002",
    ]
    assert not any("_0000" in path for path in found.checkpoints)


def test_globs(tmp_path: Path) -> None:
    paths = [bundle(tmp_path, f"m-{number}") for number in (1, 2)]
    (tmp_path / "m-3.txt").write_text("no")
    assert discover([f"{tmp_path}/m-*"]).checkpoints == tuple(paths)
    assert discover([f"{tmp_path}/**/m-1.index"]).checkpoints == (paths[0],)
    ((path, message),) = discover([f"{tmp_path}/n-*"]).errors
    assert path.endswith("n-*")
    assert "nothing matches" in message
    assert discover([f"{SAMPLES}/v1_shards/sample-?????-of-00002"]).checkpoints == (
        f"{SAMPLES}/v1_shards/sample-?????-of-00002",
    )


def test_unreadable_folder_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path / "b", "m")
    (tmp_path / "a").mkdir()
    real = os.scandir

    def refusing(folder: str) -> object:
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = discover([tmp_path])
    assert found.checkpoints == (path,)
    assert found.errors == ((str(tmp_path / "a"), f"{tmp_path / 'a'}: cannot be read: Permission denied"),)


def test_absent_paths_say_what_was_looked_for(tmp_path: Path) -> None:
    bundle(tmp_path, "model.ckpt-7")
    (tmp_path / "old.data-00000-of-00001").write_bytes(b"x")
    (tmp_path / "old.meta").write_bytes(b"x")
    for path, words in (
        ("none", f"no checkpoint with this prefix ({tmp_path}/none.index)"),
        ("model.ckpt", f"did you mean {tmp_path}/model.ckpt-7"),
        ("old", "found only old.data-00000-of-00001, old.meta"),
        ("old.meta", "found only old.data-00000-of-00001, old.meta"),
        ("old.data-00000-of-00001", "is missing, and a checkpoint cannot be read without it"),
    ):
        with pytest.raises(BadRequest) as caught:
            open_checkpoint(tmp_path / path)
        assert words in str(caught.value)
        ((_, message),) = discover([tmp_path / path]).errors
        assert words in message


def test_folders_as_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormat, match="no checkpoint in this folder"):
        open_checkpoint(tmp_path)
    path = bundle(tmp_path, "m-1")
    assert open_checkpoint(tmp_path).path == path
    bundle(tmp_path, "m-2")
    with pytest.raises(BadRequest, match="2 checkpoints"):
        open_checkpoint(tmp_path)
    state(tmp_path, "m-2", "m-1", "m-2")
    assert open_checkpoint(tmp_path).path == str(tmp_path / "m-2")


def test_what_lies_below_a_folder_is_passed_over_where_its_state_file_names_one(tmp_path: Path) -> None:
    """The `model_dir` of an Estimator holds `keras`, `export` and the like."""
    latest = bundle(tmp_path, "model.ckpt-2")
    bundle(tmp_path / "keras", "keras_model.ckpt")
    with pytest.raises(BadRequest, match="2 checkpoints"):
        open_checkpoint(tmp_path)
    state(tmp_path, "model.ckpt-2")
    assert open_checkpoint(tmp_path).path == latest
    assert len(discover([tmp_path]).checkpoints) == 2
    # Which of two beside each other is meant, no one knows.
    bundle(tmp_path, "best.ckpt")
    with pytest.raises(BadRequest, match="3 checkpoints"):
        open_checkpoint(tmp_path)
    for path in tmp_path.glob("best.ckpt.*"):
        path.unlink()
    state(tmp_path, "gone")
    with pytest.raises(BadRequest, match="checkpoints in this folder"):
        open_checkpoint(tmp_path)


def test_unknown_bytes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some plain words\n")
    (tmp_path / "noise").write_bytes(bytes(range(7, 90)))
    (tmp_path / "void").write_bytes(b"")
    for name, words in (("notes.txt", "is a text file"), ("noise", "begins with 07 08"), ("void", "is empty")):
        with pytest.raises(UnsupportedFormat, match=words):
            open_checkpoint(tmp_path / name)
        assert discover([tmp_path / name]).checkpoints == (str(tmp_path / name),)
    (tmp_path / "notes.txt").rename(tmp_path / "m.ckpt")
    with pytest.raises(UnreadableCheckpoint, match="text file"):
        open_checkpoint(tmp_path / "m.ckpt")


def test_a_data_file_in_hdf5_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros((3, 2))
    assert discover([str(tmp_path)]).checkpoints == ()


def test_a_glob_over_what_was_walked_already_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    make_bundle(tmp_path / "inner", {"w": np.zeros(2, np.float32)})
    found = discover([str(tmp_path), str(tmp_path / "*")])
    assert len(found.checkpoints) == 1
    assert found.errors == ()


def test_the_files_of_a_saved_model_are_one_checkpoint() -> None:
    folder = SAMPLES / "saved_model_keras3" / "sample"
    files = [folder / "saved_model.pb", folder / "variables" / "variables.index"]
    assert discover(list(map(str, files))).checkpoints == (str(folder),)
    assert discover([str(files[1])]).checkpoints == (str(files[1])[: -len(".index")],)


@pytest.mark.parametrize("named", ["{}", "{}/..", "{}*"])
def test_a_folder_that_is_a_checkpoint_hides_nothing(tmp_path: Path, named: str) -> None:
    """A repository with a `saved_model.pb` at its root, and a folder of the name of the bundle beside it."""
    repository = tmp_path / "repository"
    shutil.copytree(SAMPLES / "saved_model_tf2" / "sample", repository)
    for folder in (repository / "checkpoints", repository / "old" / "deeper", repository / "assets"):
        bundle(folder, "sample")
    shutil.copytree(repository / "old", repository / "checkpoints" / "sample")
    shutil.copy(SAMPLES.parent / "keras_v3" / "broken.keras", repository)
    found = discover([named.format(repository)]).checkpoints
    assert [Path(path).resolve().relative_to(tmp_path).as_posix() for path in sorted(found)] == [
        "repository",
        "repository/broken.keras",
        "repository/checkpoints/sample",
        "repository/checkpoints/sample/deeper/sample",
        "repository/old/deeper/sample",
    ]
    # Its file names the model alone.
    assert discover([repository / "saved_model.pb"]).checkpoints == (str(repository),)


@pytest.mark.parametrize(
    "content",
    [
        # msgpack 1.1.2: `packb({"params": {"Dense_0": {"bias": 1}}, "step": 5})`, and a map of 20 entries.
        b"\x82\xa6params\x81\xa7Dense_0\x81\xa4bias\x01\xa4step\x05",
        b"\xde\x00\x14\xa10\x00\xa11\x01\xa12\x02\xa13\x03",
    ],
)
def test_a_file_checkpoint_of_flax_is_no_state_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    path = bundle(tmp_path, "m-2")
    found = discover([tmp_path])
    assert found.checkpoints == (path,)
    assert not found.damages
    assert not found.unopened
    (file,) = found.books.coverage([path], []).passed_over
    assert (file.kind, file.unopened) == ("other-model", True)
    with pytest.raises(UnsupportedFormat, match="is a msgpack file, as Flax, T5X and Orbax"):
        open_checkpoint(tmp_path / "checkpoint")
