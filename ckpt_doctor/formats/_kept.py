"""What was opened to recognise a checkpoint, kept until it is read.

To tell Keras' HDF5 layouts apart, a file must be opened; who then reads it need not open it again. A keeper holds what
is opened while it is the innermost one of its thread; `claimed` takes it over, from whichever keeper holds it, if the
file at the path is still the same. What nobody claims is closed with its keeper.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ckpt_doctor.formats._descriptors import identity
from ckpt_doctor.formats._storage import is_remote

_T = TypeVar("_T")
_Key = tuple[Callable[[str], Any], str]
# A walk recognises thousands of files before the first is read; those found last are kept.
_MOST_KEPT = 64


class Keeper:
    """Holds what was opened and is not yet claimed."""

    def __init__(self) -> None:
        self.opened: dict[_Key, tuple[tuple[int, ...] | None, Any]] = {}


class _Thread(threading.local):
    innermost: Keeper | None = None


_thread = _Thread()
_lock = threading.RLock()
_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


@contextmanager
def keeping() -> Iterator[Keeper]:
    """Give a keeper that holds what this thread opens to recognise; it may be kept for longer."""
    keeper = Keeper()
    outer, _thread.innermost = _thread.innermost, keeper
    with _lock:
        _keepers.add(keeper)
    try:
        yield keeper
    finally:
        _thread.innermost = outer


def shared(opener: Callable[[str], _T], path: str) -> _T:
    """Return what `opener` returns for a path; the same again while a keeper holds it and the file is the same.

    Args:
        opener: Opens the path.
        path: A file.
    """
    found = _held(opener, path, take=False)
    if found is None:
        # Before it is opened: a file that changes meanwhile is then not taken for this one.
        stamp = _stamp(path)
        found = opener(path)
        keeper = _thread.innermost
        if keeper is not None:
            with _lock:
                keeper.opened[opener, path] = stamp, found
                while len(keeper.opened) > _MOST_KEPT:
                    del keeper.opened[next(iter(keeper.opened))]
    return found


def claimed(opener: Callable[[str], _T], path: str) -> _T:
    """Return the same, and let no keeper hold it any more: it is now the caller's."""
    found = _held(opener, path, take=True)
    return opener(path) if found is None else found


def _held(opener: Callable[[str], _T], path: str, *, take: bool) -> _T | None:
    with _lock:
        for keeper in _keepers:
            if (opener, path) in keeper.opened:
                stamp, found = keeper.opened[opener, path]
                fresh = stamp == _stamp(path)
                if take or not fresh:
                    del keeper.opened[opener, path]
                if fresh:
                    opened: _T = found
                    return opened
    return None


def _stamp(path: str) -> tuple[int, ...] | None:
    """Return what tells one state of a file from another; None where nothing does (a remote one)."""
    if is_remote(path):
        return None
    try:
        return identity(os.stat(path))  # noqa: PTH116 - paths are strings here
    except (OSError, ValueError):
        return ()
