"""`python -m tests.faults`: breaks writing at every step, and counts what is left broken.

For every format and every way of writing it: the process is killed before each call that changes a file; each call
fails, once or from then on; the power fails after each call; files may only have so many bytes; a real disk is full, or
becomes read-only; signals come at random moments; two writers begin at once; and recovery is killed in its turn.
Once the next run has settled what is left, the old checkpoint must be there byte for byte, or the new one, and nothing
else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ckpt_doctor.cli import handle_signals
from ckpt_doctor.errors import CkptDoctorError
from tests.faults.cases import FORMATS, MODES, Bench, Case, is_whole
from tests.faults.interposing import copied, interposed
from tests.faults.power import Disk, build, outcomes
from tests.faults.small_disk import PAGE, may_mount, small_disk

_NAMES = frozenset("open link rename replace unlink remove mkdir rmdir symlink".split())
_CONTENT = frozenset(["write", "file write", "sendfile", "truncate", "fsync"])
# What fails from a call on: that call alone; everything (a disk that is gone); names (a folder that became read-only);
# content (a disk that is full).
_LASTING = {
    "": frozenset[str](),
    ", and all after it": _NAMES | _CONTENT | {"chmod"},
    ", and names after it": _NAMES,
    ", and content after it": _CONTENT,
}
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
_KILLED = 9
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A process that hangs is ended after so many seconds, and what it leaves is judged.
_LONGEST = 60


class Trial:
    """Counts faults and what they broke."""

    def __init__(self, every: int, seed: int) -> None:
        self.every = every
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.broken: list[str] = []
        self.left_over: Counter[str] = Counter()

    def judge(self, what: str, case: Case, wrong: str | None) -> None:
        """Take note of one fault."""
        self.faults[case.kind] += 1
        if wrong is not None:
            self.left_over[case.kind] += wrong.startswith("left over")
            self.broken.append(f"{case.kind}, {case.mode}, {what}: {wrong}")

    def drawn(self, count: int) -> list[int]:
        """Return which of so many places are tried: all of them, or a share with the first and the last."""
        places = range(count)
        if self.every == 1:
            return list(places)
        return sorted({0, count - 1, *self.chance.sample(places, count // self.every)})


def child(work: Callable[[], None]) -> tuple[int, str]:
    """Run something in a process of its own; return its exit code and what it said."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        signal.alarm(_LONGEST)
        os.close(reading)
        said = "done"
        try:
            work()
        except CkptDoctorError as error:
            said = f"refused: {error}"
        except BaseException as error:  # noqa: BLE001 - it is what the trial looks for
            said = f"crashed: {type(error).__name__}: {error}"
        os.write(writing, said.encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def calls_of(work: Callable[[], None]) -> list[str]:
    """Return the calls that change files in the order in which they are made."""
    names: list[str] = []

    def counted() -> None:
        with interposed(names.append):
            work()
        raise CkptDoctorError(json.dumps(names))

    code, said = child(counted)
    if code or not said.startswith("refused: ["):
        raise RuntimeError(f"does not work without any fault: {said}")
    return list(json.loads(said.removeprefix("refused: ")))


def killed_at(number: int, work: Callable[[], None]) -> None:
    """Do something, and die before the call of this number."""
    left = [number]

    def before(_: str) -> None:
        if left[0] == 0:
            os._exit(_KILLED)
        left[0] -= 1

    with interposed(before):
        work()


def failing_at(number: int, code: int, lasting: frozenset[str], work: Callable[[], None]) -> None:
    """Do something while the call of this number fails, and from there on all of these names."""
    count = [-1]

    def before(name: str) -> None:
        count[0] += 1
        if count[0] == number or (count[0] > number and name in lasting):
            raise OSError(code, os.strerror(code))

    with interposed(before):
        work()


def kills(trial: Trial, bench: Bench) -> None:
    """Kill the writer before each call, and then the run that settles what it left."""
    case = bench.case
    calls = calls_of(partial(case.run, bench.fresh()))
    for number in trial.drawn(len(calls)):
        what = f"killed before call {number} ({calls[number]})"
        work = bench.fresh()
        child(partial(killed_at, number, partial(case.run, work)))
        trial.judge(what, case, bench.half_way(work))
        state = copied(work.parent, bench.folder / "state")
        case.settle(work)
        trial.judge(what, case, bench.broken(work))
        settling = calls_of(partial(case.settle, restored(state, work)))
        for again in trial.drawn(len(settling)) if settling else ():
            restored(state, work)
            child(partial(killed_at, again, partial(case.settle, work)))
            trial.judge(f"{what}, then {again} ({settling[again]})", case, bench.half_way(work))
            case.settle(work)
            trial.judge(f"{what}, then {again} ({settling[again]})", case, bench.broken(work))
        shutil.rmtree(state)


def restored(state: Path, work: Path) -> Path:
    """Put back what a killed process has left."""
    shutil.rmtree(work.parent)
    copied(state, work.parent)
    return work


def failures(trial: Trial, bench: Bench) -> None:
    """Let each call fail."""
    case = bench.case
    calls = calls_of(partial(case.run, bench.fresh()))
    for number in trial.drawn(len(calls)):
        for how, lasting in _LASTING.items():
            code = trial.chance.choice(_ERRORS)
            work = bench.fresh()
            _, said = child(partial(failing_at, number, code, lasting, partial(case.run, work)))
            what = f"call {number} ({calls[number]}) fails with {errno.errorcode[code]}{how}: {said}"
            trial.judge(what, case, "an error of ours" if said.startswith("crashed") else bench.half_way(work))
            if not how and said.startswith("refused"):
                trial.judge(what, case, None if bench.unchanged(work) else "it says that nothing was written")
            case.settle(work)
            trial.judge(what, case, bench.broken(work))


def limits(trial: Trial, bench: Bench) -> None:
    """Let the file system take no more than so many bytes of a file, which the HDF5 library meets as well."""
    case = bench.case
    largest = max(map(len, bench.new.values()))
    for limit in sorted({0, 1, largest - 1, *(trial.chance.randrange(largest) for _ in range(12 // trial.every))}):
        work = bench.fresh()
        _, said = child(partial(limited_to, limit, partial(case.run, work)))
        what = f"files of at most {limit} bytes: {said}"
        trial.judge(what, case, "an error of ours" if said.startswith("crashed") else bench.half_way(work))
        case.settle(work)
        trial.judge(what, case, bench.broken(work))


def full_disks(trial: Trial, bench: Bench) -> None:
    """Let a real disk have room for so many more pages, and be full as well when the next run comes."""
    case = bench.case
    with small_disk(bench.folder / "run") as disk:
        said, pages = "", 0
        while said != "done":
            disk.allow()
            work = bench.fresh()
            disk.allow(disk.used() + pages * PAGE)
            _, said = child(partial(case.run, work))
            what = f"room for {pages} pages: {said}"
            trial.judge(what, case, "an error of ours" if said.startswith("crashed") else bench.half_way(work))
            _, settled = child(partial(case.settle, work))
            trial.judge(what, case, "an error of ours" if settled.startswith("crashed") else bench.half_way(work))
            disk.allow()
            case.settle(work)
            trial.judge(what, case, bench.broken(work))
            pages += trial.chance.randint(1, trial.every)


def read_only_disks(trial: Trial, bench: Bench, draws: int) -> None:
    """Make a real disk read-only at moments that nobody chose."""
    case = bench.case
    with small_disk(bench.folder / "run") as disk:
        started = time.monotonic()
        child(partial(case.run, bench.fresh()))
        usual = time.monotonic() - started
        for _ in range(draws):
            work = bench.fresh()
            waiting = trial.chance.uniform(0, usual)
            process = os.fork()
            if process == 0:
                signal.alarm(_LONGEST)
                code = 0
                try:
                    case.run(work)
                except CkptDoctorError:
                    pass
                except BaseException:  # noqa: BLE001 - it is what the trial looks for
                    code = 1
                os._exit(code)
            time.sleep(waiting)
            while not disk.forbid():
                time.sleep(0.0002)
            _, code = os.waitpid(process, 0)
            what = f"read-only after {waiting * 1000:.1f} ms"
            trial.judge(what, case, "an error of ours" if code else bench.half_way(work))
            _, settled = child(partial(case.settle, work))
            trial.judge(what, case, "an error of ours" if settled.startswith("crashed") else bench.half_way(work))
            disk.allow()
            case.settle(work)
            trial.judge(what, case, bench.broken(work))


def limited_to(limit: int, work: Callable[[], None]) -> None:
    """Do something where no file may be larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def moments(trial: Trial, bench: Bench, draws: int) -> None:
    """Send signals at moments that nobody chose."""
    case = bench.case
    started = time.monotonic()
    child(partial(case.run, bench.fresh()))
    usual = time.monotonic() - started
    for _ in range(draws):
        for signals in (("KILL",), ("INT",), ("TERM",), ("INT", "INT"), ("TERM", "KILL")):
            work = bench.fresh()
            # A signal that came right behind the fork would run through this very function, and what calls it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            process = os.fork()
            if process == 0:
                signal.alarm(_LONGEST)
                # Python tells there of signals that come while it destroys something.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                try:
                    handle_signals()
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                    case.run(work)
                finally:
                    os._exit(0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for name in signals:
                time.sleep(trial.chance.uniform(0, usual / len(signals)))
                os.kill(process, signal.Signals[f"SIG{name}"])
            os.waitpid(process, 0)
            what = f"{' and '.join(signals)} at some moment"
            trial.judge(what, case, bench.half_way(work))
            case.settle(work)
            trial.judge(what, case, bench.broken(work))


def races(trial: Trial, bench: Bench, draws: int) -> None:
    """Let two writers begin at once: one after the other succeeds, or one is refused."""
    case = bench.case
    for _ in range(draws):
        work = bench.fresh()
        processes = []
        for _ in range(2):
            process = os.fork()
            if process == 0:
                signal.alarm(_LONGEST)
                code = 1
                with contextlib.suppress(CkptDoctorError):
                    case.run(work)
                    code = 0
                os._exit(code)
            processes.append(process)
            time.sleep(trial.chance.uniform(0, 0.01))
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        what = f"two writers, exit codes {codes}"
        trial.judge(what, case, None if codes in ([0, 0], [0, 1], [1, 0]) else "none of them has written")
        # The second may have changed what the first has written.
        trial.judge(what, case, None if is_whole(case.target(work)) else "what was written cannot be read")
        trial.judge(what, case, bench.hidden(work))


def power(trial: Trial, bench: Bench, draws: int) -> None:
    """Let the power fail after each call."""
    case, work = bench.case, bench.fresh()
    disk = Disk(work)
    disk.start()
    plain = os.fsync

    def flushing(descriptor: int) -> None:
        plain(descriptor)
        disk.flushed(os.fstat(descriptor).st_ino)

    os.fsync = flushing
    try:
        with interposed(lambda _: None, disk.called):
            case.run(work)
    finally:
        os.fsync = plain
    place = bench.folder / "run" / "work"
    for number in trial.drawn(len(disk.moments)):
        for draw, tree in enumerate(outcomes(disk.moments[number], draws, trial.chance)):
            shutil.rmtree(bench.folder / "run")
            build(tree, place)
            (place.parent / "tmp").mkdir()
            what = f"power lost after call {number}, outcome {draw}"
            trial.judge(what, case, bench.half_way(place))
            case.settle(place)
            trial.judge(what, case, bench.broken(place))


def main() -> int:
    """Run the trial, print its table, and return 1 where something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", action="append", choices=FORMATS, help="Only this format; all by default.")
    parser.add_argument("--mode", action="append", choices=MODES, help="Only this way of writing; all by default.")
    parser.add_argument("--every", type=int, default=1, help="Try one of so many places; 1 tries all.")
    parser.add_argument("--draws", type=int, default=6, help="Outcomes of a loss of power that are drawn at each call.")
    parser.add_argument("--moments", type=int, default=5, help="Rounds of signals at random moments.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="Write the counts of each format into this JSON file.")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # Every fault is told of there.
    trial, started = Trial(asked.every, asked.seed), time.monotonic()
    report: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        can_mount = may_mount(Path(folder, "disk"))
        if not can_mount:
            print("no real disks: this process may not mount any (run it as root, or under `unshare -rm`)", flush=True)
        for kind in asked.kind or FORMATS:
            before = len(trial.broken)
            for mode in asked.mode or MODES:
                bench = Bench.make(Case(kind, mode), Path(folder, f"{kind} {mode}".replace(" ", "-").replace(",", "")))
                kills(trial, bench)
                failures(trial, bench)
                power(trial, bench, asked.draws)
                limits(trial, bench)
                if can_mount:
                    full_disks(trial, bench)
                    read_only_disks(trial, bench, 4 * asked.moments)
                moments(trial, bench, asked.moments)
                races(trial, bench, asked.moments)
            broken = len(trial.broken) - before
            print(f"{kind:22} {trial.faults[kind]:7} faults, {broken} broken states", flush=True)
            report[kind] = {"faults": trial.faults[kind], "broken": broken, "left_over": trial.left_over[kind]}
            for line in trial.broken[before:][:20]:
                print(line, file=sys.stderr, flush=True)
    if asked.report is not None:
        asked.report.write_text(json.dumps(report))
    seconds = time.monotonic() - started
    print(f"{'all':22} {trial.faults.total():7} faults, {len(trial.broken)} broken states, {seconds:.0f} s")
    return 1 if trial.broken else 0


if __name__ == "__main__":
    sys.exit(main())
