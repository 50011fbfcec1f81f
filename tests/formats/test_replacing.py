"""What `--overwrite` replaces: a checkpoint of the same format, and nothing else; a refusal changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _atomic, format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from tests.formats.contract import copy_into, everything, snapshot

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"
KERAS = SAMPLES / "keras"
SHARDED = [KERAS / "keras3_sharded.weights.json", *KERAS.glob("keras3_sharded_0*.weights.h5")]


def bundle(folder: Path, name: str = "model", sample: str = "bundle_module") -> Checkpoint:
    """Put a bundle of this prefix into a folder and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (SAMPLES / sample).glob("sample.*"):
        shutil.copyfile(file, folder / file.name.replace("sample", name, 1))
    return open_checkpoint(folder / name)


def saved_model(folder: Path, sample: str = "saved_model_tf2") -> Checkpoint:
    shutil.copytree(SAMPLES / sample / "sample", folder)
    return open_checkpoint(folder)


def keras(path: Path, sample: str) -> Checkpoint:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(KERAS / sample, path)
    return open_checkpoint(path)


def assert_refused(checkpoint: Checkpoint, target: Path, words: str, *, root: Path) -> None:
    before = everything(root)
    with pytest.raises(BadRequest) as refusal:
        format_of(checkpoint).rewrite(checkpoint, target, Changes(), overwrite=True)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(f"--output {target}: ")
    assert everything(root) == before


def assert_replaced(checkpoint: Checkpoint, target: Path) -> None:
    format_of(checkpoint).rewrite(checkpoint, target, Changes(), overwrite=True)
    written = open_checkpoint(target)
    assert written.format == checkpoint.format
    assert not written.damages
    assert [variable.name for variable in written.variables] == [variable.name for variable in checkpoint.variables]


# -- a checkpoint of the same format


@pytest.mark.parametrize(
    ("source", "older", "target"),
    [
        (lambda f: bundle(f), lambda f: bundle(f, "old"), "old"),
        (lambda f: bundle(f), lambda f: bundle(f, "old"), "old.index"),
        (lambda f: bundle(f), lambda f: bundle(f, "old"), "old.data-00000-of-00001"),
        (lambda f: bundle(f), lambda f: bundle(f, "old", "bundle_shards"), "old"),
        (lambda f: bundle(f, sample="bundle_shards"), lambda f: bundle(f, "old", "tf1_bundle"), "old"),
        (lambda f: saved_model(f / "in"), lambda f: saved_model(f / "old", "saved_model_keras3"), "old"),
        (lambda f: saved_model(f / "in"), lambda f: saved_model(f / "old", "saved_model_tf1"), "old"),
        (lambda f: keras(f / "a.h5", "keras22_whole.h5"), lambda f: keras(f / "old.h5", "keras3_whole.h5"), "old.h5"),
        (
            lambda f: keras(f / "a.keras", "keras3.keras"),
            lambda f: keras(f / "b.keras", "tensorflow212.keras"),
            "b.keras",
        ),
    ],
)
def test_a_checkpoint_of_the_same_format_is_replaced(
    tmp_path: Path, source: Callable[[Path], Checkpoint], older: Callable[[Path], Checkpoint], target: str
) -> None:
    checkpoint = source(tmp_path / "in")
    older(tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("keep")
    assert_replaced(checkpoint, tmp_path / "out" / target)
    assert (tmp_path / "out" / "notes.md").read_text() == "keep"


# -- the checkpoint itself, and what it is in


def test_a_folder_that_holds_the_source_and_other_models_is_refused(tmp_path: Path) -> None:
    """As seen: `fix models/broken --output models --overwrite` removed every model and the source."""
    models = tmp_path / "models"
    checkpoint = saved_model(models / "broken")
    (models / "notes.md").write_text("keep")
    (models / "prod.keras").write_text("keep")
    words = f"{models} contains the checkpoint itself ({models / 'broken'})"
    assert_refused(checkpoint, models, words, root=tmp_path)
    # Not even where the folder is a SavedModel, too.
    shutil.copytree(SAMPLES / "saved_model_tf2" / "sample", models, dirs_exist_ok=True)
    (models / "notes.md").unlink()
    (models / "prod.keras").unlink()
    assert_refused(checkpoint, models, words, root=tmp_path)
    (tmp_path / "link").symlink_to(models)
    assert_refused(checkpoint, tmp_path / "link", "contains the checkpoint itself", root=tmp_path)
    inside = open_checkpoint(models / "broken" / "variables" / "variables")
    assert_refused(inside, models, "contains the checkpoint itself", root=tmp_path)


def test_the_source_under_another_name_is_refused(tmp_path: Path) -> None:
    checkpoint = keras(tmp_path / "a.h5", "keras22_whole.h5")
    os.link(tmp_path / "a.h5", tmp_path / "hard.h5")
    (tmp_path / "soft.h5").symlink_to("a.h5")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("a.h5", "hard.h5", "soft.h5", "folder/a.h5"):
        assert_refused(checkpoint, tmp_path / name, "a file of the checkpoint itself", root=tmp_path)
    through_a_link = open_checkpoint(tmp_path / "soft.h5")
    assert_refused(through_a_link, tmp_path / "a.h5", "a file of the checkpoint itself", root=tmp_path)


def test_a_prefix_of_which_one_file_is_the_sources_is_refused(tmp_path: Path) -> None:
    checkpoint = bundle(tmp_path)
    bundle(tmp_path, "copy")
    (tmp_path / "copy.data-00000-of-00001").unlink()
    os.link(tmp_path / "model.data-00000-of-00001", tmp_path / "copy.data-00000-of-00001")
    assert_refused(checkpoint, tmp_path / "copy", "a file of the checkpoint itself", root=tmp_path)


def test_a_saved_model_of_which_one_file_is_the_sources_is_refused(tmp_path: Path) -> None:
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "copy")
    (tmp_path / "copy" / "saved_model.pb").unlink()
    os.link(tmp_path / "m" / "saved_model.pb", tmp_path / "copy" / "saved_model.pb")
    assert_refused(checkpoint, tmp_path / "copy", "a file of the checkpoint itself", root=tmp_path)


def test_a_file_system_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: what is asked for under another case is the same file."""
    checkpoint = keras(tmp_path / "model.h5", "keras22_whole.h5")
    for name in ("lstat", "stat"):
        real = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda self, real=real, **options: real(self.with_name(self.name.lower()), **options)
        )
    monkeypatch.setattr(os.path, "lexists", lambda path: Path(path).lstat() is not None)
    with pytest.raises(BadRequest, match="a file of the checkpoint itself"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "Model.h5", Changes(), overwrite=True)


def test_a_folder_inside_the_source_is_refused(tmp_path: Path) -> None:
    """Copying a folder into itself would not end."""
    checkpoint = saved_model(tmp_path / "m")
    for target in (tmp_path / "m" / "fixed", tmp_path / "m" / "assets.extra" / "fixed"):
        assert_refused(checkpoint, target, "is inside the checkpoint itself", root=tmp_path)


# -- what is not a checkpoint of the same format


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\\documentclass{book} % three years of work\n", "is a text file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file"),
        (b"PK\x03\x04" + bytes(60), "is a zip archive"),
        (bytes(64), "is filled with zeros"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "begins with 01 02 03 04 05 06 07 08"),
        (b"", "is empty"),
    ],
    ids=["text", "hdf5", "zip", "zeros", "bytes", "empty"],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    sources = [
        (keras(tmp_path / "in" / "a.h5", "keras22_whole.h5"), "thesis.h5"),
        (keras(tmp_path / "in" / "a.keras", "keras3.keras"), "thesis.keras"),
        (keras(tmp_path / "in" / "a.weights.h5", "keras3.weights.h5"), "thesis.weights.h5"),
        (bundle(tmp_path / "in"), "thesis"),
        (open_checkpoint(SAMPLES / "v1" / "sample"), "thesis"),
        (saved_model(tmp_path / "in" / "m"), "thesis"),
    ]
    for checkpoint, name in sources:
        target = tmp_path / "out" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        assert_refused(checkpoint, target, f"{target} ", root=tmp_path)
        with pytest.raises(
            BadRequest,
            match=rf"({words}|cannot be read as a checkpoint).* replaces only a {checkpoint.format} checkpoint",
        ):
            format_of(checkpoint).rewrite(checkpoint, target, Changes(), overwrite=True)
        target.unlink()


def test_a_data_file_in_hdf5_is_refused(tmp_path: Path) -> None:
    import h5py

    checkpoint = keras(tmp_path / "a.h5", "keras22_whole.h5")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros(9)
    assert_refused(checkpoint, tmp_path / "data.h5", "HDF5 file that Keras did not write", root=tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    whole = keras(tmp_path / "a.h5", "keras22_whole.h5")
    keras(tmp_path / "w.h5", "keras22_weights.h5")
    assert_refused(whole, tmp_path / "w.h5", "is a keras-weights-hdf5 checkpoint", root=tmp_path)
    keras(tmp_path / "v3.h5", "keras3.weights.h5")
    assert_refused(whole, tmp_path / "v3.h5", "is an HDF5 file", root=tmp_path)
    copy_into(tmp_path, *(SAMPLES / "v1").glob("sample"))
    assert_refused(
        bundle(tmp_path / "in"), tmp_path / "sample", "a file of a tensor-slices-v1 checkpoint", root=tmp_path
    )
    bundle(tmp_path, "prefix")
    single = open_checkpoint(SAMPLES / "v1" / "sample")
    words = "is a file of a tensor-bundle checkpoint"
    assert_refused(single, tmp_path / "prefix", words, root=tmp_path)
    assert_refused(open_checkpoint(SAMPLES / "v1_shards" / "sample"), tmp_path / "prefix", words, root=tmp_path)


def test_a_cut_file_of_the_right_name_is_refused(tmp_path: Path) -> None:
    checkpoint = keras(tmp_path / "a.h5", "keras22_whole.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:5000])
    assert_refused(checkpoint, tmp_path / "cut.h5", "cannot be read as a checkpoint", root=tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "dangling", "folder"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    sources = [
        (keras(tmp_path / "in" / "a.h5", "keras22_whole.h5"), "x.h5"),
        (bundle(tmp_path / "in"), "x.index"),
        (open_checkpoint(SAMPLES / "v1" / "sample"), "x"),
        (saved_model(tmp_path / "in" / "m"), "x"),
    ]
    for checkpoint, name in sources:
        target = tmp_path / "out" / name
        target.parent.mkdir(exist_ok=True)
        if kind == "pipe":
            os.mkfifo(target)
        elif kind == "dangling":
            target.symlink_to(tmp_path / "nowhere")
        else:
            target.mkdir()
        assert_refused(checkpoint, target, "replaces only a", root=tmp_path / "in")
        assert os.path.lexists(target)
        shutil.rmtree(target.parent)


@pytest.mark.parametrize("name", [".", "..", "folder/.."])
def test_a_name_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    checkpoint = saved_model(tmp_path / "m")
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert_refused(checkpoint, Path(name), "does not name a new file or folder", root=tmp_path)


# -- folders of a SavedModel


def test_all_that_a_saved_model_may_hold_goes_with_it(tmp_path: Path) -> None:
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "out")
    for name in ("keras_metadata.pb", "tfhub_module.pb", "assets/vocabulary.txt", "debug/saved_model_debug_info.pb"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"\x0a\x00")
    (tmp_path / "out" / "variables" / "checkpoint").write_text('model_checkpoint_path: "variables"')
    assert_replaced(checkpoint, tmp_path / "out")
    assert snapshot(tmp_path / "out").keys() == snapshot(tmp_path / "m").keys()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("notes.md", "notes.md"),
        ("variables/notes.md", "variables/notes.md"),
        ("variables/variables.data-00001-of-00002", "variables/variables.data-00001-of-00002"),
        ("variables/more/notes.md", "variables/more"),
        ("old/saved_model.pb", "old"),
        (".git/HEAD", ".git"),
        ("saved_model.pb.bak", "saved_model.pb.bak"),
        ("model.keras", "model.keras"),
        ("assets.extra/model.keras", "assets.extra/model.keras"),
        ("assets/older/saved_model.pb", "assets/older"),
    ],
)
def test_a_saved_model_with_anything_else_in_it_is_refused(tmp_path: Path, name: str, named: str) -> None:
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    content = KERAS / "keras3.keras" if name.endswith(".keras") else SAMPLES / "saved_model_tf2/sample/saved_model.pb"
    shutil.copyfile(content, tmp_path / "out" / name)
    words = f"{tmp_path / 'out' / named} is not part of the saved-model checkpoint {tmp_path / 'out'} and would be lost"
    assert_refused(checkpoint, tmp_path / "out", words, root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"version https://git-lfs.github.com/spec/v1\n", b"\x2a\x01a"])
def test_a_folder_with_a_model_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    checkpoint = saved_model(tmp_path / "m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "saved_model.pb").write_bytes(content)
    assert_refused(checkpoint, tmp_path / "out", "is not a SavedModel", root=tmp_path)


def test_a_saved_model_in_text_form_is_replaced(tmp_path: Path) -> None:
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "out")
    (tmp_path / "out" / "saved_model.pb").unlink()
    (tmp_path / "out" / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\nmeta_graphs {\n}\n")
    assert_replaced(checkpoint, tmp_path / "out")


def test_a_file_of_a_saved_model_is_no_target(tmp_path: Path) -> None:
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "out")
    assert_refused(checkpoint, tmp_path / "out" / "saved_model.pb", "give its folder", root=tmp_path)


# -- prefixes, shards


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("old.meta", "is not part of the tensor-bundle checkpoint"),
        ("old.data-00001-of-00002", "is not part of the tensor-bundle checkpoint"),
        ("old", "is not part of the tensor-bundle checkpoint"),
    ],
)
def test_a_file_beside_a_bundle_that_is_not_of_it_is_refused(tmp_path: Path, name: str, words: str) -> None:
    checkpoint = bundle(tmp_path / "in")
    bundle(tmp_path / "out", "old")
    (tmp_path / "out" / name).write_bytes(b"fileFormatVersion: 2\nguid: 5a3b\n")
    assert_refused(checkpoint, tmp_path / "out" / "old", f"{tmp_path / 'out' / name} {words}", root=tmp_path)


def test_a_folder_called_as_the_prefix_is_refused(tmp_path: Path) -> None:
    checkpoint = bundle(tmp_path / "in")
    (tmp_path / "out").mkdir()
    assert_refused(checkpoint, tmp_path / "out", "is a folder", root=tmp_path)
    saved_model(tmp_path / "m")
    assert_refused(checkpoint, tmp_path / "m", "is a folder with a saved-model checkpoint", root=tmp_path)


def test_a_graph_in_text_form_belongs_to_its_bundle(tmp_path: Path) -> None:
    checkpoint = bundle(tmp_path / "in")
    bundle(tmp_path / "out", "old")
    (tmp_path / "out" / "old.meta").write_text("meta_info_def {\n}\n")
    assert_replaced(checkpoint, tmp_path / "out" / "old")
    assert not (tmp_path / "out" / "old.meta").exists()


def test_a_data_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    checkpoint = bundle(tmp_path / "in")
    bundle(tmp_path / "out", "old")
    data = tmp_path / "out" / "old.data-00000-of-00001"
    data.write_bytes(b"PK\x03\x04" + bytes(20))
    assert_refused(checkpoint, tmp_path / "out" / "old", f"{data} is not part of", root=tmp_path)
    data.unlink()
    assert_replaced(checkpoint, tmp_path / "out" / "old")


def test_the_variables_of_a_saved_model_are_not_a_bundle_of_their_own(tmp_path: Path) -> None:
    checkpoint = bundle(tmp_path / "in")
    saved_model(tmp_path / "m")
    target = tmp_path / "m" / "variables" / "variables"
    assert_refused(checkpoint, target, f"is part of the SavedModel {tmp_path / 'm'}", root=tmp_path)


def test_shards_of_v1(tmp_path: Path) -> None:
    sharded = open_checkpoint(SAMPLES / "v1_shards" / "sample")
    single = open_checkpoint(SAMPLES / "v1" / "sample")
    form = format_of(sharded)
    out = tmp_path / "out"
    form.rewrite(sharded, out, Changes())
    assert_refused(single, tmp_path / "out-00000-of-00002", "is the name of one of 2 shards", root=tmp_path)
    # An older one of more shards goes whole; another beside it does not.
    shutil.copyfile(tmp_path / "out-00000-of-00002", tmp_path / "out-00000-of-00001")
    assert_refused(sharded, out, f"{out}-00000-of-00002 is not part of", root=tmp_path)
    (tmp_path / "out-00000-of-00002").unlink()
    (tmp_path / "out-00001-of-00002").unlink()
    assert_replaced(sharded, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-00000-of-00002",
        "out-00001-of-00002",
        "out.meta",
    ]
    # A single file of that name would be opened instead, and is replaced where it is one of V1.
    for name in ("out-00000-of-00002", "out-00001-of-00002"):
        (tmp_path / name).unlink()
    out.write_bytes(b"three years of work")
    assert_refused(sharded, out, f"{out} ", root=tmp_path)
    copy_into(tmp_path, SAMPLES / "v1" / "sample")
    (tmp_path / "sample").replace(out)
    assert_replaced(sharded, out)
    assert not out.exists()


def test_the_graph_of_an_older_v1_checkpoint_goes_with_it(tmp_path: Path) -> None:
    with_graph = open_checkpoint(SAMPLES / "v1_shards" / "sample")
    assert with_graph.descriptions.meta_graph is not None
    format_of(with_graph).rewrite(with_graph, tmp_path / "a", Changes())
    copy_into(tmp_path, *(SAMPLES / "v1_shards").glob("sample-*"))
    without = open_checkpoint(tmp_path / "sample")
    assert without.descriptions.meta_graph is None
    assert_replaced(without, tmp_path / "a")
    assert open_checkpoint(tmp_path / "a").descriptions.meta_graph is None


def test_of_sharded_keras_weights_the_shards_that_the_old_index_names_are_replaced(tmp_path: Path) -> None:
    copy_into(tmp_path, *SHARDED)
    checkpoint = open_checkpoint(tmp_path / "keras3_sharded.weights.json")
    form = format_of(checkpoint)
    target = tmp_path / "new.weights.json"
    form.rewrite(checkpoint, target, Changes())
    (tmp_path / "new_00003.weights.h5").write_bytes(b"keep")
    assert_replaced(checkpoint, target)
    assert (tmp_path / "new_00003.weights.h5").read_bytes() == b"keep"
    # A name that a shard needs, and that the old index does not name.
    target.unlink()
    words = f"{tmp_path / 'new_00000.weights.h5'} is an HDF5 file"
    assert_refused(checkpoint, target, words, root=tmp_path)


def test_shards_that_the_new_index_does_not_have_go(tmp_path: Path) -> None:
    copy_into(tmp_path, *SHARDED)
    checkpoint = open_checkpoint(tmp_path / "keras3_sharded.weights.json")
    target = tmp_path / "new.weights.json"
    format_of(checkpoint).rewrite(checkpoint, target, Changes())
    (tmp_path / "new_00002.weights.h5").rename(tmp_path / "other_00002.weights.h5")
    target.write_text(target.read_text().replace("new_00002", "other_00002"))
    assert_replaced(checkpoint, target)
    assert not (tmp_path / "other_00002.weights.h5").exists()


def test_shards_that_another_index_names_too_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for folder in (tmp_path, tmp_path / "in"):
        copy_into(folder, *SHARDED)
    shutil.copyfile(tmp_path / "keras3_sharded.weights.json", tmp_path / "twin.weights.json")
    elsewhere = open_checkpoint(tmp_path / "in" / "keras3_sharded.weights.json")
    words = f"also belongs to {tmp_path / 'keras3_sharded.weights.json'}"
    assert_refused(elsewhere, tmp_path / "twin.weights.json", words, root=tmp_path)
    # Above all not where they are those of the source.
    source = open_checkpoint(tmp_path / "keras3_sharded.weights.json")
    words = "a file of the checkpoint itself"
    assert_refused(source, tmp_path / "twin.weights.json", words, root=tmp_path)


def test_one_file_does_not_take_the_place_of_a_shard(tmp_path: Path) -> None:
    copy_into(tmp_path, *SHARDED)
    checkpoint = keras(tmp_path / "in" / "a.weights.h5", "keras3.weights.h5")
    target = tmp_path / "keras3_sharded_00001.weights.h5"
    words = f"is a shard of {tmp_path / 'keras3_sharded.weights.json'}"
    assert_refused(checkpoint, target, words, root=tmp_path)


# -- what changes meanwhile


def test_what_appears_while_the_copy_is_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is put into the SavedModel that is to be replaced, and a model where there was none."""
    checkpoint = saved_model(tmp_path / "m")
    saved_model(tmp_path / "out")
    late = {tmp_path / "out": tmp_path / "out" / "notes.md", tmp_path / "new": tmp_path / "new" / "notes.md"}
    real = _atomic.Outputs.stage_folder
    for target, file in late.items():

        def stage_folder(self: object, *given: object, file: Path = file, **options: object) -> object:
            temporary = real(self, *given, **options)  # type: ignore[arg-type]
            file.parent.mkdir(exist_ok=True)
            file.write_text("keep")
            return temporary

        monkeypatch.setattr(_atomic.Outputs, "stage_folder", stage_folder)
        with pytest.raises(BadRequest, match=str(file.parent)):
            format_of(checkpoint).rewrite(checkpoint, target, Changes(), overwrite=True)
        assert file.read_text() == "keep"
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
