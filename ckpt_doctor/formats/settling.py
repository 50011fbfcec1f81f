"""The door to `recovery`, which loads all that writes: it is opened where a name says that something is left."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._file_steps import own_kind
from ckpt_doctor.formats._storage import is_remote, join, split

if TYPE_CHECKING:
    from ckpt_doctor.formats.recovery import Settled

_log = logging.getLogger(__name__)


def settle(folder: str | os.PathLike[str]) -> tuple[Settled, ...]:
    """Finish or take back what runs that were cut off have left in a folder, not below it; see `recovery`.

    A remote folder is never written, so there is nothing.
    """
    folder = os.fspath(folder)
    if is_remote(folder):
        return ()
    try:
        with os.scandir(folder) as entries:
            hidden = sorted(entry.name for entry in entries if entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        _log.debug("%s: %s", folder, error)
        return ()
    if not any(own_kind(name) in ("journal", "lock") for name in hidden):
        return ()
    from ckpt_doctor.formats import recovery

    return recovery.settle(folder, hidden)


def folders_around(path: str) -> Iterator[str]:
    """Yield the folders in which a run that changes a checkpoint may leave something, whatever name it goes by.

    One by one: what is settled in the first may bring the second back.
    """
    yield split(path)[0] or "."
    yield path
    yield join(path, "variables")


def settle_around(path: str | os.PathLike[str]) -> tuple[Settled, ...]:
    """Settle what runs that were cut off have left of one checkpoint."""
    return tuple(settled for folder in folders_around(os.fspath(path)) for settled in settle(folder))


def require_settled(path: str | os.PathLike[str]) -> None:
    """Settle what is around a checkpoint, and refuse to go on where that cannot be.

    Raises:
        BadRequest: A run that was cut off has left something half way, and it cannot be settled.
    """
    for settled in settle_around(path):
        if settled.how == "stuck":
            raise BadRequest(settled.message)
