"""The program as a process: pipes, signals, terminals, how fast it starts."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import started

ROOT = Path(__file__).parent.parent
HEALTHY = ROOT / "fixtures" / "tf1_layers" / "full" / "model.ckpt-400"
BROKEN = ROOT / "fixtures" / "tf1_layers" / "trainable" / "model.ckpt-400"
PROGRAM = [sys.executable, "-m", "ckpt_doctor"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_a_reader_who_has_seen_enough_does_not_change_the_verdict():
    for checkpoint, code in ((BROKEN, 1), (HEALTHY, 0)):
        with started(
            [*PROGRAM, "scan", checkpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        ) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(timeout=120) == code


def test_an_ascii_terminal_gets_a_report_too():
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, "explain", "CK101"], capture_output=True, env=environment, check=True, timeout=120)
    assert rb"\u2026" in done.stdout


def on_a_terminal(argv, **environment):
    """Return what the program writes to stdout when that is a terminal."""
    controller, terminal = pty.openpty()
    output = b""
    with started(
        [*PROGRAM, *argv], stdout=terminal, stderr=terminal, env=ENVIRONMENT | {"TERM": "xterm"} | environment
    ):
        os.close(terminal)
        while True:
            try:
                piece = os.read(controller, 65536)
            except OSError:  # Linux: the last writer has gone.
                break
            if not piece:
                break
            output += piece
    os.close(controller)
    return output


def test_colours_and_progress_on_a_terminal_only():
    assert b"\x1b[1;31m" in on_a_terminal(["scan", BROKEN])
    assert b"\x1b[1;31m" not in on_a_terminal(["--no-color", "scan", BROKEN])
    assert b"\x1b" not in on_a_terminal(["--no-color", "--no-progress", "scan", BROKEN])
    assert b"\x1b" not in on_a_terminal(["--no-progress", "scan", BROKEN], NO_COLOR="1")
    done = subprocess.run([*PROGRAM, "scan", BROKEN], capture_output=True, env=ENVIRONMENT, check=False, timeout=120)
    assert b"\x1b" not in done.stdout + done.stderr


def test_ctrl_c_is_130_without_a_traceback(tmp_path):
    script = (
        "import ckpt_doctor.audit, sys, time\n"
        "def wait(*_, **__):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "ckpt_doctor.audit.scan = wait\n"
        "from ckpt_doctor.cli import entry_point\n"
        "sys.argv = ['ckpt-doctor', 'scan', 'x']\n"
        "entry_point()\n"
    )
    with started(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err


# What takes long to import, and is needed by nothing that reads no checkpoint.
HEAVY = {"h5py", "ml_dtypes", "rich", "google.protobuf", "fsspec", "tensorflow", "keras"}


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["explain", "CK101"]])
def test_what_needs_no_checkpoint_loads_nothing_heavy(argv):
    program = f"import sys; from ckpt_doctor.cli import main; main({argv!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=ENVIRONMENT, check=True, text=True, timeout=120
    )
    loaded = set(done.stderr.split())
    assert "ckpt_doctor.cli" in loaded  # The check sees what is loaded.
    assert not loaded & HEAVY
