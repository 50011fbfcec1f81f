"""Arrays in files: `.npy`, `.npz`, HDF5. Large ones stay on disk."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats.temporary import TemporaryFolder

# Compressed members above this are unpacked to a temporary file, not held in memory.
_IN_MEMORY = 64 * 10**6
_CHUNK = 1 << 20
# What NumPy, zipfile and h5py were seen to raise on damaged files: the header of an `.npy` is a Python literal, which
# NumPy takes apart with `tokenize`; a member of an `.npz` may be encrypted or packed in a way that zipfile lacks.
_RAISED = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError,
)  # fmt: skip


def read_arrays(where: str, path: Path, key: str | None, kept: ExitStack, *, several: bool = False) -> dict[str, Any]:
    """Return the arrays of a file by name; a `.npy` has one without a name.

    Args:
        where: The option and what the user gave, for messages.
        path: The file.
        key: The only array that is wanted, or None.
        kept: Frees files and temporary copies when it is closed.
        several: Whether an HDF5 file may give several arrays, as an archive does.

    Returns:
        Array-likes with `shape`, `dtype` and indexing: what is large is not read yet.

    Raises:
        BadRequest: The file cannot be read, or has no such array.
    """
    try:
        with _without_advice():
            if path.suffix.lower() == ".npy":
                found: dict[str, Any] = {"": _npy(path, kept)}
            elif path.suffix.lower() == ".npz":
                found = _npz(path, key, kept)
            else:
                key = key.strip("/") if key is not None else None
                found = _hdf5(where, path, key, kept, several=several)
    except _RAISED as error:
        # NumPy pickles arrays of Python objects, and pickles run code; text of pandas comes as such.
        advice = "; save text as x.astype(str)" if "allow_pickle" in str(error) else ""
        raise BadRequest(f"{where}: {path} cannot be read as {path.suffix}: {error}{advice}") from error
    if key is not None and key not in found:
        raise BadRequest(f"{where}: {path.name} has no array {key!r}; it has {listed(found)}")
    return found if key is None else {key: found[key]}


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep NumPy from advising to save a file of Python 2 again (numpy/lib/_format_impl.py: `_read_array_header`)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Reading `\.npy` or `\.npz` file required additional header", UserWarning)
        yield


def whole(where: str, array: Any) -> Array:
    """Return all of an array that may still be in its file.

    Raises:
        BadRequest: The file cannot be read to the end.
    """
    try:
        value: Array = np.asarray(array[...])
    except (OSError, ValueError) as error:
        raise BadRequest(f"{where}: cannot be read: {error}") from error
    return value


def listed(arrays: Mapping[str, Any]) -> str:
    """Return names and shapes, for messages."""
    return ", ".join(f"{name or 'one array'} {tuple(array.shape)}" for name, array in arrays.items()) or "nothing"


def _npz(path: Path, key: str | None, kept: ExitStack) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # In this order: NumPy leaves a file open that is not an archive.
    with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            if key is not None and name != key:
                found[name] = _Lazy(path, name)
                continue
            member = _member(members, name)
            if member.file_size <= _IN_MEMORY:
                _check(members, member, name)
                found[name] = archive[name]
                continue
            folder = kept.enter_context(TemporaryFolder())
            copy = Path(folder) / "array.npy"
            with members.open(member) as source, copy.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
            found[name] = _npy(copy, kept)
    return found


def _member(members: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Return the member that NumPy calls so: it leaves the extension out, where there is one."""
    return next(info for info in members.infolist() if info.filename in (f"{name}.npy", name))


def _check(members: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> None:
    """Refuse a member that is not an array, or whose array is larger than it.

    NumPy reads the former as one piece of the size that it claims, and gives the latter its memory before it reads
    (numpy/lib/_npyio_impl.py: `NpzFile.__getitem__`, numpy/lib/_format_impl.py: `read_array`).

    Raises:
        ValueError: It is one of them, or its header is damaged.
    """
    header = _header(members, member)
    if header is None:
        raise ValueError(f"its member {name} is not a NumPy array")
    shape, dtype = header
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > member.file_size:
        raise ValueError(f"its member {name} claims {claimed:,} bytes of values, and has {member.file_size:,} in all")


def _header(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Return shape and type of an array in an archive; None for a member that is not an array."""
    with members.open(member) as source:
        magic = source.read(np.lib.format.MAGIC_LEN)
        if not magic.startswith(np.lib.format.MAGIC_PREFIX):
            return None
        # Version 3 differs from 2 in the encoding of the names of fields.
        is_first = magic[-2:] == b"\x01\x00"
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(source)
    return shape, dtype


def _npy(path: Path, kept: ExitStack) -> Any:
    mapped: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if not mapped.ndim or not mapped.flags.c_contiguous:
        return mapped  # samples do not lie one after the other
    return _Rows(kept.enter_context(path.open("rb", buffering=0)), mapped.offset, mapped.shape, mapped.dtype)


class _Rows:
    """An array in a file, of which the samples that are asked for are read.

    Not mapped: the pages of a map count as the process's memory, and the process ends when the file is cut meanwhile.
    """

    def __init__(self, file: io.FileIO, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file = file
        self.offset = offset
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, chosen: slice | EllipsisType | Array) -> Array:
        numbers = np.arange(self.shape[0])[chosen]
        value: Array = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        if not value.size:
            return value
        target = value.reshape(-1).view(np.uint8).data
        size = len(target) // len(numbers)
        # Samples that follow each other are read at once.
        starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            self.file.seek(self.offset + int(numbers[start]) * size)
            piece = target[start * size : end * size]
            while piece:
                count = self.file.readinto(piece)
                if not count:
                    raise BadRequest(f"{self.file.name}: ends before its last sample; was it changed meanwhile?")
                piece = piece[count:]
        return value


class _Dataset:
    """A dataset of HDF5, which itself takes indices in rising order only."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.shape = tuple(dataset.shape)
        self.dtype = dataset.dtype

    def __getitem__(self, chosen: slice | EllipsisType | Array) -> Array:
        if isinstance(chosen, (slice, EllipsisType)):
            part: Array = self.dataset[chosen]
            return part
        value: Array = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        value[np.argsort(chosen, kind="stable")] = self.dataset[np.sort(chosen)]
        return value


class _Lazy:
    """An array of an archive that is only named, not wanted: its shape is read if a message asks for it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        try:
            with _without_advice(), zipfile.ZipFile(self.path) as members:
                header = _header(members, _member(members, self.name))
        except _RAISED:
            return ()  # It is damaged, and not what was asked for.
        return () if header is None else header[0]


def _hdf5(where: str, path: Path, key: str | None, kept: ExitStack, *, several: bool) -> dict[str, Any]:
    import h5py

    file = kept.enter_context(h5py.File(path, "r"))
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = _Dataset(item)

    file.visititems(visit)
    if key is not None:
        return {key: found[key]} if key in found else found
    if len(found) > 1 and not several:
        raise BadRequest(f"{where}: {path.name} holds {listed(found)}; choose one with {path}[DATASET]")
    return found
