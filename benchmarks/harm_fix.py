"""Repairs files of `harm.py` and lets the framework that made them judge; a process for a few dozen nets.

Run by `harm.py` only: ``HARM_KERAS=keras python harm_fix.py FOLDER RESULTS [PYTHON_OF_TF1] < NETS``, one name a line.
Writes ``RESULTS/NET.json``, a row for each file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import ckpt_doctor
from ckpt_doctor.errors import CkptDoctorError

if __package__:
    from benchmarks.harm_models import Builder, keras, restore
    from benchmarks.harm_recipes import recipes
else:
    from harm_models import Builder, keras, restore
    from harm_recipes import recipes

# What is tried on every file, in this order: name, and whether data and `unproven` are given.
ATTEMPTS = (("plain", False, False), ("data", True, False), ("unproven", True, True))
_LONGEST = 300
# What `fix` asks for where a model is of a class of its user's own.
_WANTS_FUNCTION = "--model path.py:FUNCTION"
_FUNCTION = """import json
from {module} import Builder

def build():
    return Builder(json.loads({recipe!r}))()
"""


class Judge:
    """Says how well files serve, in the framework that made them.

    Args:
        root: Folder of the trial.
        python: Interpreter of TensorFlow 1.15, for its files.
    """

    def __init__(self, root: Path, python: str | None) -> None:
        self.root, self.python = root, python
        self._process: subprocess.Popen[str] | None = None
        self._tests: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, recipe: dict, label: dict, path: Path) -> float:
        """Return the share of the held-out inputs whose class a file names at inference."""
        if recipe["framework"] == "tf1":
            return self._of_tf1({"recipe": recipe, "format": label["format"], "path": str(path)})
        if label["test"] not in self._tests:
            with np.load(self.root / label["test"]) as test:
                self._tests[label["test"]] = test["x"], test["y"]
        x, y = self._tests[label["test"]]
        answer = restore(label["format"], path, Builder(recipe))
        found = float(np.mean(np.concatenate([answer(x[start : start + 500]) for start in range(0, len(x), 500)])
                              .argmax(-1) == y))  # fmt: skip
        keras.backend.clear_session()
        return found

    def _of_tf1(self, question: dict) -> float:
        if self._process is None:
            assert self.python is not None
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            script = Path(__file__).with_name("harm_tf1.py")
            self._process = subprocess.Popen(
                [self.python, "-W", "ignore", str(script), "judge", str(self.root)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise ValueError(answer["error"])
                return answer["accuracy"]
        raise ValueError("the judge of TensorFlow 1.15 ended")

    def close(self) -> None:
        """End the process of TensorFlow 1.15."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=60)


def numbers_of(path: Path, layers: Any, label: dict) -> dict[str, int | None]:
    """Return which layer of the label each layer of a file is: by its name, else by its beta or gamma."""
    found: dict[str, int | None] = {}
    with_values = ckpt_doctor.open_checkpoint(path)
    for layer in layers:
        named = re.search(r"(?:^|/)(?:bn|block|switch|remat|fixed)(\d)(?:/|$)", layer.name)
        number = int(named[1]) if named else None
        for role in ("beta", "gamma"):
            variable = getattr(layer, "variables", vars(layer)).get(role)
            if number is None and variable is not None:
                value = np.asarray(with_values.variable(variable).read(), float).reshape(-1)
                same = [
                    place
                    for place, entry in enumerate(label["layers"])
                    if entry[role] is not None and np.array_equal(entry[role], value)
                ]
                number = same[0] if len(same) == 1 else None
        found[layer.name] = number
    return found


def scanned(path: Path, label: dict) -> dict:
    """Return what `scan` finds in a file: its findings with the numbers of their layers, and what it did not judge."""
    result = ckpt_doctor.scan([str(path)])
    if result.errors:
        return {"error": result.errors[0].message[:_LONGEST], "findings": []}
    checkpoint = result.checkpoints[0]
    numbers = numbers_of(path, checkpoint.batch_norm_layers, label)
    findings = [
        {
            "rule": finding.rule,
            "severity": finding.severity,
            "certainty": finding.certainty,
            "layers": [numbers.get(name) for name in finding.layers],
            "message": finding.message[:_LONGEST],
        }
        for finding in checkpoint.findings
    ]
    return {"findings": findings, "layers": len(checkpoint.batch_norm_layers), "not_judged": len(checkpoint.not_judged)}


def attempt(label: dict, path: Path, root: Path, output: Path, recipe: dict, *, data: bool, unproven: bool) -> dict:
    """Run `fix`, again with the function that builds the model where it asks for one; return what it did."""
    options: dict[str, Any] = {}
    if data:
        options["data"] = str(root / label["data"])
        if label["model"] is not None:
            options["model"] = str(root / label["model"])
    if unproven:
        options["unproven"] = True
    started = time.monotonic()
    try:
        try:
            result = ckpt_doctor.fix(str(path), output=str(output), **options)
        except CkptDoctorError as error:
            if _WANTS_FUNCTION not in str(error):
                raise
            script = output.parent / "its_model.py"
            script.write_text(_FUNCTION.format(module=Builder.__module__, recipe=json.dumps(recipe)), "utf-8")
            options["model"] = f"{script}:build"
            result = ckpt_doctor.fix(str(path), output=str(output), **options)
    except CkptDoctorError as error:
        return {"outcome": "refused", "words": str(error)[:_LONGEST]}
    # A crash is a result of the trial, and must not end it.
    except Exception as error:
        return {"outcome": "crash", "words": f"{type(error).__name__}: {error}"[:_LONGEST]}
    row = {
        "seconds": round(time.monotonic() - started, 2),
        "words": "; ".join([*result.notes, *(f"{left.name}: {left.reason}" for left in result.left)])[:_LONGEST],
        "layers": {layer.name: layer.method for layer in result.layers},
        "left": len(result.left),
    }
    if result.output is None or not result.layers:
        return row | {"outcome": "nothing" if result.complete else "left"}
    return row | {"outcome": "repaired" if result.complete else "part"}


def tried(label: dict, recipe: dict, root: Path, judge: Judge) -> dict:
    """Return the row of one file: what `scan` finds, what each attempt did, and the accuracies before and after."""
    path = root / label["file"]
    row: dict[str, Any] = {
        key: label[key]
        for key in ("file", "net", "way", "group", "framework", "format", "truth", "trained_on", "has_bias",
                    "has_slots", "scale", "optimizer", "initial_share", "statistics", "accuracy", "training_accuracy")
    }  # fmt: skip
    row["of_layers"] = [{key: layer[key] for key in ("trained_on", "truth")} for layer in label["layers"]]
    row["scan"] = scanned(path, label)
    row["attempts"] = {}
    for name, data, unproven in ATTEMPTS:
        if unproven and (label["truth"] != "sick" or row["attempts"]["data"]["outcome"] in ("repaired", "nothing")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / path.name
            done = attempt(label, path, root, output, recipe, data=data, unproven=unproven)
            if done["outcome"] in ("repaired", "part"):
                try:
                    if "before" not in row:
                        row["before"] = judge(recipe, label, path)
                    done["after"] = judge(recipe, label, output)
                # What the framework cannot load any more is worse than any accuracy.
                except Exception as error:
                    done["unreadable"] = f"{type(error).__name__}: {error}"[:_LONGEST]
            row["attempts"][name] = done
    return row


def main() -> None:
    """Try the nets whose names stand on stdin."""
    root, results = Path(sys.argv[1]), Path(sys.argv[2])
    by_name = {recipe["net"]: recipe for recipe in recipes()}
    judge = Judge(root, sys.argv[3] if len(sys.argv) > 3 else None)
    for line in sys.stdin:
        net = line.strip()
        labels = json.loads((root / "nets" / net / "labels.json").read_text("utf-8"))
        rows = [tried(label, by_name[net], root, judge) for label in labels if label["file"] is not None]
        part = results / f"{net}.part"
        part.write_text(json.dumps(rows), "utf-8")
        shutil.move(part, results / f"{net}.json")
        words = (
            f"{row['format']}: " + " ".join(f"{name}={done['outcome']}" for name, done in row["attempts"].items())
            for row in rows
        )
        print(f"{net:46} " + "; ".join(words), flush=True)
    judge.close()


if __name__ == "__main__":
    main()
