"""How long the write of a repair in place takes for a checkpoint of 10 GB, and that it touches nothing else.

The bundle is a broken fixture with its graph, to which a variable of 10 GB is added as a hole in a sparse file, so that
it costs no disk. It is repaired where it lies; where its data file has a second name (a hard link); and where it is a
symlink into a store, as DVC and the Hugging Face hub keep files. What lies under the other names must stay.

Run: ``python benchmarks/in_place.py [--gigabytes 10]`` (Python with ckpt-doctor and TensorFlow).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ckpt_doctor
from ckpt_doctor.formats import _checksum, _table, open_checkpoint
from ckpt_doctor.formats._bundle import Bundle
from ckpt_doctor.formats.staging import Staged
from ckpt_doctor.formats.tensor_bundle import TensorBundle
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

ROOT = Path(__file__).parents[1]
BROKEN = ROOT / "fixtures" / "tf1_layers" / "trainable" / "model.ckpt-400"
DATA = f"{ROOT / 'fixtures' / 'data' / 'calibration.npz'}[x]"
SHARD = ".data-00000-of-00001"
_FLOAT32 = 1
_ZEROS = memoryview(bytes(1 << 24))


def make(prefix: Path, gigabytes: int) -> None:
    """Write the fixture with a variable of zeros behind its own."""
    for suffix in (SHARD, ".meta"):
        shutil.copy(f"{BROKEN}{suffix}", f"{prefix}{suffix}")
    data = Path(f"{prefix}{SHARD}")
    offset = data.stat().st_size
    pieces = gigabytes * 10**9 // len(_ZEROS)
    size = pieces * len(_ZEROS)
    os.truncate(data, offset + size)
    entry = pb.BundleEntry(
        dtype=_FLOAT32,
        shape=pb.TensorShape(dim=[pb.TensorShape.Dim(size=size // 4)]),
        offset=offset,
        size=size,
        crc32c=_checksum.masked_of(_ZEROS for _ in range(pieces)),
    )
    source = Bundle(str(BROKEN), str(BROKEN))
    items = {b"": source.header, b"zeros": entry.SerializeToString(deterministic=True)}
    items.update((key, record.raw) for key, record in source.records.items())
    Path(f"{prefix}.index").write_bytes(_table.build(sorted(items.items())))
    assert open_checkpoint(prefix).variable("zeros") is not None


def on_disk(path: Path) -> int:
    """Return how many bytes of a file are no hole."""
    return path.stat().st_blocks * 512


def repair(prefix: Path) -> tuple[float, float]:
    """Repair in place; return the seconds of the write, without the reading back between its two steps, and of all."""
    spent = []

    def timed(function):
        def call(*arguments, **options):
            started = time.perf_counter()
            done = function(*arguments, **options)
            spent.append(time.perf_counter() - started)
            return done

        return call

    stage, commit = TensorBundle.stage, Staged.commit
    TensorBundle.stage, Staged.commit = timed(stage), timed(commit)
    try:
        started = time.perf_counter()
        result = ckpt_doctor.fix(prefix, data=DATA, in_place=True)
        total = time.perf_counter() - started
    finally:
        TensorBundle.stage, Staged.commit = stage, commit
    assert result.complete
    return sum(spent), total


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=int, default=10)
    gigabytes = parser.parse_args().gigabytes
    print(f"{'data file':<28}{'write':>10}{'all':>10}{'added to the file':>22}  the other name")
    for way in ("alone", "with a hard link", "a symlink into a store"):
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "model"
            make(prefix, gigabytes)
            data, other = Path(f"{prefix}{SHARD}"), Path(folder) / "store"
            if way == "with a hard link":
                other.hardlink_to(data)
            elif way == "a symlink into a store":
                data.rename(other)
                data.symlink_to(other)
            length, blocks = data.stat().st_size, on_disk(data)
            kept = other.stat() if other.exists() else None
            write, total = repair(prefix)
            verdict = "none"
            if kept is not None:
                now = other.stat()
                same = (now.st_ino, now.st_size, now.st_mtime_ns) == (kept.st_ino, kept.st_size, kept.st_mtime_ns)
                verdict = "as it was" if same else "CHANGED"
            else:
                assert on_disk(data) - blocks < 1 << 20, "the data were written again"
            grown = data.stat().st_size - length
            print(f"{way:<28}{write:>8.3f} s{total:>8.1f} s{grown:>16,} bytes  {verdict}", flush=True)


if __name__ == "__main__":
    main()
