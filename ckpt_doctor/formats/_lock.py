"""One writer at a time: a lock beside a checkpoint that a process which died does not hold.

The lock is on an open file (`flock`), so the operating system gives it up with the process. The file is removed while
it is still held; filelock 3.20.4 and later notice that a file which they have locked is gone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._file_steps import LOCK, hidden_beside, remove

if TYPE_CHECKING:
    from filelock import BaseFileLock

_log = logging.getLogger(__name__)


class Busy(BadRequest):
    """Another process writes there."""


def lock_of(owner: Path) -> Path:
    """Return the file whose lock protects what is written under a name."""
    return hidden_beside(owner.parent.resolve() / owner.name, LOCK)


class Lock:
    """Locks that are held together; as a context manager it takes them and gives them up.

    Args:
        places: The files, see `lock_of`; their folders are there.
        wait: How long another process is waited for, in seconds.

    Attributes:
        places: The files.
    """

    def __init__(self, places: Iterable[Path], wait: float = 0.0) -> None:
        self.places = tuple(dict.fromkeys(places))
        self._wait = wait
        self._held: list[tuple[Path, int, BaseFileLock]] = []

    def __enter__(self) -> Lock:
        if not self._held:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take all of them.

        Raises:
            Busy: Another process holds one.
            OSError: A lock cannot be written there.
        """
        from filelock import FileLock, Timeout  # No scan needs it.

        for place in self.places:
            lock = FileLock(str(place), timeout=self._wait, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                self.release()
                raise Busy(
                    f"{place.parent}: another ckpt-doctor is writing here ({place.name}); start again when it is done"
                ) from None
            except BaseException:
                self.release()
                raise
            self._held.append((place, place.stat().st_ino, lock))

    def release(self) -> None:
        """Give up what is held."""
        while self._held:
            place, inode, lock = self._held.pop()
            # The folder may be another one by now, with the lock of another process.
            if os.path.lexists(place) and place.lstat().st_ino == inode and not remove(place):
                _log.debug("%s: cannot be removed", place)
            lock.release()
