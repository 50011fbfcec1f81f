"""A file that hangs, crashes or eats memory costs one process, and no other file its verdict."""

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.workers import Gone, Workers

FIXTURES = Path(__file__).parents[1] / "fixtures"
WHOLE = "formats/keras/keras22_whole.h5"


def crash(number):
    os.kill(os.getpid(), number)


def allocate(megabytes):
    return int(np.ones(megabytes << 17).sum())


def test_a_process_is_used_again():
    with Workers(None, None, __name__) as workers:
        first = workers.call(os.getpid)
        assert first != os.getpid()
        assert workers.call(os.getpid) == first


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGSEGV, "crashed (SIGSEGV)"), (signal.SIGKILL, "memory runs out")]
)
def test_a_process_that_dies_is_told_of_and_replaced(number, why):
    with Workers(None, None, __name__) as workers:
        first = workers.call(os.getpid)
        with pytest.raises(Gone) as error:
            workers.call(crash, number)
        assert why in str(error.value)
        assert workers.call(os.getpid) != first


def test_a_call_that_takes_too_long_is_given_up():
    with Workers(0.2, None, __name__) as workers:
        first = workers.call(os.getpid)
        started = time.monotonic()
        with pytest.raises(Gone, match=r"took longer than 0\.2 s \(--timeout\)"):
            workers.call(time.sleep, 60)
        assert time.monotonic() - started < 10
        assert workers.call(os.getpid) != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits memory")
def test_a_call_that_needs_too_much_memory_is_refused_it():
    with Workers(None, 200 << 20, __name__) as workers:
        first = workers.call(os.getpid)
        assert workers.call(allocate, 100) == 100 << 17
        with pytest.raises(Gone, match=r"needs more memory than it may have \(--max-memory\)"):
            workers.call(allocate, 400)
        assert workers.call(os.getpid) != first


def test_an_end_of_the_context_ends_the_processes():
    with Workers(None, None, __name__) as workers, ThreadPoolExecutor(2) as pool:
        processes = set(pool.map(lambda _: workers.call(os.getpid), range(4)))
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_elsewhere_than_on_linux_memory_cannot_be_limited(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadRequest, match="--max-memory: only Linux"):
        Workers(None, 1 << 30, __name__)


@pytest.fixture
def paths():
    return [str(FIXTURES / name) for name in ("keras_v3/healthy.keras", "keras_v3/broken.keras", WHOLE)]


def test_limits_do_not_change_the_verdict(paths, capsys):
    main(["scan", *paths, "--format", "json"])
    plain = json.loads(capsys.readouterr().out)
    main(["scan", *paths, "--format", "json", "--timeout", "60", "--jobs", "2"])
    assert json.loads(capsys.readouterr().out) == plain


def test_a_file_without_a_verdict_is_an_error_and_stops_no_other(paths, capsys, monkeypatch):
    calls = []
    real = Workers.call

    def call(self, function, path, *others):
        calls.append(path)
        return real(self, *((crash, signal.SIGSEGV) if path == paths[1] else (function, path, *others)))

    monkeypatch.setattr(Workers, "call", call)
    assert main(["scan", *paths, "--format", "json", "--timeout", "60"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in document["checkpoints"]] == [paths[0], paths[2]]
    assert document["errors"] == [
        {"path": paths[1], "message": "crashed (SIGSEGV), in a library that reads the file: do not trust it"}
    ]


@pytest.mark.parametrize("argv", [["--timeout", "0"], ["--timeout", "soon"], ["--max-memory", "much"]])
def test_wrong_limits_are_refused(paths, capsys, argv):
    assert main(["scan", paths[0], *argv]) == 2
    assert argv[0] in capsys.readouterr().err


def test_files_of_a_folder_are_opened_by_a_worker_too(tmp_path, capsys, monkeypatch):
    """Whether an HDF5 file is a checkpoint at all is known only from the inside."""
    shutil.copy(FIXTURES / WHOLE, tmp_path / "model.h5")
    asked = []
    real = Workers.call

    def call(self, function, *arguments):
        asked.append(function.__name__)
        return real(
            self, *((crash, signal.SIGSEGV) if function.__name__ == "holds_data_only" else (function, *arguments))
        )

    monkeypatch.setattr(Workers, "call", call)
    main(["scan", str(tmp_path), "--timeout", "60", "--format", "json"])
    assert asked == ["holds_data_only", "_judge"]
    assert [one["path"] for one in json.loads(capsys.readouterr().out)["checkpoints"]] == [str(tmp_path / "model.h5")]
