"""What is not a checkpoint by its bytes is not a finding; and no damaged checkpoint hides behind that."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from tests.formats.test_discovery import bundle, state
from tests.formats.test_tensor_bundle import SAMPLES
from tests.gate.conftest import FIXTURES
from tests.gate.test_places import HOOK

# The first bytes of what FAISS 1.12 writes for an `IndexFlatL2` of 10 vectors of 4 numbers.
FAISS = bytes.fromhex("49784632040000000a00000000000000000010000000000000001000000000000101000000280000") + bytes(165)
UNITY = b"fileFormatVersion: 2\nguid: 0123456789abcdef0123456789abcdef\nMonoImporter:\n  externalObjects: {}\n"
HEALTHY = FIXTURES / "keras_h5" / "healthy.h5"


def pandas(path: Path) -> None:
    """Write the layout of `DataFrame.to_hdf`, which is that of PyTables."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"CLASS": "GROUP", "PYTABLES_FORMAT_VERSION": "2.1", "TITLE": "", "VERSION": "1.0"})
        group = file.create_group("df")
        group.attrs.update({"CLASS": "GROUP", "pandas_type": "frame_table", "pandas_version": "0.15.2"})
        table = group.create_dataset("table", data=np.zeros(5, [("index", "<i8"), ("values_block_0", "<f8", (1,))]))
        table.attrs.update({"CLASS": "TABLE", "NROWS": 5})


def data(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["train/images"] = np.zeros((3, 2))
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def others(folder):
    """A folder of files that have the names of checkpoints and are none; one graph without a checkpoint."""
    pandas(folder / "table.hdf5")
    data(folder / "plain.h5")
    (folder / "vectors.index").write_bytes(FAISS)
    (folder / "vectors.meta").write_bytes(b'{"dimension": 4}')
    (folder / "Player.cs.meta").write_bytes(UNITY)
    return sorted(path.name for path in folder.iterdir())


def hook(*names):
    return main([*shlex.split(HOOK["entry"])[1:], *names])


def findings(*paths, **options):
    result = ckpt_doctor.scan(paths or ".", **options)
    assert not result.errors
    return {one.path.removeprefix("./"): [f.rule for f in one.findings] for one in result.checkpoints}


def test_in_a_folder_and_in_the_hook_they_are_passed_over_and_counted(folder, others, capsys):
    shutil.copy(HEALTHY, folder / "model.h5")
    assert main(["scan", "."]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "passed over: 2 HDF5 files without a model, 3 other files" in words
    assert hook("model.h5", *others) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "looked at 1 file; passed over: 2 HDF5 files without a model, 3 other files" in words
    assert findings() == {"model.h5": []}


def test_a_hook_that_finds_no_checkpoint_has_nothing_to_complain_of(others, capsys):
    assert hook(*others) == 0
    assert capsys.readouterr().err == ""
    Path("foreign.h5").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    Path("list.index").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert hook("list.index") == 0
    assert hook("list.index", "--strict") == 1  # A pointer: what is behind it is not known.
    assert hook("foreign.h5") == 1


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("table.hdf5", 1, "a sound HDF5 file that Keras did not write"),
        ("plain.h5", 1, "a sound HDF5 file that Keras did not write"),
        ("vectors.index", 1, "CK104"),
        ("Player.cs.meta", 2, "Player.cs.index is missing"),
        ("nowhere.h5", 2, "no such file"),
    ],
)
def test_a_file_that_is_named_gets_its_answer(others, capsys, name, code, words):
    assert main(["scan", name]) == code
    captured = capsys.readouterr()
    assert words in " ".join((captured.out + captured.err).split())


def test_a_named_file_that_is_not_there_is_an_error_in_the_hook_too(folder, capsys):
    assert hook("nowhere.h5") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", bytes(300), FAISS, b"<!doctype html><html>", UNITY], ids=range(5))
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("model", ["model.data-00000-of-00001"]),
        ("model", ["model.data-00001-of-00002"]),
        ("model", ["model.meta"]),
        ("model", ["text.meta"]),
        ("model", ["checkpoint"]),
        ("model.ckpt-400", []),
        ("best_checkpoint", []),
    ],
    ids=str,
)
def test_a_damaged_index_is_a_finding_while_anything_tells_of_its_checkpoint(folder, content, name, beside):
    (folder / f"{name}.index").write_bytes(content)
    for other in beside:
        if other == "checkpoint":
            state(folder, name)
        elif other == "text.meta":
            (folder / "model.meta").write_bytes(b"meta_info_def {\n}\n")
        elif other.endswith(".meta"):
            graph = FIXTURES / "tf1_layers" / "full" / "model.ckpt-400.meta"
            shutil.copy(graph, folder / other)
        else:
            (folder / other).write_bytes(bytes(8))
    (found,) = findings().values()
    assert {code[:2] for code in found} == {"CK"}
    assert list(findings(f"{name}.index", skip_non_checkpoints=True)) == [name]


def cut(content):
    return content[: len(content) * 2 // 3]


def first_bytes_lost(content):
    return bytes(16) + content[16:]


def all_bytes_lost(content):
    return bytes(len(content))


def never_written(content):
    return content[:0]


@pytest.mark.parametrize("damage", [cut, first_bytes_lost, all_bytes_lost, never_written])
def test_a_damaged_index_that_is_all_alone_is_a_finding(folder, damage):
    prefix = bundle(folder, "model")
    Path(f"{prefix}.data-00000-of-00001").unlink()
    index = Path(f"{prefix}.index")
    index.write_bytes(damage(index.read_bytes()))
    assert main(["scan", "."]) == 1
    assert hook("model.index") == 1


def renamed(name, new):
    """Flip a bit in every copy of a name that Keras writes."""

    def change(content):
        assert name in content
        return content.replace(name, new)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        first_bytes_lost,
        renamed(b"model_weights", b"model_weighus"),
        renamed(b"SNOD", b"SNOE"),
        renamed(b"TREE", b"TRED"),
        renamed(b"HEAP", b"HEAQ"),
    ],
)
def test_a_damaged_file_of_keras_is_a_finding(folder, damage):
    content = HEALTHY.read_bytes()
    if damage.__name__ == "change":  # Else it is known by its config.
        content = content.replace(b"model_config", b"model_cnnfig")
    (folder / "model.h5").write_bytes(damage(content))
    (found,) = findings().values()
    assert found
    assert findings("model.h5", skip_non_checkpoints=True) == {"model.h5": found}


def test_a_file_of_weights_whose_list_of_layers_is_damaged_is_a_finding(folder):
    with h5py.File(HEALTHY) as whole, h5py.File("weights.h5", "w") as file:
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", file)
        file.attrs["layer_nalds"] = whole["model_weights"].attrs["layer_names"]
    assert findings() == {"weights.h5": ["CK104"]}


def test_a_file_of_keras_behind_which_a_group_is_damaged_is_not_data(folder):
    """What cannot be read is no proof that there is nothing of Keras in it."""
    with h5py.File("model.h5", "w") as file:
        file["a/b/c"] = np.zeros(3)
    content = bytearray(Path("model.h5").read_bytes())
    at = content.rfind(b"SNOD")
    content[at : at + 4] = b"XXXX"
    Path("model.h5").write_bytes(content)
    (found,) = findings().values()
    assert found


def test_the_hook_takes_a_checkpoint_as_its_folder_would(folder):
    """The files that one commit changes of a checkpoint, one of them, and what other files know of it."""
    bundle(folder, "model")
    shutil.copy(FIXTURES / "tf1_layers" / "full" / "model.ckpt-400.meta", folder / "model.meta")
    (folder / "never.data-00000-of-00002").write_bytes(b"x")
    (folder / "never.data-00001-of-00002").write_bytes(b"x")
    for names in (["model.index"], ["model.data-00000-of-00001"], ["model.meta"], ["model.index", "model.meta"]):
        assert list(findings(*names, skip_non_checkpoints=True)) == ["model"]
    result = ckpt_doctor.scan(
        ["never.data-00000-of-00002", "never.data-00001-of-00002", "model.meta"], skip_non_checkpoints=True
    )
    assert {one.path: [f.rule for f in one.findings] for one in result.checkpoints}["never"] == ["CK106"]
    assert (result.coverage.files, result.coverage.judged) == (5, 1)
    for sample in ("v1", "v1_shards"):
        shutil.copytree(SAMPLES / sample, folder / sample)
    (folder / "v1" / "sample.meta").write_bytes(b"\x0a\x00")
    assert list(findings("v1/sample.meta", skip_non_checkpoints=True)) == ["v1/sample"]
    (folder / "v1_shards" / "sample.meta").write_bytes(b"\x0a\x00")
    assert list(findings("v1_shards/sample.meta", skip_non_checkpoints=True)) == ["v1_shards/sample-?????-of-00002"]
    shutil.copytree(SAMPLES / "saved_model_keras3" / "sample", folder / "export")
    names = ["export/saved_model.pb", "export/variables/variables.index"]
    assert list(findings(*names, skip_non_checkpoints=True)) == ["export"]
