"""Arrays in files: `.npy`, `.npz`, HDF5. Large ones stay on disk."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest

# Compressed members above this are unpacked to a temporary file and mapped, not held in memory.
_IN_MEMORY = 256 * 10**6
_CHUNK = 1 << 20


def read_arrays(argument: str, path: Path, key: str | None, kept: ExitStack) -> dict[str, Any]:
    """Return the arrays of a file by name; a `.npy` has one without a name.

    Args:
        argument: What the user gave, for messages.
        path: The file.
        key: The only array that is wanted, or None.
        kept: Frees files and temporary copies when it is closed.

    Returns:
        Array-likes with `shape`, `dtype` and indexing: memory maps and HDF5 datasets are not read yet.

    Raises:
        BadRequest: The file cannot be read, or has no such array.
    """
    try:
        if path.suffix == ".npy":
            found: dict[str, Any] = {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        elif path.suffix == ".npz":
            found = _npz(path, key, kept)
        else:
            found = _hdf5(argument, path, key, kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise BadRequest(f"--data {argument}: {path} cannot be read as {path.suffix}: {error}") from error
    if key is not None and key not in found:
        raise BadRequest(f"--data {argument}: {path.name} has no array {key!r}; it has {listed(found)}")
    return found if key is None else {key: found[key]}


def listed(arrays: Mapping[str, Any]) -> str:
    """Return names and shapes, for messages."""
    return ", ".join(f"{name or 'one array'} {tuple(array.shape)}" for name, array in arrays.items()) or "nothing"


def _npz(path: Path, key: str | None, kept: ExitStack) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # In this order: NumPy leaves a file open that is no archive.
    with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            member = next((info for info in members.infolist() if info.filename == f"{name}.npy"), None)
            if member is None or member.file_size <= _IN_MEMORY or (key is not None and name != key):
                found[name] = _Lazy(path, name) if key is not None and name != key else archive[name]
                continue
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-doctor-"))
            copy = Path(folder) / "array.npy"
            with members.open(member) as source, copy.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
            found[name] = np.load(copy, mmap_mode="r", allow_pickle=False)
    return found


class _Lazy:
    """An array of an archive that is only named, not wanted: its shape is read if a message asks for it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        with np.load(self.path, allow_pickle=False) as archive:
            value: Array = archive[self.name]
            return value.shape


def _hdf5(argument: str, path: Path, key: str | None, kept: ExitStack) -> dict[str, Any]:
    import h5py

    file = kept.enter_context(h5py.File(path, "r"))
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item

    file.visititems(visit)
    if key is not None:
        key = key.strip("/")
        return {key: found[key]} if key in found else found
    if len(found) > 1:
        raise BadRequest(f"--data {argument}: {path.name} holds {listed(found)}; say which is meant: {path}[DATASET]")
    return found
