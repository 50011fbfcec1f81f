"""Many scans and repairs in one process: do memory, open files, threads or temporary files grow?

Scans samples of every format over and over, and repairs one without data. What there is after a tenth of the rounds is
compared with what there is at the end.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import ckpt_doctor  # noqa: E402
from tests.independent import write_shadowed_bundle  # noqa: E402

SAMPLES = (
    "formats/bundle_dtypes/sample",
    "formats/bundle_module/sample",
    "formats/v1/sample",
    "formats/v1_shards/sample-?????-of-00002",
    "formats/saved_model_tf2/sample",
    "formats/keras/keras22_whole.h5",
    "formats/keras/keras3.keras",
    "formats/keras/keras3.weights.h5",
)


def state(folder):
    """Return resident memory in MiB, open files, threads, and temporary files."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resident, len([*Path("/proc/self/fd").iterdir()]), threading.active_count(), len([*folder.iterdir()])


def rounds(number, work, temporary):
    """Do something so often; return the state after a tenth and at the end."""
    for done in range(number):
        if done == number // 10:
            early = state(temporary)
        work()
    return early, state(temporary)


def main():
    """Print what grew, and return 1 where something did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--fixes", type=int, default=500)
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="load-"))
    temporary = place / "tmp"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    paths = [str(ROOT / "fixtures" / name) for name in SAMPLES]
    turn = iter(range(asked.scans))
    model = place / "model"
    write_shadowed_bundle(model, layers=4)

    def scan():
        ckpt_doctor.scan([paths[next(turn) % len(paths)]])

    def fix():
        ckpt_doctor.fix(model, output=place / "out", overwrite=True)

    grew = False
    for name, number, work in (("scans", asked.scans, scan), ("repairs", asked.fixes, fix)):
        early, late = rounds(number, work, temporary)
        # Allocators keep some of what they were given; what leaks grows with the rounds.
        grew |= late[0] > early[0] * 1.1 + 20 or late[1:] != early[1:]
        print(
            f"{number:6} {name:8} memory {early[0]:.0f} -> {late[0]:.0f} MiB, open files {early[1]} -> {late[1]}, "
            f"threads {early[2]} -> {late[2]}, temporary files {early[3]} -> {late[3]}",
            flush=True,
        )
    left = sorted(path.name for path in place.iterdir() if path.name.startswith("."))
    print(f"hidden files left: {left or 'none'}")
    shutil.rmtree(place)
    return 1 if grew or left else 0


if __name__ == "__main__":
    sys.exit(main())
