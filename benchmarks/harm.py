"""Does a repair ever harm? Trains small nets in many ways, breaks some, repairs all, and lets the framework judge.

Nets are trained with Keras 3, tf_keras and TensorFlow 1.15 (with `--tf1`), with and without biases in front of the
batch norm: healthy, fine-tuned, frozen, in inference mode, without updates, with too few. Each is saved in two formats.
Then `scan`, plain `fix` without and with data, and, where that refuses a broken file, `fix --unproven` with data; what
is written is loaded by the framework that made it, and its accuracy at inference is measured on held-out data.

Training is done once, into `--folder`. `labels.json` there is a list with an object for each file:

    file              path of the checkpoint in the folder, as `ckpt-doctor` takes it
    net, way, group   the net; how it was trained; `healthy`, `averaged`, `stored` (trained on 0/1), `never`, `cold` or
                      `missing`
    framework         `keras3`, `tf_keras` or `tf1`
    format            of `harm_recipes.FORMATS`
    truth             `healthy`: the statistics are right as they are, or were, if missing, the initial ones; `sick`;
                      `unknown`: neither for certain (averaged weights, nets that diverged)
    trained_on        `batch` moments, `stored` statistics, or `mixed`: both, one after the other or layer by layer
    has_bias          whether a bias stands in front of every batch norm
    has_slots         whether the file holds optimizer slots of this training
    statistics        `stored`, or `missing` from the file
    initial_share     what is left of the initial values, by arithmetic: decay to the power of the updates; 0 if warm
    optimizer, precision, architecture, momentum, steps, batch_size, scale, seed: those of the recipe
    layers            for each batch norm: name (`bn0` …, in the order of the model), kernel_bias, trained_on, truth,
                      and gamma, beta, moving_mean, moving_variance as they were when the net was saved
    accuracy          on held-out data, at inference, as stored; statistics that are missing are 0/1
    training_accuracy on the same, in training mode
    data, test        `.npz` with `x` for `fix --data`; `.npz` with `x`, `y`; `metric` is the share of right classes
    model             what `--model` needs where the file holds no model, or null
    unsaved           why the framework could not save it so (`file` is then null), or null

What `fix` does is kept in `FOLDER/results/STATE`, a state being a hash of the product's source, so that a changed
product repairs everything again and the same one goes on where it stopped: `report.md`, `wrong.txt`, `results.json`.

Run: ``python benchmarks/harm.py --folder FOLDER [--tf1 PYTHON] [--only WAY ...] [--train | --fix | --report]``
(Python with ckpt-doctor, TensorFlow and tf_keras). Training takes about half an hour of processor time, `fix` likewise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__:
    from benchmarks.harm_recipes import make_data, selected
    from benchmarks.harm_report import report, wrong_cases
else:
    from harm_recipes import make_data, selected
    from harm_report import report, wrong_cases

HERE = Path(__file__).parent
# Nets of one process; TensorFlow does not give back all that a net took.
CHUNK = 24
_LONGEST = 3600.0


def environment(framework: str) -> dict[str, str]:
    """Return the environment of a worker: its Keras, no GPU, and little talk."""
    of = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    of["HARM_KERAS"] = "tf_keras" if framework == "tf_keras" else "keras"
    return of


def run(command: list[str], lines: list[str], framework: str, log: Path) -> None:
    """Run a worker over lines of stdin; its words go to a log, and what it printed for a net to stdout."""
    variables = environment(framework)
    if command[0] != sys.executable:
        # The other interpreter has packages of its own.
        variables = {name: value for name, value in variables.items() if not name.startswith("PYTHON")}
    with log.open("a") as words:
        done = subprocess.run(
            command, input="\n".join(lines) + "\n", stdout=subprocess.PIPE, stderr=words, text=True, env=variables,
            timeout=_LONGEST,
        )  # fmt: skip
    print(*(line for line in done.stdout.splitlines() if line.startswith(framework)), sep="\n", flush=True)
    if done.returncode:
        print(f"a worker of {framework} ended with {done.returncode}; see {log}", flush=True)


def in_chunks(recipes: list[dict]) -> list[tuple[str, list[dict]]]:
    """Return recipes in groups of one framework, each for a process of its own."""
    chunks = []
    for framework in dict.fromkeys(recipe["framework"] for recipe in recipes):
        of = [recipe for recipe in recipes if recipe["framework"] == framework]
        chunks += [(framework, of[start : start + CHUNK]) for start in range(0, len(of), CHUNK)]
    return chunks


def state_of_product() -> str:
    """Return a name for what is tried: a hash of the product's source."""
    package = HERE.parent / "ckpt_doctor"
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def train(folder: Path, recipes: list[dict], tf1: str | None, jobs: int) -> None:
    """Train what is not trained yet."""
    if not (folder / "data").exists():
        make_data(folder / "data")
    (folder / "nets").mkdir(exist_ok=True)
    todo = [
        recipe
        for recipe in recipes
        if (tf1 or recipe["framework"] != "tf1") and not (folder / "nets" / recipe["net"] / "labels.json").exists()
    ]

    def chunk(entry: tuple[str, list[dict]]) -> None:
        framework, of = entry
        command = [sys.executable, "-W", "ignore", str(HERE / "harm_keras.py"), str(folder)]
        if framework == "tf1":
            command = [str(tf1), "-W", "ignore", str(HERE / "harm_tf1.py"), "train", str(folder)]
        run(command, [json.dumps(recipe) for recipe in of], framework, folder / "train.log")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(chunk, in_chunks(todo)))


def gather_labels(folder: Path) -> list[dict]:
    """Write `labels.json` from the parts of all nets that were trained, and return it."""
    labels = [
        label
        for path in sorted((folder / "nets").glob("*/labels.json"))
        for label in json.loads(path.read_text("utf-8"))
    ]
    part = folder / "labels.json.part"
    part.write_text(json.dumps(labels, indent=1), "utf-8")
    part.replace(folder / "labels.json")
    return labels


def fix(folder: Path, results: Path, recipes: list[dict], tf1: str | None, jobs: int) -> None:
    """Repair and judge what this state of the product was not tried on yet."""
    todo = [
        recipe
        for recipe in recipes
        if (folder / "nets" / recipe["net"] / "labels.json").exists()
        and (tf1 or recipe["framework"] != "tf1")
        and not (results / f"{recipe['net']}.json").exists()
    ]

    def chunk(entry: tuple[str, list[dict]]) -> None:
        framework, of = entry
        command = [sys.executable, "-W", "ignore", str(HERE / "harm_fix.py"), str(folder), str(results)]
        run(command + [tf1] * (tf1 is not None), [recipe["net"] for recipe in of], framework, results / "fix.log")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(chunk, in_chunks(todo)))


def main() -> int:
    """Train, repair, report; return 1 if a repair made a file worse, or a finding called proven is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "ckpt-doctor-harm")
    parser.add_argument("--tf1", help="an interpreter with tensorflow==1.15.5")
    parser.add_argument("--only", nargs="*", default=[], help="ways, groups, frameworks or nets")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2))
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--train", action="store_true", help="train only")
    part.add_argument("--fix", action="store_true", help="do not train what is missing")
    part.add_argument("--report", action="store_true", help="only print what is known of this state")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    recipes = selected(arguments.only)
    if not recipes:
        parser.error(f"no way, group, framework or net is called {' or '.join(arguments.only)}")
    results = folder / "results" / state_of_product()
    results.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if not (arguments.fix or arguments.report):
        train(folder, recipes, arguments.tf1, arguments.jobs)
    labels = gather_labels(folder)
    if arguments.train:
        return 0
    if not arguments.report:
        fix(folder, results, recipes, arguments.tf1, arguments.jobs)
    names = {recipe["net"] for recipe in recipes}
    rows = [
        row
        for path in sorted(results.glob("*-*-*.json"))
        if path.stem in names
        for row in json.loads(path.read_text("utf-8"))
    ]
    (results / "results.json").write_text(json.dumps(rows, indent=1), "utf-8")
    nets = {label["net"] for label in labels} & names
    counts = {
        "nets": len(nets),
        "that failed to train": sum((folder / "nets" / name / "failed.txt").exists() for name in names - nets),
        "files that the framework could not save": sum(label["unsaved"] is not None for label in labels),
    }
    words = report(rows, counts)
    wrong = wrong_cases(rows)
    (results / "report.md").write_text(words, "utf-8")
    (results / "wrong.txt").write_text(wrong, "utf-8")
    print(words)
    print(wrong)
    print(f"\n{time.monotonic() - started:.0f} s; {results}")
    return int("worse, plain" in wrong or "worse, data" in wrong or any(
        line.startswith("wrong finding") and " proven:" in line for line in wrong.splitlines()
    ))  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
