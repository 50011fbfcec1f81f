"""Mutation testing of what judges, repairs and writes: does a test fail for every change of a line?

A thin driver round mutmut (`pip install mutmut==3.8.1` beside the dev dependencies; POSIX, as mutmut forks). What is
mutated, and by which tests, is in `[tool.mutmut]` of `pyproject.toml`. mutmut mutates the bodies of functions; values
of modules and classes (limits above all) it leaves alone, so the driver applies mutmut's operators to those too, one
process each. Functions under a decorator (properties) are mutated by neither.

Run from the root of the repository:

    python benchmarks/mutation.py                     # everything that has no verdict yet, then the table
    python benchmarks/mutation.py moments heuristics  # parts whose path holds one of the words
    python benchmarks/mutation.py --sample 100        # a hundred mutants of each module at most, drawn by --seed
    python benchmarks/mutation.py --report            # only the table and the survivors of the last run

Results are in `mutants/`, which may be removed at any time; `mutmut show NAME` prints one mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import libcst as cst
from mutmut.configuration import config
from mutmut.mutation.file_mutation import create_mutations, deep_replace, group_by_top_level_node
from mutmut.mutation.trampoline_templates import mangle_function_name
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

MUTANTS = Path("mutants")
VALUES = MUTANTS / "values.json"
# A process of its own starts Python, NumPy and h5py first.
LONGEST_OF_VALUES = 600
KILLED = ("killed", "timeout", "segfault")


def modules(words: list[str]) -> list[Path]:
    """Return the modules that are mutated and whose path holds one of the words; all where there are none."""
    found = [
        path
        for path in sorted(Path("ckpt_doctor").rglob("*.py"))
        if any(fnmatch(str(path), pattern) for pattern in config().only_mutate)
    ]
    return [path for path in found if not words or any(word in str(path) for word in words)]


def names_of(path: Path) -> list[str]:
    """Return the names that mutmut gives the mutants of a module."""
    module, mutations, _, _ = create_mutations(str(path), path.read_text())
    grouped = group_by_top_level_node(mutations)
    functions = [(node, None) for node in module.body if isinstance(node, cst.FunctionDef)]
    functions += [
        (node, outer.name.value)
        for outer in module.body
        if isinstance(outer, cst.ClassDef)
        for node in outer.body.body
        if isinstance(node, cst.FunctionDef)
    ]
    return [
        get_mutant_name(path, f"{mangle_function_name(name=node.name.value, class_name=outer)}__mutmut_{number + 1}")
        for node, outer in functions
        for number in range(len(grouped.get(node, ())))
    ]


def run_functions(chosen: list[Path], arguments: argparse.Namespace) -> None:
    """Let mutmut mutate the functions."""
    selected: list[str] = []
    if arguments.sample:
        draw = random.Random(arguments.seed)
        for path in chosen:
            names = names_of(path)
            selected += draw.sample(names, min(arguments.sample, len(names)))
    elif arguments.words:
        selected = [get_mutant_name(path, "*") for path in chosen]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(arguments.children), *selected]
    program = Path(sys.executable).with_name("mutmut")
    if program.exists():
        command[:3] = [str(program)]
    subprocess.run(command, check=True)


def values_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield a description and the mutated source for every mutation outside functions."""
    source = path.read_text()
    module, mutations, _, _ = create_mutations(str(path), source)
    lines = source.splitlines()
    for mutation in mutations:
        inside = mutation.contained_by_top_level_function
        # To set a value to None breaks everything at once and tells nothing.
        if isinstance(inside, cst.FunctionDef) or isinstance(mutation.original_node, (cst.Assign, cst.AnnAssign)):
            continue
        changed = deep_replace(module, mutation.original_node, mutation.mutated_node)
        assert isinstance(changed, cst.Module)
        new = changed.code.splitlines()
        number = next(number for number, (old, line) in enumerate(zip(lines, new, strict=False)) if old != line)
        if (
            lines[number].lstrip().startswith(("import ", "from ", "__all__", "@", "class "))
            or "Literal" in lines[number]
        ):
            continue
        yield f"{path}:{number + 1}: {new[number].strip()}", changed.code


def tests_of(path: Path) -> list[str]:
    """Return the tests that run a function of a module, fast ones first; all selected tests where none is known."""
    stats = json.loads((MUTANTS / "mutmut-stats.json").read_text())
    module = str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")
    found = {
        test
        for function, tests in stats["tests_by_mangled_function_name"].items()
        if function.rpartition(".")[0] == module
        for test in tests
    }
    return sorted(found, key=lambda test: stats["duration_by_test"].get(test, 0.0))


def run_values(chosen: list[Path], arguments: argparse.Namespace) -> None:
    """Mutate values of modules and classes, each in a process of its own."""
    known = json.loads(VALUES.read_text()) if VALUES.exists() else {}
    draw = random.Random(arguments.seed)
    for path in chosen:
        mutated = list(values_of(path))
        if arguments.sample and len(mutated) > arguments.sample:
            mutated = draw.sample(mutated, arguments.sample)
        place = MUTANTS / path
        kept = place.read_bytes()
        tests = tests_of(path) or config().pytest_add_cli_args_test_selection
        options = ["-x", "-q", "--rootdir=.", "--tb=no", *config().pytest_add_cli_args]
        environment = {**os.environ, "PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1", "MUTANT_UNDER_TEST": ""}
        try:
            for name, source in mutated:
                if name in known and not arguments.words:
                    continue
                place.write_text(source)
                try:
                    done = subprocess.run(
                        [sys.executable, "-m", "pytest", *options, *tests],
                        cwd=MUTANTS, env=environment, capture_output=True, timeout=LONGEST_OF_VALUES, check=False,
                    )  # fmt: skip
                    known[name] = "survived" if done.returncode == 0 else "killed"
                except subprocess.TimeoutExpired:
                    known[name] = "timeout"
                VALUES.write_text(json.dumps(known, indent=1))
        finally:
            place.write_bytes(kept)


def results(path: Path) -> dict[str, str]:
    """Return the verdict on every mutant of a module that has one."""
    meta = MUTANTS / f"{path}.meta"
    found = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    verdicts = {name: status_by_exit_code[code] for name, code in found.items() if code is not None}
    values = json.loads(VALUES.read_text()) if VALUES.exists() else {}
    return verdicts | {name: verdict for name, verdict in values.items() if name.startswith(f"{path}:")}


def report(chosen: list[Path]) -> bool:
    """Print the score of every module and the survivors; return whether all modules reach the bar."""
    total: Counter[str] = Counter()
    survivors = []
    print("| module | mutants | killed | survived | without a test | score |")
    print("|---|---|---|---|---|---|")
    for path in chosen:
        verdicts = results(path)
        counts = Counter("killed" if verdict in KILLED else verdict for verdict in verdicts.values())
        total += counts
        survivors += [name for name, verdict in sorted(verdicts.items()) if verdict not in KILLED]
        if verdicts:
            print(row(f"`{path.relative_to('ckpt_doctor')}`", counts))
    print(row("all", total))
    print("\nsurvivors:")
    for name in survivors:
        print(f"  {name}")
    return total["killed"] >= 0.85 * sum(total.values())


def row(name: str, counts: Counter[str]) -> str:
    """Return a line of the table."""
    number = sum(counts.values())
    rest = number - counts["killed"] - counts["no tests"]
    score = f"{counts['killed'] / number:.1%}" if number else "-"
    return f"| {name} | {number} | {counts['killed']} | {rest} | {counts['no tests']} | {score} |"


def main() -> int:
    """Read the command line, run, report; return 1 where fewer than 85 % were killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only modules whose path holds one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of each module")
    parser.add_argument("--seed", type=int, default=17, help="what the sample is drawn by")
    parser.add_argument("--children", type=int, default=1, help="processes at a time")
    parser.add_argument("--report", action="store_true", help="run nothing, print the last results")
    arguments = parser.parse_args()
    chosen = modules(arguments.words)
    if not chosen:
        parser.error(f"no module that is mutated is called so; they are {', '.join(map(str, modules([])))}")
    if not arguments.report:
        run_functions(chosen, arguments)
        run_values(chosen, arguments)
    return 0 if report(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
