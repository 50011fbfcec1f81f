"""A file system in memory that can be made full or read-only while something writes to it.

Linux lets the administrator mount one, and everybody under `unshare -rm`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
_LARGE = 64 << 20
# <sys/mount.h>.
_READ_ONLY, _REMOUNT = 1, 32


class SmallDisk:
    """A mounted tmpfs; its size is counted in pages, and so is what a file takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def used(self) -> int:
        """Return how many bytes are taken."""
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def allow(self, size: int = _LARGE) -> None:
        """Let the files take so many bytes in all, and be written."""
        _mount(self.folder, _REMOUNT, f"size={size}")

    def forbid(self) -> bool:
        """Make it read-only; return whether that could be done, which it cannot while a file is open for writing."""
        try:
            _mount(self.folder, _REMOUNT | _READ_ONLY, f"size={_LARGE}")
        except OSError:
            return False
        return True


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount one.

    Raises:
        PermissionError: This process may mount nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, 0, f"size={_LARGE}")
    try:
        yield SmallDisk(folder)
    finally:
        _checked(_libc().umount2(os.fsencode(folder), 0), folder)


def may_mount(folder: Path) -> bool:
    """Return whether this process may mount file systems."""
    try:
        with small_disk(folder):
            return True
    except (OSError, AttributeError):  # Not the administrator; not Linux.
        return False


def _mount(folder: Path, flags: int, options: str) -> None:
    _checked(_libc().mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode()), folder)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, folder: Path) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(folder))
