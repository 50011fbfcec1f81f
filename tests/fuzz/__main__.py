"""Damage files by the thousand and read them: nothing but a verdict or a documented error may come of it.

Batches run in processes of their own, so that a crash of a library is found and blamed on its input. The
same `--seed` makes the same inputs.

Run: ``python -m tests.fuzz [--inputs 20000] [--jobs 2] [--seed 0] [--only TARGET] [--keep FOLDER]``; exit code 1 if
anything escaped, took more than five seconds, or more memory than ten times its size and 200 MB. ``--keep`` writes what
did into a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target, make
from tests.fuzz.worker import AT, HANGS

ROOT = Path(__file__).parents[2]
_BATCH = 5000
_WALL_SECONDS = 7200


@dataclass
class Outcome:
    """What came of a target's inputs.

    Attributes:
        inputs: How many were read.
        escaped: Number of the input, what happened, and where.
        peak_kilobytes: The most memory that a process had.
    """

    inputs: int = 0
    escaped: list[tuple[int, str, str]] = field(default_factory=list)
    peak_kilobytes: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.inputs + other.inputs,
            self.escaped + other.escaped,
            max(self.peak_kilobytes, other.peak_kilobytes),
        )

    def counts(self) -> dict[str, int]:
        """Return inputs, those that hung, those that escaped otherwise, and the peak of memory in kB."""
        hangs = sum(what.startswith(HANGS) or where == HANGS for _, what, where in self.escaped)
        return {
            "inputs": self.inputs,
            "hangs": hangs,
            "escaped": len(self.escaped) - hangs,
            "peak_kilobytes": self.peak_kilobytes,
        }


# Target, first input, and the one behind the last.
Batch = tuple[Target, int, int]


def work(batches: Sequence[Batch], seed: int) -> dict[str, Outcome]:
    """Run batches in a process; where it dies, go on behind the input that ended it."""
    found = {target.name: Outcome(inputs=last - first) for target, first, last in batches}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    while batches:
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "at").write_bytes(AT.pack(0, batches[0][1]))
            command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.worker", str(seed), place]
            command += [f"{target.name}:{first}:{last}" for target, first, last in batches]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_WALL_SECONDS
                )
                output, code, said = done.stdout, done.returncode, done.stderr
            except subprocess.TimeoutExpired as error:
                output, code, said = (error.stdout or b"").decode(), -1, HANGS
            index, at = AT.unpack((Path(place) / "at").read_bytes())
        for line in map(json.loads, output.splitlines()):
            outcome = found[line["target"]]
            if "number" in line:
                outcome.escaped.append((line["number"], line["what"], line["where"]))
            else:
                outcome.peak_kilobytes = max(outcome.peak_kilobytes, line["peak_kilobytes"])
        if code == 0:
            break
        target, _, last = batches[index]
        found[target.name].escaped.append((at, f"ends its process with {code}", " ".join(said.split())[-200:]))
        batches = [(target, at + 1, last)] * (at + 1 < last) + list(batches[index + 1 :])
    return found


def plans(targets: Sequence[Target], inputs: int, jobs: int) -> list[list[Batch]]:
    """Return what each process is to run: a batch, or of a small run an equal part of all batches."""
    shares = sum(target.share for target in targets)
    counts = [(target, max(1, inputs * target.share // shares)) for target in targets]
    batches = [
        (target, first, min(first + _BATCH, count)) for target, count in counts for first in range(0, count, _BATCH)
    ]
    processes = max(jobs, inputs // _BATCH)
    return [part for number in range(processes) if (part := batches[number::processes])]


def run(targets: Sequence[Target], inputs: int, jobs: int, seed: int) -> dict[str, Outcome]:
    """Run all batches, `jobs` processes at a time."""
    found = {target.name: Outcome() for target in targets}
    with ThreadPoolExecutor(jobs) as pool:
        for outcomes in pool.map(lambda plan: work(plan, seed), plans(targets, inputs, jobs)):
            for name, outcome in outcomes.items():
                found[name] += outcome
            read = sum(outcome.inputs for outcome in found.values())
            escaped = sum(len(outcome.escaped) for outcome in found.values())
            print(f"{read} inputs so far, {escaped} escaped", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run, and print a line a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="damaged inputs in all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name begins so")
    parser.add_argument("--keep", type=Path, help="write inputs that escaped into this folder")
    parser.add_argument("--report", type=Path, help="write the counts of each target into this JSON file")
    options = parser.parse_args()
    targets = [target for target in TARGETS if target.name.startswith(options.only)]
    found = run(targets, options.inputs, options.jobs, options.seed)
    for name, outcome in found.items():
        peak = outcome.peak_kilobytes // 1024
        print(f"{name}: {outcome.inputs} inputs, {len(outcome.escaped)} escaped, peak {peak} MB")
        kinds = Counter((what, where) for _, what, where in outcome.escaped)
        for (what, where), count in kinds.most_common(20):
            number = next(number for number, *kind in outcome.escaped if tuple(kind) == (what, where))
            print(f"  {count} times, first {number}: {what} ({where})")
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                target = next(target for target in targets if target.name == name)
                (options.keep / f"{name}-{number}").write_bytes(make(target, options.seed, number))
    if options.report is not None:
        options.report.write_text(json.dumps({name: outcome.counts() for name, outcome in found.items()}))
    total = sum(outcome.inputs for outcome in found.values())
    escaped = sum(len(outcome.escaped) for outcome in found.values())
    print(f"{total} inputs, {escaped} escaped")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
