"""Tensors that a later run still reads: in memory up to a limit, beyond it on disk."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array

# The contract's default of --cache-memory.
DEFAULT_LIMIT = 2 * 10**9

# Smaller arrays stay where they are: pages of their own would cost more than they save.
_WORTH_PAGES = 1 << 16


class LiveTensors:
    """A table of arrays by batch and tensor, of which at most `limit` bytes lie in memory.

    What does not fit goes to a temporary folder, which is removed on leaving the context.

    Args:
        limit: Bytes of arrays in memory.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.held = 0
        self.spilled = 0
        self._memory: dict[tuple[int, str], Array] = {}
        self._disk: dict[tuple[int, str], tuple[Path, np.dtype[Any], tuple[int, ...]]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> LiveTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.clear()
        self._disk.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def put(self, batch: int, tensor: str, value: Array, *, beside: int = 0) -> None:
        """Keep an array.

        Args:
            batch: Number of the batch.
            tensor: Name of the tensor.
            value: The array, of any shape; it is copied.
            beside: Bytes of other arrays in memory that count towards the limit as well.
        """
        key = (batch, tensor)
        self.drop(batch, tensor)
        if self.held + value.nbytes + beside <= self.limit:
            self._memory[key] = _in_own_pages(value)
            self.held += value.nbytes
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ckpt-doctor-")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}"
        # Raw bytes, because bfloat16 does not survive NumPy's own file format.
        np.ascontiguousarray(value).tofile(path)
        self._disk[key] = (path, value.dtype, value.shape)
        self.spilled += value.nbytes

    def get(self, batch: int, tensor: str) -> Array:
        """Return an array that was kept."""
        key = (batch, tensor)
        if key in self._memory:
            return self._memory[key]
        path, dtype, shape = self._disk[key]
        value: Array = np.fromfile(path, dtype).reshape(shape)
        return value

    def drop(self, batch: int, tensor: str) -> None:
        """Forget an array; one that is not there is no error."""
        key = (batch, tensor)
        if key in self._memory:
            self.held -= self._memory.pop(key).nbytes
        if key in self._disk:
            self._disk.pop(key)[0].unlink()


def _in_own_pages(value: Array) -> Array:
    """Return a copy that lies in pages of its own.

    What TensorFlow hands out lies in the regions of its allocator, which never give memory back: arrays that stay
    among those that go leave holes that the next run cannot use, a third of all that is held.
    """
    if value.nbytes < _WORTH_PAGES or value.dtype.hasobject:
        return value
    pages = mmap.mmap(-1, value.nbytes, **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    copy: Array = np.ndarray(value.shape, value.dtype, buffer=pages)
    np.copyto(copy, value)
    return copy


# Shared pages, Python's default where there is a choice, are files in memory and slow to come by.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
