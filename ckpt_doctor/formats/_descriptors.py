"""Few descriptors for many files: those read last hold one, the others take it again when they are read.

A program may keep thousands of checkpoints, and a checkpoint may consist of thousands of shards.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

MOST_OPEN = 64  # Far below the 256 descriptors that a process has by default on macOS.


class Releasable(Protocol):
    """A file that can give its descriptor back."""

    def release(self) -> None:
        """Give the descriptor back until the next read; not while one goes on."""
        ...


class _Recent:
    """The files that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, weakref.ref[Releasable]] = {}
        self._latest: weakref.ref[Releasable] | None = None

    def used(self, file: Releasable) -> None:
        """Note that a file is read; whoever calls holds no lock of it."""
        latest = self._latest
        if latest is not None and latest() is file:
            return  # HDF5 reads one file thousands of times in a row.
        surplus = []
        with self._lock:
            self._files.pop(id(file), None)
            self._files[id(file)] = self._latest = weakref.ref(file)
            while len(self._files) > MOST_OPEN:
                surplus.append(self._files.pop(next(iter(self._files))))
        for reference in surplus:
            other = reference()
            if other is not None:
                other.release()


RECENT = _Recent()


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells that a path still leads to the same file, unchanged."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
