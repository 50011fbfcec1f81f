"""Try `ckpt-doctor fix` on TensorFlow 1.15 graphs of many kinds that are not among the fixtures.

`fixtures/make_tf1_trials.py` builds, trains and saves them under TensorFlow 1.15.5, by
`Saver(tf.trainable_variables())` and by `Saver()`, each with a float64 oracle. Here every checkpoint is repaired by
both methods, and `fixtures/judge_tf1_trials.py` lets TensorFlow 1.15 judge what was written: all statistics within
1e-5 of the oracle in every channel, restored by the checkpoint's own saver, right logits at inference, training goes
on. A graph that cannot be repaired must be refused, or its layer left, with the words that the trial expects. Some are
also repaired in place, through hard links and symlinks: then no other file may change. What Estimators and distribution
strategies left is also scanned for its fault, and each `model_dir` repaired in place, with which an Estimator goes on.

Run: `python benchmarks/trial_tf1.py PYTHON_OF_TENSORFLOW_1.15 [--trials FOLDER] [--only NAME ...]`. With `--trials` an
existing folder of trials is taken, or a new one kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ckpt_doctor
from ckpt_doctor.errors import CkptDoctorError

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
METHODS = ("training", "layerwise")
# These are also repaired in place, with their files laid out in each of these ways.
IN_PLACE = ("always_true", "contrib_zero_debias", "layers_renorm", "partitioned", "saver_renamed", "saver_sharded")
PLACES = ("copied", "hard-linked", "symlinked")
# As it was before TensorFlow 2 set its TF2_BEHAVIOR, and without the way to this interpreter's packages.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def repair(trial, kind, prefix, data, method, output):
    """Repair one checkpoint; return the result, or the words of the refusal, and the seconds it took."""
    options = list(trial["options"])
    arguments = {"inputs": {}, "feeds": {}}
    while options:
        option, value = options.pop(0), options.pop(0)
        name, _, target = value.partition("=")
        arguments[{"--input": "inputs", "--feed": "feeds"}[option]][name] = target
    started = time.monotonic()
    try:
        # A full save is whole, so every layer is asked for; its companions are then repaired too.
        result = ckpt_doctor.fix(
            prefix,
            data=data,
            output=output,
            method=method,
            layers=["*"] if kind == "full" else [],
            **arguments | trial.get("arguments", {}),
        )
    except CkptDoctorError as refusal:
        return str(refusal), time.monotonic() - started
    return result, time.monotonic() - started


def attempt(trial, folder, names):
    """Yield a row of the table for each checkpoint and method: what happened, and the case for the judge or None."""
    for kind, prefix in trial["checkpoints"].items():
        for method in METHODS:
            output = folder / f"{trial['name']}-{kind}-{method}"
            home = names[trial["name"]].parent
            outcome, seconds = repair(trial, kind, home / prefix, f"{home / trial['data']}", method, output)
            row = {"name": trial["name"], "kind": kind, "method": method, "seconds": seconds}
            expected = trial["expected"][kind]
            if isinstance(outcome, str):
                good = expected != "repaired" and expected in outcome
                yield row | {"what": f"refused: {outcome}", "good": good}, None
            elif outcome.left:
                reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in outcome.left)
                yield row | {"what": f"left: {reasons}", "good": expected != "repaired" and expected in reasons}, None
            elif expected != "repaired" or not outcome.complete:
                yield row | {"what": f"complete: {outcome.complete} {outcome.notes}", "good": False}, None
            else:
                case = {"trial": str(names[trial["name"]]), "prefix": str(output), "method": method}
                yield row | {"what": f"{len(outcome.layers)} layers", "good": True}, case


def lay_out(prefix, place, folder):
    """Lay a checkpoint out as in a cache that others use; return its new prefix, and the files to leave alone."""
    cache, here = folder / "cache", folder / "here"
    cache.mkdir(parents=True)
    here.mkdir()
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        shutil.copy(path, cache / path.name)
        link = {"copied": shutil.copy, "hard-linked": os.link, "symlinked": os.symlink}[place]
        link(cache / path.name, here / path.name)
    return here / prefix.name, sorted(cache.iterdir())


def attempt_in_place(trial, folder, names):
    """Yield rows for repairs in place of one checkpoint whose files are copied, hard-linked or symlinked."""
    home = names[trial["name"]].parent
    for place in PLACES:
        for kind, prefix in trial["checkpoints"].items():
            there, others = lay_out(home / prefix, place, folder / f"{trial['name']}-{kind}-{place}")
            before = [path.read_bytes() for path in others]
            started = time.monotonic()
            result = ckpt_doctor.fix(
                there, data=f"{home / trial['data']}", in_place=True, layers=["*"] if kind == "full" else []
            )
            untouched = before == [path.read_bytes() for path in others]
            row = {"name": trial["name"], "kind": kind, "method": place, "seconds": time.monotonic() - started}
            words = "in place" if untouched else "another file changed"
            case = {"trial": str(names[trial["name"]]), "prefix": str(there), "method": "layerwise"}
            yield row | {"what": words, "good": untouched and result.complete}, case


def attempt_scan(trial, names):
    """Yield a row for what ``scan`` finds."""
    ((kind, prefix),) = trial["checkpoints"].items()
    started = time.monotonic()
    found = {
        finding.rule
        for result in ckpt_doctor.scan([names[trial["name"]].parent / prefix]).checkpoints
        for finding in result.findings
        if finding.severity != "note"
    }
    row = {"name": trial["name"], "kind": kind, "method": "scan", "seconds": time.monotonic() - started}
    what = f"found {' '.join(sorted(found)) or 'nothing'}"
    yield row | {"what": what, "good": found == set(trial["rules"])}, None


def attempt_model_dir(trial, folder, names):
    """Yield a row for an Estimator's folder that is repaired in place, as its user would do it."""
    home = names[trial["name"]].parent
    model_dir = folder / trial["name"] / "model"
    shutil.copytree(home / "model", model_dir)
    # The state file that TensorFlow wrote names the checkpoint by its old folder.
    state = model_dir / "checkpoint"
    state.write_text(state.read_text("utf-8").replace(str(home / "model"), str(model_dir)), "utf-8")
    ((kind, prefix),) = trial["checkpoints"].items()
    row = {"name": trial["name"], "kind": kind, "method": "model_dir"}
    started = time.monotonic()
    try:
        result = ckpt_doctor.fix(
            model_dir,
            data=f"{home / trial['data']}",
            in_place=True,
            layers=["*"] if kind == "full" else [],
            **trial["arguments"],
        )
    except CkptDoctorError as refusal:
        yield row | {"what": f"refused: {refusal}", "good": False, "seconds": time.monotonic() - started}, None
        return
    row |= {"what": f"{len(result.layers)} layers", "good": result.complete, "seconds": time.monotonic() - started}
    repaired = str(model_dir / Path(prefix).name)
    yield row, {
        "trial": str(names[trial["name"]]), "prefix": repaired, "method": "layerwise", "model_dir": str(model_dir)
    }  # fmt: skip


class Judge:
    """A process of TensorFlow 1.15 that judges one case after another."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(FIXTURES / "judge_tf1_trials.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def __call__(self, case):
        """Return the verdict on a case."""
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("the judge ended")

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def show(row, verdict):
    """Print one line of the table; return whether all is as it must be."""
    good, words, error = row["good"], row["what"], ""
    if verdict is not None:
        good = good and not verdict["problems"]
        words = "; ".join(verdict["problems"]) or words
        error = "" if verdict.get("error") is None else f"{verdict['error']:.1e}"
    print(
        f"{row['name']:30} {row['kind']:9} {row['method']:11} {row['seconds']:5.1f} s  {error:>7}  "
        f"{'ok' if good else 'WRONG'}  {words[:300]}",
        flush=True,
    )
    return good


def main():
    """Read the command line, make, repair, judge; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="an interpreter with tensorflow==1.15.5")
    parser.add_argument("--trials", type=Path, help="folder of the trials")
    parser.add_argument("--only", nargs="*", default=[], help="names of trials")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trials = arguments.trials or Path(temporary) / "trials"
        if not trials.exists():
            command = [arguments.python, "-W", "ignore", str(FIXTURES / "make_tf1_trials.py"), str(trials)]
            subprocess.run([*command, *arguments.only], env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
        found = [json.loads(path.read_text("utf-8")) for path in sorted(trials.glob("*/trial.json"))]
        names = {trial["name"]: trials / trial["name"] / "trial.json" for trial in found}
        judge = Judge(arguments.python)
        good = [
            show(row, None if case is None else judge(case))
            for trial in found
            if not arguments.only or trial["name"] in arguments.only
            for row, case in attempt(trial, Path(temporary), names)
        ]
        good += [
            show(row, judge(case))
            for trial in found
            if trial["name"] in IN_PLACE and (not arguments.only or trial["name"] in arguments.only)
            for row, case in attempt_in_place(trial, Path(temporary), names)
        ]
        good += [
            show(row, judge(case) if case else None)
            for trial in found
            if trial.get("model_dir") and (not arguments.only or trial["name"] in arguments.only)
            for row, case in attempt_model_dir(trial, Path(temporary), names)
        ]
        good += [
            show(row, None)
            for trial in found
            if "rules" in trial and (not arguments.only or trial["name"] in arguments.only)
            for row, _ in attempt_scan(trial, names)
        ]
        judge.close()
    print(f"{sum(good)} of {len(good)} as they must be, {len(names)} graphs")
    return 0 if all(good) and good else 1


if __name__ == "__main__":
    sys.exit(main())
