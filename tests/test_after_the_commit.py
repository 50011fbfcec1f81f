"""What fails once a repaired checkpoint is in place never reads as if nothing had been written."""

import errno
import json

import numpy as np
import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import VerificationFailed
from ckpt_doctor.reports import repair as text
from tests.independent import read_file, write_shadowed_bundle


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A bundle whose statistics lie under the names of shadows, so that it is repaired without data."""
    monkeypatch.chdir(tmp_path)
    return write_shadowed_bundle(tmp_path / "model")


def assert_repaired(tmp_path, before):
    after = read_file(tmp_path / "out").values
    np.testing.assert_array_equal(after["bn0/moving_mean"], before["bn0/moving_mean/ExponentialMovingAverage"])
    assert not list(tmp_path.glob(".*"))


def fix(*argv):
    return main(["fix", "model", "--output", "out", *argv])


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_a_report_that_cannot_be_written(before, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Terminal, "report", failing(OSError(errno.ENOSPC, "No space left on device")))
    assert fix() == 1
    assert "out is repaired and in place, but the report cannot be written: No space left" in capsys.readouterr().err
    assert_repaired(tmp_path, before)


def test_a_bug_of_ours_in_the_report(before, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "render", failing(ZeroDivisionError()))
    assert fix() == 1
    assert capsys.readouterr().err.endswith("please report it with the lines above; out is repaired and in place\n")
    assert_repaired(tmp_path, before)


def test_an_interrupt_while_the_report_is_made(before, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "render", failing(KeyboardInterrupt()))
    assert fix() == 130
    assert "interrupted; out is repaired and in place" in capsys.readouterr().err
    assert_repaired(tmp_path, before)


@pytest.mark.parametrize("error", [VerificationFailed("out: was changed"), OSError(errno.EIO, "Input/output error")])
def test_a_last_look_that_fails(before, tmp_path, monkeypatch, capsys, error):
    """Another program changes the file behind the commit, or the disk gives up: exit code 1, and all reports."""
    monkeypatch.setattr("ckpt_doctor.repair.process.confirm", failing(error))
    assert fix("--format", "json", "--receipt", "receipt.json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["output"], document["complete"]) == ("out", False)
    assert any(note.startswith("out is written, but then: ") for note in document["notes"])
    assert json.loads((tmp_path / "receipt.json").read_text())["output"] == "out"
    assert_repaired(tmp_path, before)


def test_what_was_replaced_and_cannot_be_removed(before, tmp_path, monkeypatch, capsys):
    assert fix() == 0
    monkeypatch.setattr("ckpt_doctor.formats._moves.remove", lambda path: False)
    assert fix("--overwrite") == 0
    assert "the old file cannot be removed; the next run tries again" in " ".join(capsys.readouterr().out.split())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["scan", "out"]) == 0
    assert_repaired(tmp_path, before)
