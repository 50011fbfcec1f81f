"""Damaged files of every format: no scan of one may end in anything but a verdict or a `CkptDoctorError`.

Copies of the fixtures are damaged at random (bits, bytes, cuts, zeroed, swapped and repeated blocks, extreme numbers;
in tables and archives also below checksums that are made right again), scanned, and every value is read. Each fixture
has a process of its own, with limits on memory and time, so that a crash or a hang of a library is found as well. The
same seed damages alike.

Run: ``python benchmarks/fuzz_formats.py [--each 2000] [--seed 0] [--only NAME]``; exit code 1 if anything escaped.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEMORY_BYTES = 4 << 30
SECONDS_A_FILE = 60
EXTREMES = (b"\xff" * 8, b"\0" * 8, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\0\0\0\x80", b"\x01")


def fixtures() -> dict[str, tuple[Path, str]]:
    """Return name to the folder of every sample and, in it, the path that is scanned."""
    found: dict[str, tuple[Path, str]] = {}
    formats = ROOT / "fixtures" / "formats"
    for sample in ("bundle_dtypes", "bundle_module", "bundle_objects", "bundle_shards", "tf1_bundle", "v1"):
        found[sample] = formats / sample, "sample"
    found["v1_shards"] = formats / "v1_shards", "sample-?????-of-00002"
    for sample in ("saved_model_keras3", "saved_model_tf1", "saved_model_tf2"):
        found[sample] = formats / sample, "sample"
    for record in sorted((formats / "keras").glob("*.expected.json")):
        name = record.name.removesuffix(".expected.json")
        found[name] = formats / "keras", name
    return found


def copied(name: str, folder: Path) -> tuple[str, list[Path]]:
    """Copy a sample into a folder; return the path to scan and the files that may be damaged."""
    source, path = fixtures()[name]
    stem = path.split(".")[0] if path.endswith(".json") else path.split("-")[0] if source.name != "keras" else path
    for entry in source.iterdir():
        if entry.name.startswith(stem) and "expected" not in entry.name:
            (shutil.copytree if entry.is_dir() else shutil.copyfile)(entry, folder / entry.name)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return str(folder / path), files


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return damaged bytes."""
    data = bytearray(content)
    size = max(1, len(data))

    def block() -> tuple[int, int]:
        start = chance.randrange(size)
        return start, start + min(chance.choice((1, 4, 8, 16, 64, 512, 4096)), size - start)

    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        kind = chance.randrange(8)
        start, end = block()
        if kind == 0:
            data[start : start + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            data[start : start + 1] = bytes([data[start] ^ 1 << chance.randrange(8)]) if start < len(data) else b""
        elif kind == 2:
            data = data[:start]
        elif kind == 3:
            data[start:end] = bytes(end - start)
        elif kind == 4:
            other = chance.randrange(size)
            length = end - start
            data[start:end], data[other : other + length] = data[other : other + length], data[start:end]
        elif kind == 5:
            extreme = chance.choice(EXTREMES)
            data[start : start + len(extreme)] = extreme
        elif kind == 6:
            data[start:end] = data[start:end] * 2
        else:
            data[start:end] = b""
        size = max(1, len(data))
    return bytes(data)


def below_checksums(content: bytes, chance: random.Random) -> bytes:
    """Return a table or an archive whose content is damaged and whose checksums are right; other files as they are."""
    from ckpt_doctor.formats import _table

    if content.startswith(b"PK"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as copy:
            chosen = chance.choice(archive.namelist())
            for info in archive.infolist():
                data = archive.read(info)
                copy.writestr(info.filename, damaged(data, chance) if info.filename == chosen else data)
        return out.getvalue()
    if content.endswith(_table.MAGIC):
        items = list(_table.Table(_InMemory(content)).items())
        number = chance.randrange(len(items))
        key, value = items[number]
        items[number] = (damaged(key, chance), value) if chance.random() < 0.2 else (key, damaged(value, chance))
        return _table.build(sorted(dict(items).items()))
    return damaged(content, chance)


class _InMemory:
    path = "memory"

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = memoryview(data)

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


def look(path: str) -> str:
    """Scan a checkpoint and read every value of it; return what came of it."""
    import ckpt_doctor
    from ckpt_doctor.errors import CkptDoctorError

    result = ckpt_doctor.scan([path])
    try:
        checkpoint = ckpt_doctor.open_checkpoint(path)
        for variable in checkpoint.variables:
            try:
                variable.read()
            except CkptDoctorError:  # noqa: PERF203 - each may fail alone
                continue
    except CkptDoctorError:
        pass
    if internal := [error.message for error in result.errors if "internal error" in error.message]:
        raise AssertionError(internal[0])
    codes = sorted({finding.rule for checkpoint in result.checkpoints for finding in checkpoint.findings})
    return " ".join(code for code in codes if code.startswith("CK")) or ("error" if result.errors else "unnoticed")


def work(name: str, first: int, last: int, seed: int) -> None:
    """Damage and scan one sample, and say of each file how it went."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as place:
        path, files = copied(name, Path(place))
        whole = {file: file.read_bytes() for file in files}
        for number in range(first, last):
            chance = random.Random(f"{seed} {name} {number}")
            file = chance.choice(files)
            change: Callable[[bytes, random.Random], bytes] = chance.choice((damaged, below_checksums))
            file.write_bytes(change(whole[file], chance))
            print("start", number, flush=True)
            try:
                print("done", number, look(path), flush=True)
            except Exception as error:  # noqa: BLE001 - what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = " ".join(str(error).split())[:200]
                print(
                    "escaped", number, f"{type(error).__name__}: {said} ({where.filename}:{where.lineno})", flush=True
                )
            file.write_bytes(whole[file])


def watched(name: str, each: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run the work on one sample in processes of its own; return outcomes, and what escaped."""
    outcomes: Counter[str] = Counter()
    escaped: list[str] = []
    following = 0
    while following < each:
        arguments = [sys.executable, __file__, "--work", name, str(following), str(each), "--seed", str(seed)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=_feed, args=(process.stdout, lines), daemon=True).start()
        threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=SECONDS_A_FILE)
            except queue.Empty:
                process.kill()
                escaped.append(f"{name} {following}: runs for more than {SECONDS_A_FILE} seconds")
                break
            if line is None:
                process.wait()
                if process.returncode:
                    escaped.append(f"{name} {following}: ends with {process.returncode}")
                break
            kind, number, *rest = line.split(None, 2)
            following = int(number)
            if kind == "done":
                outcomes[rest[0].strip()] += 1
            elif kind == "escaped":
                outcomes["escaped"] += 1
                escaped.append(f"{name} {number}: {rest[0].strip()}")
        following += 1
    return outcomes, escaped


def _feed(stream: io.TextIOBase, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _drain(stream: io.TextIOBase) -> None:
    for _ in stream:
        pass


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2000, help="damaged files of each sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="samples whose name begins so")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], int(options.work[1]), int(options.work[2]), options.seed)
        return 0
    total: Counter[str] = Counter()
    found: list[str] = []
    for name in fixtures():
        if name.startswith(options.only):
            outcomes, escaped = watched(name, options.each, options.seed)
            print(f"{name}: {dict(outcomes.most_common())}", flush=True)
            for line in escaped:
                print(f"  {line}", flush=True)
            total += outcomes
            found += escaped
    print(f"{sum(total.values())} damaged files: {dict(total.most_common())}; {len(found)} escaped")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
