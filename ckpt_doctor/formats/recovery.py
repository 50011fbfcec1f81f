"""What runs that were cut off have left: the next run finishes it, or takes it back.

A commit that was written down was complete and proven, so it is finished; where what is new is gone, what was there is
put back. Everything before a commit is taken back. What a live process is at work on is left to it, and so is what
another program has changed since.
"""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _moves
from ckpt_doctor.formats._file_steps import LOCK, cut_off, is_same, own_kind, remove
from ckpt_doctor.formats._journal import Move, NoJournal, Record, end, read
from ckpt_doctor.formats._lock import Busy, Lock
from ckpt_doctor.formats._signals import uninterrupted

_log = logging.getLogger(__name__)

# A commit takes milliseconds; where another process is at one, it is waited for.
_WAIT_FOR_A_COMMIT = 10.0
_POLL = 0.05


@dataclass(frozen=True)
class Settled:
    """What became of a run that was cut off.

    Attributes:
        name: The checkpoint or file that it wrote.
        how: `finished`, `taken-back`, or `stuck`: it is half way, and cannot be judged.
        message: What was done, or what stands in the way and what to do.
    """

    name: str
    how: Literal["finished", "taken-back", "stuck"]
    message: str


def settle(folder: str | os.PathLike[str], names: Sequence[str]) -> tuple[Settled, ...]:
    """Finish or take back what runs that were cut off have left in a folder, not below it.

    Args:
        folder: The folder.
        names: The hidden names in it.
    """
    found = [_settle(Path(folder, name)) for name in names if own_kind(name) == "journal"]
    for name in names:
        if own_kind(name) == "lock":
            _remove_lock(Path(folder, name))
    return tuple(settled for settled in found if settled is not None)


def _settle(path: Path) -> Settled | None:
    """Settle one journal; None where a live process is at work."""
    name = str(path.with_name(path.name[1:].rpartition(".ckpt-doctor")[0]))
    try:
        half_way = read(path).state in ("committing", "undoing")
    except (NoJournal, OSError):
        half_way = False
    lock = Lock([path.with_name(f"{path.stem}{LOCK}")], _WAIT_FOR_A_COMMIT if half_way else 0.0)
    try:
        lock.acquire()
    except Busy:
        _log.debug("%s: another process is at work", path)
        return None
    except OSError as error:
        # Another user's, or on a medium that cannot be written: what is there is whole, unless a commit has begun.
        _log.debug("%s: %s", path, error)
        return _stuck(name, path, error) if half_way and not _goes_away(path) else None
    try:
        with lock, uninterrupted():
            if not os.path.lexists(path):
                return None  # The other process is done.
            record = read(path)
            how = _carry_out(record)
            end(path, [*(move.target.parent for move in record.moves or ()), *(new.parent for new in record.new)])
    except NoJournal as error:
        return Settled(name, "stuck", f"{path}: {error}; if no ckpt-doctor wrote it, remove it")
    except (BadRequest, OSError) as error:
        return _stuck(name, path, error)
    message = {
        "finished": "an interrupted run had written it completely; it is now in place",
        "taken-back": "an interrupted run was rolled back; the checkpoint is unchanged",
    }[how]
    _log.warning("%s: %s", name, message)
    return Settled(name, how, f"{name}: {message}")


def _stuck(name: str, journal: Path, error: Exception) -> Settled:
    return Settled(
        name,
        "stuck",
        f"{name}: an interrupted run left it incomplete, and it cannot be repaired: {error}. "
        f"{journal} lists the planned steps; repair it by hand, then remove that file",
    )


def _goes_away(path: Path) -> bool:
    """Return whether a journal that cannot be locked goes away while a commit may last."""
    end_of_wait = time.monotonic() + _WAIT_FOR_A_COMMIT
    while os.path.lexists(path) and time.monotonic() < end_of_wait:
        time.sleep(_POLL)
    return not os.path.lexists(path)


def _remove_lock(path: Path) -> None:
    """Remove a lock that no process holds; giving it up does that."""
    if path.is_file() and not path.is_symlink():
        with contextlib.suppress(Busy, OSError), Lock([path]):
            pass


def _carry_out(record: Record) -> Literal["finished", "taken-back"]:
    """Do what a record says is left to be done.

    Raises:
        BadRequest: Another program has changed the files since.
        OSError: The file system refuses.
    """
    _remove_views(record)
    moves = record.moves
    if moves is None or not moves:
        _take_back(record)
        return "taken-back"
    if record.state != "done":
        complete = all(move.new is None or move.is_placed or _is_new_there(move) for move in moves)
        if record.state == "undoing" or not complete:
            if not _moves.back(moves):
                raise BadRequest("what was there cannot be put back")
            _take_back(record)
            return "taken-back"
        _moves.forward(moves, in_place=record.in_place)
    # What was replaced goes only where what replaces it is there, or has been replaced in turn.
    left = _moves.clean(move for move in moves if os.path.lexists(move.target) or move.new is None)
    if left:
        raise BadRequest(f"{left[0]} cannot be removed")
    return "finished"


def _is_new_there(move: Move) -> bool:
    return move.new is not None and move.new_seen is not None and move.new_seen.is_at(move.new)


def _take_back(record: Record) -> None:
    """Take back what was done before the commit, or is left when the commit is undone."""
    for path in record.new:
        if not remove(path):
            raise BadRequest(f"{path} cannot be removed")
    for appended in record.appended:
        # Through a link it would be another's file; one that was saved anew is another's too.
        if appended.path.is_symlink() or appended.path.lstat().st_nlink != 1 or not appended.is_unnamed:
            _log.debug("%s: is another file by now; nothing is cut off", appended.path)
            continue
        if not cut_off(appended.path, appended.before, appended.after):
            raise BadRequest(f"{appended.path} cannot be cut off at {appended.before} bytes")
    for backup, original in record.backups:
        if is_same(backup, original) or _is_unfinished_copy(backup, original):
            remove(backup)


def _is_unfinished_copy(backup: Path, original: Path) -> bool:
    """Return whether a backup holds nothing that the original does not."""
    if not (backup.is_file() and original.is_file()) or backup.is_symlink():
        return False
    size = backup.stat().st_size
    if size == original.stat().st_size:
        return filecmp.cmp(backup, original, shallow=False)
    return size == 0


def _remove_views(record: Record) -> None:
    """Remove the folders of symbolic links, and nothing but links and empty folders in them."""
    for view in record.views:
        try:
            status = view.lstat()
        except OSError:
            continue
        own = view.name.startswith(".ckpt-doctor-") and stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if own and view.is_absolute() and ".." not in view.parts:
            _remove_links(view)


def _remove_links(folder: Path) -> None:
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = Path(parent, name)
            try:
                if path.is_symlink():
                    path.unlink()
                elif path.is_dir():
                    path.rmdir()
            except OSError as error:
                _log.debug("%s: %s", path, error)
    try:
        folder.rmdir()
    except OSError as error:
        _log.debug("%s: %s", folder, error)
