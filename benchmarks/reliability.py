"""All that breaks things around a checkpoint, one after the other: writing, damaged input, load.

Run: ``python benchmarks/reliability.py`` (hours), or ``--short`` for a share of it in minutes. Prints a table with a
line for each format; exit code 1 if anything stayed broken, escaped or grew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each with what makes it short.
PARTS = (
    (
        "faults while writing",
        ["-m", "tests.faults", "--moments", "25"],
        ["--every", "20", "--draws", "1", "--moments", "1"],
    ),
    ("damaged input", ["-m", "tests.fuzz", "--inputs", "1000000"], ["--inputs", "20000"]),
    ("load", ["benchmarks/load.py"], ["--scans", "1000", "--fixes", "50"]),
)
# Formats of `tests.faults`, and which targets of `tests.fuzz` are theirs.
FORMATS = {
    "bundle": ("table", "snappy", "bundle", "meta-graph", "state"),
    "sliced bundle": ("slices",),
    "object-based bundle": ("object-graph",),
    "v1": ("v1",),
    "v1 shards": (),
    "saved model": ("saved-model",),
    "keras hdf5": ("keras-h5", "keras-config"),
    "keras archive": ("keras-archive",),
    "keras weights": ("keras-weights-h5",),
    "keras shards": ("keras-index",),
    "data, receipts, policies": ("data", "receipt", "baseline", "policy"),
}
COLUMNS = ("faults", "broken", "left over", "inputs", "crashes", "hangs", "peak MB")


def table(faults, damage):
    """Return the lines of the table from what both trials reported; a dash where nothing was tried."""
    rows = [("format", *COLUMNS)]
    for name, targets in FORMATS.items():
        wrote = faults.get(name)
        read = [damage[target] for target in targets if target in damage]
        rows.append(
            (
                name,
                *(str(wrote[key]) if wrote else "-" for key in ("faults", "broken", "left_over")),
                *(str(sum(one[key] for one in read)) if read else "-" for key in ("inputs", "escaped", "hangs")),
                str(max(one["peak_kilobytes"] for one in read) // 1024) if read else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def main():
    """Run every part, print the table, and say which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="A share of each part.")
    asked = parser.parse_args()
    failed, reports = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, command, less in PARTS:
            print(f"== {name}", flush=True)
            report = Path(folder, f"{len(reports)}.json")
            if command[0] == "-m":
                command = [*command, "--report", str(report)]
            done = subprocess.run([sys.executable, *command, *(less if asked.short else ())], cwd=ROOT, check=False)
            if done.returncode:
                failed.append(name)
            reports.append(json.loads(report.read_text()) if report.exists() else {})
    print("== all", *table(*reports[:2]), sep="\n")
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
