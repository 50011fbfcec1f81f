"""All that breaks things around a checkpoint, one after the other: writing, damaged input, load.

Run: ``python benchmarks/reliability.py`` (hours), or ``--short`` for a share of it in minutes. Exit code 1 if anything
stayed broken, escaped or grew.
"""

import argparse
import subprocess
import sys
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


def main():
    """Run every part, and say which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="A share of each part.")
    asked = parser.parse_args()
    failed = []
    for name, command, less in PARTS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, *command, *(less if asked.short else ())], cwd=ROOT, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
