"""An HDF5 file is opened once for all that is asked of it, and closed when nobody asks any more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_doctor import scan
from ckpt_doctor.checkpoint import Checkpoint, same_values
from ckpt_doctor.comparison import diff
from ckpt_doctor.errors import BadRequest, CkptDoctorError
from ckpt_doctor.formats import _hdf5_file, _hdf5_objects, _streams, _zip, format_of, open_checkpoint
from ckpt_doctor.formats._descriptors import MOST_OPEN
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.listing import list_variables
from tests.formats.keras_samples import SAMPLES

LAYERS = 30


def legacy(path: Path, layers: int = LAYERS) -> Path:
    """Write a Keras 2 weights file of many batch-norm layers."""
    chance = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        names = [f"bn_{number}" for number in range(layers)]
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = b"tensorflow"
        for name in names:
            group = file.create_group(name)
            weights = [f"{name}/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight in weights:
                group[weight] = chance.uniform(0.5, 1.5, 8).astype(np.float32)
            group[f"{name}/kernel:0"] = chance.normal(size=(3, 3, 64, 64)).astype(np.float32)
    return path


def bare(path: Path) -> Path:
    """Write a Keras 3 weights file of many batch-norm layers."""
    chance = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(LAYERS):
            group = file.create_group(f"layers/batch_normalization_{number}/vars")
            group.attrs["name"] = f"bn_{number}"
            for place in range(4):
                group[str(place)] = chance.uniform(0.5, 1.5, 8).astype(np.float32)
    return path


def archive(path: Path, compression: int) -> Path:
    """Write a Keras 3 archive of the same."""
    weights = bare(path.with_name("inner.weights.h5"))
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        file.writestr("config.json", '{"class_name": "Sequential", "config": {"name": "m", "layers": []}}')
        file.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def sharded(path: Path) -> Path:
    """Copy a Keras 3 sharded store."""
    for file in SAMPLES.glob("keras3_sharded*"):
        if "expected" not in file.name:
            shutil.copyfile(file, path.with_name(file.name))
    return path.with_name("keras3_sharded.weights.json")


KINDS: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    # What makes it; how many HDF5 files and how many archives it consists of.
    "legacy": (lambda folder: legacy(folder / "m.h5"), 1, 0),
    "bare": (lambda folder: bare(folder / "m.weights.h5"), 1, 0),
    "stored": (lambda folder: archive(folder / "m.keras", zipfile.ZIP_STORED), 1, 1),
    "deflated": (lambda folder: archive(folder / "m.keras", zipfile.ZIP_DEFLATED), 1, 1),
    "sharded": (lambda folder: sharded(folder / "x"), 3, 0),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, int]:
    make, files, archives = KINDS[request.param]
    return make(tmp_path), files, archives


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls that open a file."""
    counts: Counter[str] = Counter()
    open_h5, open_zip = h5py.h5f.open, zipfile.ZipFile.__init__

    def counted_h5(*arguments: Any, **options: Any) -> Any:
        counts["hdf5"] += 1
        return open_h5(*arguments, **options)

    def counted_zip(*arguments: Any, **options: Any) -> None:
        counts["zip"] += 1
        open_zip(*arguments, **options)

    monkeypatch.setattr(h5py.h5f, "open", counted_h5)
    monkeypatch.setattr(zipfile.ZipFile, "__init__", counted_zip)
    return counts


def test_scan_opens_a_file_once(kind: tuple[Path, int, int], opens: Counter[str]) -> None:
    path, files, archives = kind
    result = scan([path])
    assert not result.errors
    assert result.checkpoints[0].variables
    assert (opens["hdf5"], opens["zip"]) == (files, archives)


def test_so_does_the_scan_of_a_folder(tmp_path: Path, opens: Counter[str]) -> None:
    for name in ("a.h5", "b.h5", "c.h5"):
        legacy(tmp_path / name, layers=2)
    bare(tmp_path / "d.weights.h5")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros(3)
    opens.clear()
    assert len(scan([tmp_path], jobs=3).checkpoints) == 4
    assert opens["hdf5"] == 5


def test_ls_and_diff_open_a_file_once(kind: tuple[Path, int, int], opens: Counter[str], tmp_path: Path) -> None:
    path, files, archives = kind
    assert list_variables(path, stats=True).variables
    assert (opens["hdf5"], opens["zip"]) == (files, archives)
    opens.clear()
    other = legacy(tmp_path / "other.h5", layers=2)
    opens.clear()
    assert not diff(path, other).equal
    assert (opens["hdf5"], opens["zip"]) == (files + 1, archives)


def test_a_damaged_file_is_tried_once(tmp_path: Path, opens: Counter[str]) -> None:
    path = legacy(tmp_path / "m.h5", layers=2)
    content = bytearray(path.read_bytes())
    content[96:400] = bytes(304)
    path.write_bytes(content)
    opens.clear()
    (checkpoint,) = scan([path]).checkpoints
    assert [finding.rule for finding in checkpoint.findings] == ["CK104"]
    assert opens["hdf5"] == 1


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_fails_its_checksum_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: int
) -> None:
    path = archive(tmp_path / "m.keras", compression)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") - 3] ^= 1
    path.write_bytes(content)
    members: Counter[str] = Counter()
    real = _zip.Archive.pieces
    monkeypatch.setattr(_zip.Archive, "pieces", lambda self, info: members.update([info.filename]) or real(self, info))
    (checkpoint,) = scan([path]).checkpoints
    assert "CK103" in {finding.rule for finding in checkpoint.findings}
    assert members["model.weights.h5"] == 1


def test_no_value_is_read_more_than_twice(kind: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    real = _hdf5_file.read_value

    def counted(file: Any, described: Any) -> Any:
        reads[described.path] += 1
        return real(file, described)

    monkeypatch.setattr(_hdf5_file, "read_value", counted)
    result = scan([kind[0]])
    assert len(reads) == result.checkpoints[0].variables
    assert max(reads.values()) <= 2


def test_no_small_array_is_looked_up_twice(kind: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = h5py.h5o.open
    looked_up: Counter[int] = Counter()

    def counted(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        looked_up[isinstance(found, h5py.h5d.DatasetID)] += 1
        return found

    monkeypatch.setattr(h5py.h5o, "open", counted)
    scan([kind[0]])
    by_scan = looked_up[True]
    variables = open_checkpoint(kind[0]).variables
    # What is not remembered is read, and looked up, twice.
    large = sum(variable.nbytes > _hdf5_file._SMALL_BYTES for variable in variables)
    assert by_scan == len(variables) + large


def test_an_array_that_is_looked_up_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = legacy(tmp_path / "m.h5", layers=2)
    kept = [variable.read() for variable in open_checkpoint(path).variables]
    monkeypatch.setattr(_hdf5_objects, "_MOST_KEPT", 1)
    looked_up = [variable.read() for variable in open_checkpoint(path).variables]
    assert len(kept) == 10
    assert all(same_values(one, other) for one, other in zip(kept, looked_up, strict=True))


def test_a_value_that_is_remembered_is_the_readers_own(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(legacy(tmp_path / "m.h5", layers=1))
    variable = checkpoint.variables[0]
    first = variable.read()
    kept = first.copy()
    first[:] = 0
    assert same_values(variable.read(), kept)


def descriptors() -> int:
    """Return how many descriptors the process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists descriptors here")


@needs_proc
def test_nothing_stays_open(tmp_path: Path) -> None:
    paths = [legacy(tmp_path / "m.h5", layers=2), archive(tmp_path / "m.keras", zipfile.ZIP_STORED)]
    (tmp_path / "cut.h5").write_bytes(paths[0].read_bytes()[:-50])
    (tmp_path / "cut.keras").write_bytes(paths[1].read_bytes()[:-50])
    paths += [tmp_path / "cut.h5", tmp_path / "cut.keras"]
    scan(paths)
    before = descriptors()
    for _ in range(5):  # What one of them left open would be counted.
        scan(paths)
    assert descriptors() == before
    assert list_variables(paths[0])
    assert descriptors() == before
    discover([tmp_path])
    assert descriptors() == before


@needs_proc
def test_a_checkpoint_that_is_dropped_is_closed_at_once(kind: tuple[Path, int, int]) -> None:
    import gc

    open_checkpoint(kind[0])  # What is imported and opened on the way stays.
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        checkpoint = open_checkpoint(kind[0])
        list(format_of(checkpoint).verify(checkpoint))
        assert descriptors() > before or "deflated" in str(kind)
        del checkpoint
        assert descriptors() == before
    finally:
        gc.enable()


@needs_proc
def test_many_checkpoints_at_a_time_hold_few_descriptors(tmp_path: Path) -> None:
    first = legacy(tmp_path / "m.h5", layers=1)
    for number in range(3 * MOST_OPEN):
        shutil.copyfile(first, tmp_path / f"m{number}.h5")
    before = descriptors()
    held = [open_checkpoint(tmp_path / f"m{number}.h5") for number in range(3 * MOST_OPEN)]
    assert descriptors() <= before + MOST_OPEN
    expected = held[-1].variables[-1].read()
    for checkpoint in held:
        assert same_values(checkpoint.variables[-1].read(), expected)
    assert descriptors() <= before + MOST_OPEN


def changed_copy(path: Path) -> Path:
    """Return a copy of a file in which all vectors are sevens."""
    copy = path.with_name("copy.h5")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        for name in [variable.name for variable in open_checkpoint(path).variables if variable.shape == (8,)]:
            file[name][...] = 7
    return copy


def h5_vectors(checkpoint: Checkpoint) -> Iterator[Any]:
    return (variable.read() for variable in checkpoint.variables if variable.shape == (8,))


def test_a_file_that_is_replaced_is_read_anew_and_the_old_one_stays_itself(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", layers=2)
    old = open_checkpoint(path)
    with h5py.File(path) as file:
        stored = file["bn_0/bn_0/gamma:0"][()]
    changed_copy(path).replace(path)
    assert all((value == 7).all() for value in h5_vectors(open_checkpoint(path)))
    assert same_values(next(h5_vectors(old)), stored)


def test_a_file_that_is_replaced_between_recognising_and_reading_is_read_anew(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", layers=2)
    found = discover([path])
    changed_copy(path).replace(path)
    assert all((value == 7).all() for value in h5_vectors(open_checkpoint(found.checkpoints[0])))


def test_a_descriptor_that_was_given_back_is_taken_again_for_the_same_file_only(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", layers=2)
    checkpoint = open_checkpoint(path)
    handle = checkpoint.attributes["file"]._file.texts._handle
    handle.release()
    assert handle._file is None
    assert next(h5_vectors(checkpoint)).shape == (8,)
    handle.release()
    changed_copy(path).replace(path)
    with pytest.raises(BadRequest, match="was changed while it was read"):
        list(h5_vectors(checkpoint))
    path.unlink()
    with pytest.raises(BadRequest, match="was removed while it was read"):
        handle.readinto(0, memoryview(bytearray(8)))


def test_threads_share_a_checkpoint(kind: tuple[Path, int, int]) -> None:
    expected = {v.name: v.read() for v in open_checkpoint(kind[0]).variables}
    checkpoint = open_checkpoint(kind[0])
    wrong: list[str] = []

    def read() -> None:
        for name, value in expected.items():
            variable = checkpoint.variable(name)
            if variable is None or not same_values(variable.read(), value):
                wrong.append(name)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


FAILING = """
import gc
from ckpt_doctor.formats._hdf5_guard import GuardedStream
real, left = GuardedStream._read, {left}
def fail(*arguments):
    global left
    left -= 1
    if left < 0: raise {kind}('planted')
    return real(*arguments)
GuardedStream._read = fail
try: [variable.read() for variable in ckpt_doctor.open_checkpoint(path).variables]
except {kind} as error: raised = error
assert raised
gc.collect()
"""


@pytest.mark.parametrize(
    "code",
    [
        "kept = ckpt_doctor.open_checkpoint(path); kept.variables[0].read()",
        *(
            FAILING.format(left=left, kind=kind)
            for left in (0, 2, 5, 100)
            for kind in ("TypeError", "ZeroDivisionError")
        ),
        # Damaged: HDF5 itself does not open it.
        "content = bytearray(open(path, 'rb').read())\n"
        "content[96:400] = bytes(304)\n"
        "open(path, 'wb').write(content)\n"
        "try: ckpt_doctor.open_checkpoint(path)\n"
        "except ckpt_doctor.errors.UnreadableCheckpoint as error: raised = error; raised.itself = error",
    ],
)
def test_the_interpreter_ends_well(tmp_path: Path, code: str) -> None:
    path = legacy(tmp_path / "m.h5")
    script = f"import ckpt_doctor, ckpt_doctor.errors\npath = {str(path)!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = legacy(tmp_path / name) if name == "m.h5" else archive(tmp_path / name, zipfile.ZIP_STORED)

    class Failing(_streams.io.FileIO):
        left = 5

        def readinto(self, buffer: Any) -> int:
            Failing.left -= 1
            if Failing.left < 0:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    monkeypatch.setattr(_streams.io, "FileIO", Failing)
    with pytest.raises(BadRequest, match="cannot be read: Input/output error"):
        open_checkpoint(path)
    result = scan([path])
    assert not result.checkpoints
    assert "Input/output error" in result.errors[0].message
    assert issubclass(BadRequest, CkptDoctorError)
