"""Folders for temporary files, which the next one removes if their process was killed."""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._file_steps import own_kind, remove
from ckpt_doctor.formats._lock import Lock, lock_of

_log = logging.getLogger(__name__)
_PREFIX = "ckpt-doctor-"


class TemporaryFolder:
    """A folder in the place for temporary files; gone on leaving the context, or by `cleanup`.

    It holds a lock for as long as its process lives.
    """

    def __init__(self) -> None:
        _sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.name = self._folder.name
        self._lock = Lock([lock_of(Path(self.name, "folder"))])
        self._lock.acquire()

    def __enter__(self) -> str:
        return self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove it."""
        self._lock.release()
        self._folder.cleanup()


@functools.cache
def _sweep() -> None:
    """Remove, once a process, what processes that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            with Lock([path for path in folder.iterdir() if own_kind(path.name) == "lock"]) as lock:
                if lock.places and remove(folder):
                    _log.debug("%s: removed; its process was killed", folder)
        except (BadRequest, OSError) as error:
            _log.debug("%s: %s", folder, error)
