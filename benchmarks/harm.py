"""Does a repair ever make a model worse? Nets are trained in all the ways that people train, and the framework judges.

Run: ``python benchmarks/harm.py FOLDER`` (needs ``.[tensorflow,dev]`` and tf_keras). Every net of `harm_recipes` is
trained once into FOLDER, in a process of its framework; what is there already is not trained again. Then every file is
scanned and repaired as a user would do it, plainly without data and with data, and with ``--unproven`` where that left
a sick file as it was; what was written is loaded by its framework and asked for its accuracy. Results are kept in
FOLDER/results.jsonl and made anew with ``--again``, for another state of the package. ``--only WAY`` (a way, a group, a
framework or a net) narrows both; ``--table`` prints the tables of what is there.

A file of ``FOLDER/nets/NET/labels.json`` says how its net was trained: ``truth`` (`healthy`, `sick`, `unknown`),
``trained_on`` (`batch`, `stored`, `mixed`), for each layer too, its accuracy as stored, and which data are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import harm_recipes

HERE = Path(__file__).parent
FRAMEWORKS = {"keras3": "keras", "tf_keras": "tf_keras"}
# Half a point of accuracy, on 3,000 held-out inputs.
WORSE = 0.005


def run(script: str, framework: str, folder: Path, lines: list[dict]) -> Iterator[str]:
    """Yield what a script of this folder prints for the lines, in a process of one framework."""
    environment = {**os.environ, "HARM_KERAS": FRAMEWORKS[framework], "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / script), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
    process.stdin.close()
    yield from process.stdout
    if process.wait():
        print(f"{script} {framework}: ended with {process.returncode}", file=sys.stderr)


def labels(folder: Path, only: list[str]) -> Iterator[dict]:
    """Yield the labels of all files that were saved."""
    for path in sorted(folder.glob("nets/*/labels.json")):
        for label in json.loads(path.read_text("utf-8")):
            named = {label[key] for key in ("way", "framework", "group", "net")}
            if label["file"] is not None and (not only or named & set(only)):
                yield label


def results(folder: Path) -> dict[str, dict]:
    """Return the results so far, by file; the last of each counts."""
    path = folder / "results.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def train(folder: Path, only: list[str]) -> None:
    """Train what is not there yet."""
    if not (folder / "data").exists():
        harm_recipes.make_data(folder / "data")
    for framework in FRAMEWORKS:
        missing = [
            recipe
            for recipe in harm_recipes.selected(only)
            if recipe["framework"] == framework and not (folder / "nets" / recipe["net"] / "labels.json").exists()
        ]
        for line in run("harm_keras.py", framework, folder, missing) if missing else ():
            print(line, end="", flush=True)


def judge(folder: Path, only: list[str], *, again: bool) -> None:
    """Repair and judge what has no result yet."""
    known = {} if again else results(folder)
    with (folder / "results.jsonl").open("a", encoding="utf-8") as kept:
        for framework in FRAMEWORKS:
            todo = [one for one in labels(folder, only) if one["framework"] == framework and one["file"] not in known]
            for line in run("harm_judge.py", framework, folder, todo) if todo else ():
                kept.write(line)
                kept.flush()
                entry = json.loads(line)
                shown = " ".join(
                    f"{name}: {one['outcome']} {one.get('accuracy') or ''}" for name, one in entry["fix"].items()
                )
                print(f"{entry['file']:60} {entry['accuracy']:.3f} {shown}", flush=True)


def is_worse(entry: dict, mode: str) -> bool:
    """Return whether a repair made the model worse."""
    accuracy = entry["fix"].get(mode, {}).get("accuracy")
    return accuracy is not None and accuracy < entry["accuracy"] - WORSE


def table(found: list[dict]) -> Iterator[str]:
    """Yield the tables, as Markdown."""
    yield "| group | files | repaired | refused | nothing to repair | made worse | only with `--unproven` |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    groups: dict[str, list[dict]] = defaultdict(list)
    for entry in found:
        groups[f"{entry['group']}, {entry['truth']}"].append(entry)
    for name, entries in (*sorted(groups.items()), ("all", found)):
        outcomes = Counter(entry["fix"]["data"]["outcome"] for entry in entries)
        worse = sum(is_worse(entry, mode) for entry in entries for mode in ("plain", "data"))
        asked = sum(entry["fix"].get("unproven", {}).get("outcome") == "repaired" for entry in entries)
        counted = (len(entries), outcomes["repaired"], outcomes["refused"], outcomes["nothing"], worse, asked)
        yield f"| {name} | {' | '.join(map(str, counted))} |"
    yield ""
    yield "| rule | certainty | right | wrong |"
    yield "|---|---|--:|--:|"
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for entry in found:
        for one in entry["findings"]:
            if one["right"] is not None:
                counts[one["rule"], one["certainty"]][one["right"]] += 1
    for (rule, certainty), count in sorted(counts.items()):
        yield f"| {rule} | {certainty} | {count[True]} | {count[False]} |"
    yield ""
    for entry in found:
        for mode in ("plain", "data", "unproven"):
            if is_worse(entry, mode):
                yield f"worse ({mode}): {entry['file']} {entry['accuracy']:.3f} -> {entry['fix'][mode]['accuracy']:.3f}"
        for one in entry["findings"]:
            if one["right"] is False and one["certainty"] != "unproven":
                yield f"wrong: {entry['file']} {one['rule']} {one['certainty']} {one['layers']}"


def main() -> None:
    """Train, judge, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--again", action="store_true", help="judge all files anew")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    options = parser.parse_args()
    if not options.table:
        options.folder.mkdir(parents=True, exist_ok=True)
        train(options.folder, options.only)
        judge(options.folder, options.only, again=options.again)
    named = {label["file"] for label in labels(options.folder, options.only)}
    print("\n".join(table([entry for name, entry in results(options.folder).items() if name in named])))


if __name__ == "__main__":
    main()
