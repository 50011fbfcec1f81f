"""Holds any checkpoints to what `scan` and `fix` promise of each other, and prints every breach.

Each checkpoint is taken through `scan`, `fix --dry-run`, `fix`, `scan` and `fix` again: as it is, with `--model` and
with `--data` where they are given, and with `--unproven` where something is unproven. Then `scan --meta` is compared
with `scan` beside a `.meta`, and the command under "what to do" is run as it is printed. The properties are those of
`tests/contracts.py`, to which the tests hold the fixtures.

Run: ``python benchmarks/contracts.py PATH ... [--data DATA] [--model MODEL] [--unproven]`` (Python with ckpt-doctor and
TensorFlow). Prints a Markdown table, a row for each checkpoint and way, and below it the breaches; exits 1 if there are
any.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(Path(__file__).parents[1]))

from ckpt_doctor.formats.discovery import discover
from tests.contracts import (
    CYCLE,
    Contract,
    a_description_by_name_is_one_beside,
    contract,
    in_words,
    scan,
    what_scan_advises_works,
)


def ways(path: Path, data: str | None, model: str | None, unproven: bool) -> Iterator[tuple[str | None, ...]]:
    """Yield the sets of options under which a checkpoint is looked at: data, model, more."""
    given = [(None, None), (None, model), (data, model)]
    for pair in dict.fromkeys(given):
        yield pair
        doubtful = any(one["certainty"] == "unproven" for one in scan(path).repairable)
        if unproven or doubtful:
            yield (*pair, "--unproven")


def row(one: Contract) -> str:
    """Return what `scan` and `fix` say of one checkpoint, as cells of a table."""
    found = in_words(one.before.repairable) or "-"
    done = f"{one.foretold.code} {one.repair.code} {one.second_repair.code if one.written else '-'}"
    after = in_words(one.after.repairable) or "-" if one.written else "not written"
    return f"{found} | {done} | {after}"


def main() -> int:
    """Run all properties over all checkpoints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--data", help="inputs of the models, as for `fix`")
    parser.add_argument("--model", help="the model, as for `fix`")
    parser.add_argument("--unproven", action="store_true", help="look at every checkpoint with --unproven too")
    asked = parser.parse_args()
    data = str(Path(asked.data).absolute()) if asked.data and Path(asked.data).exists() else asked.data
    model = str(Path(asked.model).absolute()) if asked.model and Path(asked.model).exists() else asked.model
    breaches: list[str] = []
    print("| checkpoint | options | to repair | exit codes: dry run, fix, fix again | scan of what was written |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for number, found in enumerate(discover(asked.paths, True).checkpoints):
            path = Path(found).absolute()
            for way, (of_data, of_model, *more) in enumerate(ways(path, data, model, asked.unproven)):
                one = contract(path, Path(scratch, f"{number}-{way}"), of_data, of_model, *more)
                words = " ".join((*(["--data"] if of_data else []), *(["--model"] if of_model else []), *more)) or "-"
                seen = [(hold.__name__, breach) for hold in CYCLE for breach in hold(one)]
                folder = Path(scratch, f"{number}-{way}-advice")
                options = one.options_of_scan
                seen += [
                    (what_scan_advises_works.__name__, breach)
                    for breach in what_scan_advises_works(path, folder, data, model, *options)
                ]
                print(f"| {found} | {words} | {row(one)} |", flush=True)
                breaches += [f"{found}, {words}: {name}: {breach}" for name, breach in seen]
            if path.with_name(f"{path.name}.meta").exists():
                for option in ("--meta", "--model"):
                    folder = Path(scratch, f"{number}{option}")
                    said = a_description_by_name_is_one_beside(path, folder, option, scan(path))
                    breaches += [f"{found}: {a_description_by_name_is_one_beside.__name__}: {one}" for one in said]
    print(f"\n{len(breaches)} breaches")
    for breach in breaches:
        print(f"- {breach}")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
