"""Batches of inputs in a process of their own: `python -m tests.fuzz.worker SEED PLACE TARGET:FIRST:LAST …`.

The batch and the input that it is at are in `PLACE/at` before it begins, so that whoever started it knows which input
ended the process. What escaped is a line of JSON on stdout each.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import TARGETS, Target, make

SECONDS = 5
# What an input may take beyond the process as it stood; all are far below a megabyte.
MEMORY_BYTES = 200 << 20
AT = struct.Struct("<QQ")
HANGS = "does not end"


class Hang(BaseException):
    """An input took too long; no handler of the code under test takes it for its own."""


def _hang(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise Hang


def _address_space() -> int:
    """Return the size of this process's address space in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def work(seed: int, place: Path, batches: Sequence[str]) -> None:
    """Run the inputs of each batch, `TARGET:FIRST:LAST` without the last."""
    signal.signal(signal.SIGPROF, _hang)
    warnings.filterwarnings("error", module="ckpt_doctor")
    with (place / "at").open("r+b") as file, mmap.mmap(file.fileno(), AT.size) as at:
        for index, (name, first, last) in enumerate(batch.split(":") for batch in batches):
            target = _selftest(name) or next(target for target in TARGETS if target.name == name)
            for number in range(int(first), int(last)):
                at[:] = AT.pack(index, number)
                _one(target, seed, number, place / "input")
                if number == int(first):  # It has loaded what is loaded late.
                    soft = _address_space() + MEMORY_BYTES
                    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"target": name, "peak_kilobytes": peak}), flush=True)


def _one(target: Target, seed: int, number: int, folder: Path) -> None:
    """Make an input and read it."""
    content = make(target, seed, number) if target.share else str(number).encode()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Processor time: a busy machine is no hang.
    signal.setitimer(signal.ITIMER_PROF, SECONDS if target.share else 1)
    try:
        target.run(content, folder)
    except Hang as error:
        _report(target, number, error, f"{HANGS} within {SECONDS} seconds")
    except BaseException as error:  # noqa: BLE001 - what is looked for
        _report(target, number, error, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _selftest(name: str) -> Target | None:
    """Return a target whose fourth input does what this watches for."""
    if not name.startswith("selftest-"):
        return None

    def run(content: bytes, folder: Path) -> None:
        del folder
        if content != b"3":
            return
        if name == "selftest-crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "selftest-memory":
            bytearray(4 * MEMORY_BYTES)
        elif name == "selftest-hang":
            while True:
                pass
        raise ZeroDivisionError

    return Target(name, lambda: [], (), run, 0)


def _report(target: Target, number: int, error: BaseException, what: str) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "ckpt_doctor/" in frame.filename] or frames
    where = f"{own[-1].filename.rpartition('ckpt_doctor/')[2]}:{own[-1].lineno}"
    print(json.dumps({"target": target.name, "number": number, "what": what, "where": where}), flush=True)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
