"""Tensors that a later run still reads: in memory up to a limit, beyond it on disk."""

from __future__ import annotations

import math
import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.formats.temporary import TemporaryFolder
from ckpt_doctor.options import DataOptions

DEFAULT_LIMIT = DataOptions.cache_memory

# What TensorFlow hands out lies in the regions of its allocator, which never give memory back: arrays that stay among
# those that go leave holes that no later run can use, a fourth to a third of all that is held (ResNet-50). Where the
# limit leaves room for that they stay, since a copy of everything costs a fifth of a run; elsewhere they are copied.
_ROOMY = 0.6
# Smaller arrays always stay: pages of their own would cost more than they save.
_WORTH_PAGES = 1 << 16


class LiveTensors:
    """A table of arrays by batch and tensor, of which at most `limit` bytes lie in memory.

    What does not fit goes to a temporary folder, which is removed on leaving the context.

    Args:
        limit: Bytes of arrays in memory.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.held = self.most_held = 0
        self.spilled = 0
        self._memory: dict[tuple[int, str], Array] = {}
        self._disk: dict[tuple[int, str], tuple[Path, np.dtype[Any], tuple[int, ...]]] = {}
        self._folder: TemporaryFolder | None = None
        self._files = 0
        self._free: list[Path] = []

    def __enter__(self) -> LiveTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.clear()
        self._disk.clear()
        self._free.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def put(self, batch: int, tensor: str, value: Array, *, beside: int = 0, to_come: int = 0) -> None:
        """Keep an array.

        Args:
            batch: Number of the batch.
            tensor: Name of the tensor.
            value: The array, of any shape; nothing may write to it any more.
            beside: Bytes of other arrays in memory that count towards the limit as well.
            to_come: How many arrays like this one will be kept beside it.
        """
        key = (batch, tensor)
        self.drop(batch, tensor)
        size = _size(value)
        if self.held + size + beside <= self.limit:
            roomy = self.held + size * (1 + to_come) <= _ROOMY * self.limit
            self._memory[key] = value if roomy else _in_own_pages(value)
            self.held += size
            self.most_held = max(self.most_held, self.held)
            return
        if self._folder is None:
            self._folder = TemporaryFolder()
        if self._free:
            path = self._free.pop()
        else:
            self._files += 1
            path = Path(self._folder.name) / f"{self._files}"
            path.touch()
        # Raw bytes, because bfloat16 does not survive NumPy's own file format. An array of text is made of pointers.
        with path.open("r+b") as file:
            file.write(pickle.dumps(value) if value.dtype.hasobject else _raw(np.ascontiguousarray(value)))
        self._disk[key] = (path, value.dtype, value.shape)
        self.spilled += size

    def get(self, batch: int, tensor: str) -> Array:
        """Return an array that was kept."""
        key = (batch, tensor)
        if key in self._memory:
            return self._memory[key]
        path, dtype, shape = self._disk[key]
        if dtype.hasobject:
            text: Array = pickle.loads(path.read_bytes())
            return text
        value = _in_pages(shape, dtype)
        left = _raw(value)
        with path.open("rb", buffering=0) as file:
            while left:
                left = left[file.readinto(left) :]
        return value

    def drop(self, batch: int, tensor: str) -> None:
        """Forget an array; one that is not there is no error."""
        key = (batch, tensor)
        if key in self._memory:
            self.held -= _size(self._memory.pop(key))
        if key in self._disk:
            # Written over and not removed: to free its blocks would cost more than all reading and writing.
            self._free.append(self._disk.pop(key)[0])


def _size(value: Array) -> int:
    """Return how many bytes an array takes, with the text that it points to."""
    return value.nbytes + (sum(len(text) for text in value.flat) if value.dtype.hasobject else 0)


def _raw(value: Array) -> memoryview:
    return value.reshape(-1).view(np.uint8).data


def _in_own_pages(value: Array) -> Array:
    """Return a copy whose memory goes back to the system with it."""
    if value.nbytes < _WORTH_PAGES or value.dtype.hasobject:
        return value
    copy = _in_pages(value.shape, value.dtype)
    np.copyto(copy, value)
    return copy


def _in_pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array in pages of its own: large ones where there are, which cost a tenth to come by."""
    pages = mmap.mmap(-1, max(math.prod(shape) * dtype.itemsize, 1), **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    array: Array = np.ndarray(shape, dtype, buffer=pages)
    return array


# Shared pages, Python's default where there is a choice, are files in memory and slow to come by.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
