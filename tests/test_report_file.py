"""Where reports go: never over a checkpoint, and whole or not at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_doctor.cli import main
from tests.catalogue import FIXTURES

COLD = FIXTURES / "zoo" / "tf1"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(FIXTURES.parent)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Give a folder with a checkpoint of every kind."""
    monkeypatch.chdir(tmp_path)
    for path in COLD.glob("cold.*"):
        shutil.copy(path, tmp_path)
    shutil.copytree(FIXTURES / "formats" / "saved_model_tf2" / "sample", "served")
    shutil.copytree(FIXTURES / "formats" / "v1_shards", "v1")
    shutil.copy(FIXTURES / "keras_v3" / "broken.keras", "broken.keras")
    Path("checkpoint").write_text('model_checkpoint_path: "cold"\n')
    Path("link").symlink_to("broken.keras")
    return tmp_path


def everything():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


OPTIONS = [
    ("scan", "cold", "--output", "{}"),
    ("scan", "cold", "--write-baseline", "{}"),
    ("scan", "cold", "--report", "json={}"),
    ("fix", "cold", "--method", "debias", "--unproven", "--output", "new", "--receipt", "{}"),
]
TARGETS = {
    "cold.index": "would overwrite a checkpoint or a file of one (tensor-bundle)",
    "cold.data-00000-of-00001": "would overwrite a checkpoint or a file of one (tensor-bundle)",
    "cold.meta": "would overwrite a checkpoint or a file of one (tensor-bundle)",
    "broken.keras": "would overwrite a checkpoint or a file of one (keras-v3)",
    "link": "would overwrite a checkpoint or a file of one (keras-v3)",
    "served/saved_model.pb": "would overwrite a checkpoint or a file of one (saved-model)",
    "served/variables/variables.index": "would overwrite a checkpoint or a file of one (tensor-bundle)",
    "served/fingerprint.pb": "would overwrite a file of the SavedModel",
    "served/assets.extra/labels.txt": "would overwrite a file of the SavedModel",
    "checkpoint": "would overwrite the file in which TensorFlow lists its checkpoints",
}


@pytest.mark.parametrize("argv", OPTIONS, ids=lambda argv: argv[-2])
@pytest.mark.parametrize("target", TARGETS)
def test_no_report_replaces_a_checkpoint(here, capsys, argv, target):
    before = everything()
    assert main([part.format(target) for part in argv]) == 2
    assert everything() == before
    err = capsys.readouterr().err
    what = "exists and is not a receipt of ckpt-doctor" if "--receipt" in argv else TARGETS[target]
    assert f"{argv[-2]} {target}: {what}" in err
    assert "pass another name" in err


def test_every_shard_of_an_old_checkpoint_is_one(here):
    before = everything()
    for path in Path("v1").glob("*-of-*"):
        assert main(["scan", "cold", "--output", str(path)]) == 2
    assert everything() == before


@pytest.mark.parametrize("target", ["report.txt", "served/report.txt", "served/variables.txt", "cold.txt"])
def test_other_names_are_free(here, target):
    before = everything()
    for _ in range(2):
        assert main(["scan", "cold", "--format", "json", "--output", target]) == 1
    after = everything()
    assert json.loads(after.pop(Path(target)))["schema"] == "ckpt-doctor/scan/1"
    assert after == before


def test_an_older_report_stays_until_the_new_one_is_whole(here, monkeypatch, capsys):
    Path("report.txt").write_text("the old one")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["scan", "cold", "--output", "report.txt"]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert Path("report.txt").read_text() == "the old one"
    assert not list(Path().glob(".*"))


def test_a_device_is_written_to_as_it_is(here):
    assert main(["scan", "cold", "--output", os.devnull]) == 1
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no such name")
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_the_streams_of_a_process_have_names(here, kind):
    """As in `--report sarif=/dev/stdout`, whatever stdout is."""
    command = [sys.executable, "-m", "ckpt_doctor", "scan", "cold", "--format", "json", "--output", "/dev/stdout"]
    with Path("kept.json").open("w+b") as kept:
        inode = os.fstat(kept.fileno()).st_ino
        done = subprocess.run(
            command, stdout=subprocess.PIPE if kind == "pipe" else kept, timeout=120, check=False, env=ENVIRONMENT
        )
        text = done.stdout if kind == "pipe" else Path("kept.json").read_bytes()
        assert Path("kept.json").stat().st_ino == inode
    assert done.returncode == 1
    assert json.loads(text)["schema"] == "ckpt-doctor/scan/1"


def test_a_receipt_that_cannot_be_written_does_not_hide_the_repair(here, monkeypatch, capsys):
    from ckpt_doctor.errors import BadRequest
    from ckpt_doctor.formats import report_file

    def fail(option, name, text):
        raise BadRequest(f"{option} {name}: cannot be written: the disk is full")

    monkeypatch.setattr(report_file, "write_report", fail)
    assert main(["fix", "cold", "--method", "debias", "--unproven", "--output", "new", "--receipt", "r.json"]) == 1
    assert "new is repaired, but its receipt cannot be written: --receipt r.json" in capsys.readouterr().err
    assert Path("new.index").is_file()
