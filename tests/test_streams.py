"""Streams that are closed, full, or read by nobody change no verdict and no exit code, and make no traceback."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor.capture import runtime
from ckpt_doctor.cli import main
from ckpt_doctor.cli.terminal import Terminal
from tests.independent import read_file, write_shadowed_bundle

CHANNELS = 4
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
# A buffered stdout, as users have it, fails once more when Python ends.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a bundle `model` that is repaired without data, and a healthy `ok.h5`."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    write_shadowed_bundle(tmp_path / "model")
    with h5py.File("ok.h5", "w") as file:
        file.attrs["layer_names"] = [b"bn"]
        group = file.create_group("bn")
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            group[f"bn/{name}:0"] = random.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        group.attrs["weight_names"] = [
            f"bn/{n}:0".encode() for n in ("gamma", "beta", "moving_mean", "moving_variance")
        ]
    return tmp_path


COMMANDS = {
    "scan ok.h5": 0,
    "scan ok.h5 -v": 0,
    "scan ok.h5 --format json": 0,
    "scan ok.h5 --format sarif": 0,
    "scan ok.h5 --report json=report.json": 0,
    "scan nowhere": 2,
    "scan --nonsense": 2,
    "fix model --output out": 0,
    "fix model --output out --format json -v": 0,
    "fix model --output out --receipt receipt.json": 0,
    "ls ok.h5": 0,
    "diff ok.h5 ok.h5": 0,
    "diff ok.h5 model": 1,
    "explain BN101": 0,
    "explain XX": 2,
    "--help": 0,
    "scan --help": 0,
    "--version": 0,
}


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
@pytest.mark.parametrize("command", COMMANDS)
def test_streams_that_python_does_not_have(folder, monkeypatch, capsys, closed, command):
    """Python has None for a stream that was closed when it started, and on Windows without a console."""
    with monkeypatch.context() as patched:
        for stream in closed:
            patched.setattr(sys, stream, None)
        assert main(shlex.split(command)) == COMMANDS[command]
    assert "Traceback" not in capsys.readouterr().err
    if command.startswith("fix"):
        assert "bn0/moving_mean" in read_file(folder / "out").values


def shell(line, **options):
    return subprocess.run(
        ["bash", "-c", line.replace("ckpt-doctor", f"{shlex.quote(sys.executable)} -m ckpt_doctor")],
        capture_output=True,
        text=True,
        timeout=120,
        env=BUFFERED,
        check=False,
        **options,
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("ckpt-doctor scan ok.h5 >&- 2>&- <&-", 0, ""),
        ("ckpt-doctor fix model --output out >&- 2>&-", 0, ""),
        ("ckpt-doctor --help | true; exit ${PIPESTATUS[0]}", 0, ""),
        pytest.param(
            "ckpt-doctor scan ok.h5 >/dev/full", 2, "ckpt-doctor: No space left on device\n", marks=FULL, id="full"
        ),
        pytest.param(
            "ckpt-doctor fix model --output out >/dev/full",
            1,
            "ckpt-doctor: out is repaired and in place, but the report cannot be written: No space left on device\n",
            marks=FULL,
            id="full-fix",
        ),
        pytest.param("ckpt-doctor scan ok.h5 -v 2>/dev/full >/dev/null", 0, "", marks=FULL, id="full-stderr"),
        pytest.param("ckpt-doctor fix model --output out &>/dev/full", 1, "", marks=FULL, id="full-both"),
        pytest.param("ckpt-doctor explain XX &>/dev/full", 2, "", marks=FULL, id="full-message"),
    ],
)
def test_the_program_itself(folder, line, code, message):
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, message)
    if "fix" in line:
        assert "bn0/moving_mean" in read_file(folder / "out").values


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_no_file_takes_the_place_of_a_closed_stream(folder):
    """What a C library prints to stderr would be written into a checkpoint that was opened as descriptor 2."""
    program = """
import os, sys
from ckpt_doctor.cli import entry_point
sys.argv = ["ckpt-doctor", "scan", "ok.h5"]
try:
    entry_point()
except SystemExit as end:
    opened = os.open("ok.h5", os.O_RDONLY)
    inherited = [os.get_inheritable(number) for number in range(3)]
    os._exit(end.code if opened > 2 and all(inherited) and sys.stdout and sys.stderr else 99)
"""
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-")
    assert done.returncode == 0


def test_tensorflow_is_loaded_without_a_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with runtime._without_native_messages():
        pass

    def closed(descriptor):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("ckpt_doctor.capture.runtime.os.dup", closed)
    with contextlib.ExitStack() as kept:
        kept.enter_context(runtime._without_native_messages())


def test_a_pipe_of_the_work_that_breaks_is_not_stdout(folder, monkeypatch, capsys):
    """click takes every broken pipe for a reader of stdout that has gone, and exits with 1: findings."""

    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ckpt_doctor.audit.scan", broken)
    assert main(["scan", "ok.h5"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_code_of_the_user_that_ends_the_program_is_no_verdict(folder, monkeypatch, capsys):
    def ends(*_, **__):
        sys.exit(0)

    monkeypatch.setattr("ckpt_doctor.audit.scan", ends)
    assert main(["scan", "ok.h5"]) == 2
    message = "the code that was run ended the program, by sys.exit(0); no verdict"
    assert capsys.readouterr().err == f"ckpt-doctor: {message}\n"
    monkeypatch.setattr("ckpt_doctor.reports.repair.render", ends)
    assert main(["fix", "model", "--output", "out"]) == 1


def test_a_failed_write_behind_a_commit_never_says_that_nothing_was_written(folder, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    # click ends the line of a terminal's ^C, and the disk is full.
    monkeypatch.setattr("ckpt_doctor.reports.repair.render", interrupted)
    monkeypatch.setattr("click.core.echo", full)
    assert main(["fix", "model", "--output", "out"]) == 1
    assert "No space left" in capsys.readouterr().err


COLOR_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM")


@pytest.mark.parametrize(
    ("environment", "in_a_pipe", "on_a_terminal"),
    [
        ("", False, True),
        ("NO_COLOR=1", False, False),
        ("NO_COLOR=", False, True),
        ("FORCE_COLOR=1", True, True),
        ("FORCE_COLOR=0", True, True),  # force-color.org: regardless of its value
        ("FORCE_COLOR=", False, True),
        ("CLICOLOR_FORCE=1", True, True),
        ("CLICOLOR_FORCE=0", False, True),
        ("CLICOLOR_FORCE=", False, True),
        ("CLICOLOR=0", False, False),
        ("CLICOLOR=1", False, True),
        ("TERM=dumb", False, False),
        ("FORCE_COLOR=1 TERM=dumb CLICOLOR=0", True, True),
        ("CLICOLOR_FORCE=1 TERM=dumb CLICOLOR=0", True, True),
        ("FORCE_COLOR=1 CLICOLOR_FORCE=1 NO_COLOR=1", False, False),
    ],
)
def test_which_variables_colour_a_report(monkeypatch, environment, in_a_pipe, on_a_terminal):
    for name in COLOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for text in environment.split():
        monkeypatch.setenv(*text.split("="))
    for terminal, expected in ((False, in_a_pipe), (True, on_a_terminal)):
        stream = StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stdout", stream)
        assert Terminal().style().color == expected
        assert not Terminal(no_color=True).style().color
        assert not Terminal().style("report.txt").color


def test_a_report_in_a_pipe_is_coloured_where_that_is_asked_for(folder, monkeypatch, capsys):
    for name in COLOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with h5py.File("ok.h5", "r+") as file:
        file["bn/bn/moving_mean:0"][...] = np.nan
    monkeypatch.setenv("FORCE_COLOR", "1")
    for form, colours in (("text", True), ("json", False)):
        assert main(["scan", "ok.h5", "--format", form, "--report", "text=report.txt"]) == 1
        assert ("\x1b[" in capsys.readouterr().out) == colours
        assert "\x1b[" not in Path("report.txt").read_text()
