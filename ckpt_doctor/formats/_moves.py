"""A commit as a list of moves: carried out, or taken back; both can be begun again after an end in the middle.

What is at a name is told by what it was before the commit (`Seen`), never by how far a process is believed to have
come. So the same code serves a running commit, its undoing, and the recovery of one whose process died.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._file_steps import flush_folder, is_file, is_same, put_back, remove, second_name, step_in
from ckpt_doctor.formats._journal import Move

_log = logging.getLogger(__name__)


def forward(moves: Sequence[Move], *, in_place: bool) -> None:
    """Give everything its final name.

    Args:
        moves: What goes away first, then what is new; the last one makes the checkpoint whole.
        in_place: Whether each takes the place of an older version in one step. Otherwise all that is replaced goes
            first, the last of it first: no reader may take an old index for new data.

    Raises:
        BadRequest: Something else is at a target by now.
        OSError: The file system refuses.
    """
    if not in_place:
        for move in reversed(moves):
            if move.old is not None and not move.is_placed and os.path.lexists(move.target):
                _check(move)
                move.target.rename(move.old)
    for move in moves:
        if move.new is None:
            continue
        if move.is_placed:
            remove(move.new)  # A second name of it, where it was linked.
        elif in_place and move.old is not None:
            _check(move)
            if move.old_seen is not None and not move.old_seen.is_at(move.old):
                remove(move.old)  # A copy that was not finished.
                second_name(move.target, move.old)
            move.new.replace(move.target)
        else:
            step_in(move.new, move.target)
        if in_place:
            flush_folder(move.target.parent)
    if not in_place:
        for folder in {move.target.parent for move in moves}:
            flush_folder(folder)


def back(moves: Sequence[Move]) -> bool:
    """Give every target back to what was there.

    Returns:
        Whether everything is as it was; what is not was logged as an error, and keeps its hidden name.
    """
    whole = True
    for move in reversed(moves):
        try:
            whole &= _back(move)
        except OSError as error:  # noqa: PERF203 - one that cannot be given back keeps no other from it
            _log.error("%s cannot be given back: %s", move.target, error.strerror)
            whole = False
    return whole


def clean(moves: Iterable[Move]) -> tuple[Path, ...]:
    """Remove what was replaced.

    Returns:
        What cannot be removed.
    """
    return tuple(move.old for move in moves if move.old is not None and not remove(move.old))


def _back(move: Move) -> bool:
    if move.old is None or move.old_seen is None:
        if move.is_placed and move.new is not None:
            _take_away(move.target, move.new)
        return True
    if move.is_untouched:
        return remove(move.old)
    if not move.old_seen.is_at(move.old):
        _log.error("%s: something else is there now", move.target)
        return False
    placed = move.is_placed
    if placed and move.new is not None and not is_file(move.target):
        _take_away(move.target, move.new)
    return put_back(move.old, move.target, over=placed)


def _take_away(target: Path, new: Path) -> None:
    """Take the final name from what is new."""
    if is_same(target, new):
        target.unlink()
    else:
        target.rename(new)


def _check(move: Move) -> None:
    if not move.is_untouched:
        raise BadRequest(f"{move.target}: was changed by another program while it was worked on; start again")
