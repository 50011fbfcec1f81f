"""The only code of the package that creates output files: all of them, or none.

Every file is written under a hidden name in its target's folder and flushed to the disk. A commit gives all of them
their names, in the order in which they were staged: what is staged last makes the checkpoint whole. Nothing that is
there is changed before, except that a bundle's data file may get bytes behind its end, which its index does not name.
What is replaced keeps a hidden name until all is through.

A lock keeps other writers away, and a journal says what is about to be done before it is done. A failure, or an
interrupt, takes everything back; a process that dies leaves the journal, by which the next run finishes the commit or
takes it back (`recovery`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _moves
from ckpt_doctor.formats._file_steps import (
    NEW,
    OLD,
    check_target,
    cut_off,
    flush,
    flush_folder,
    hidden_beside,
    is_file,
    is_same,
    reason,
    refused,
    remove,
)
from ckpt_doctor.formats._journal import Append, Journal, Move, Seen
from ckpt_doctor.formats._lock import Lock, lock_of
from ckpt_doctor.formats._signals import uninterrupted

_log = logging.getLogger(__name__)
# A run that only looks for what is left holds a lock for a moment.
_WAIT = 2.0


@dataclass
class _Staged:
    temporary: Path
    target: Path
    mode: int | None = None  # Given at the end: a read-only mode would keep us from filling it.

    def finish(self) -> None:
        """Give it its mode and flush it to the disk."""
        if self.mode is not None:
            self.temporary.chmod(self.mode)
        flush(self.temporary)


class Outputs:
    """Files that appear together.

    Stage files and fill them within `all_or_nothing`, then `commit`; or `undo`.

    Args:
        owner: The name that all of it is written under: a file, or a prefix. The journal lies beside it. None: files in
            a folder that is itself staged; they need neither lock nor journal.
        also_locked: Other names under which the same files may be changed.
        overwrite: Whether a target that exists is replaced.
        wait: How long another writer is waited for, in seconds.

    Attributes:
        is_committed: Whether everything is in place.
        notes: What could not be done after the commit, in words for the user.
    """

    def __init__(
        self,
        owner: Path | None = None,
        *,
        also_locked: Iterable[Path] = (),
        overwrite: bool = False,
        wait: float = _WAIT,
    ) -> None:
        self.is_committed = False
        self.notes: list[str] = []
        self._owner = owner
        self._lock = Lock(map(lock_of, (() if owner is None else (owner, *also_locked))), wait)
        self._journal: Journal | None = None
        self._overwrite = overwrite
        self._staged: list[_Staged] = []
        self._appended: list[Append] = []
        self._backups: list[tuple[Path, Path | None]] = []  # Its name; and the file that it is a second name of.
        self._discarded: list[Path] = []
        self._moves: list[Move] = []

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Undo everything where the block fails, and say of an error of the file system what it means.

        Raises:
            BadRequest: The file system refuses.
        """
        try:
            yield
        except BaseException as error:
            where = self._staged[-1].target if self._staged else "output"
            left = "" if self.is_committed else self.undo()
            if isinstance(error, OSError) and reason(error) is not None:
                where = error.filename or where
                raise BadRequest(f"{where}: cannot be written: {reason(error)}{left}") from error
            raise

    def stage(self, target: Path, *, like: Path | None = None, copy: bool = False) -> Path:
        """Create the temporary file that will become `target`, empty or as a copy; the caller fills it by its path.

        Args:
            target: Where it will be.
            like: The file whose mode it gets; by default the target itself, where it exists.
            copy: Whether it starts with the content of `like`.

        Raises:
            BadRequest: The target exists and may not be replaced, or its folder cannot be written.
        """
        check_target(target, overwrite=self._overwrite)
        if like is None and target.exists():
            like = target
        try:
            mode = None if like is None else stat.S_IMODE(like.stat().st_mode)
            temporary = self._new(target, mode)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
            if copy and like is not None:
                shutil.copyfile(like, temporary)
        except OSError as error:
            raise refused(target, error) from error
        return temporary

    def stage_folder(self, target: Path, *, like: Path) -> Path:
        """Create the temporary folder that will become `target`; the caller fills it.

        Args:
            target: Where it will be.
            like: The folder whose mode it gets.
        """
        check_target(target, overwrite=self._overwrite)
        try:
            temporary = self._new(target, stat.S_IMODE(like.stat().st_mode) | stat.S_IRWXU)
            temporary.mkdir()
        except OSError as error:
            raise refused(target, error) from error
        return temporary

    def append(self, path: Path, pieces: Sequence[bytes | memoryview], *, index: Path) -> int:
        """Append to a file that is there and flush it to the disk; undone unless committed.

        Args:
            path: The file.
            pieces: What is appended.
            index: The file that names what is in it: while that stays as it is, nobody reads what is appended.

        Returns:
            The size of the file before, in bytes: the offset of the first new byte.
        """
        self._begin()
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(path, flags), "ab") as file:
                size, seen = os.fstat(file.fileno()).st_size, Seen.at(index)
                if seen is None:
                    raise BadRequest(f"{index}: was removed while it was worked on")
                appended = Append(path, size, size + sum(map(len, pieces)), index, seen)
                if self._journal is not None:
                    self._journal.append(appended)
                self._appended.append(appended)
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(path, error) from error
        _log.debug("appended %d bytes to %s", appended.after - size, path)
        return size

    def keep_backup(self, path: Path) -> Path:
        """Keep what is at `path` as `NAME.bak` (`NAME.bak1` … where older backups lie); removed unless committed."""
        self._begin()
        for number in range(1000):
            backup = path.with_name(f"{path.name}.bak{number or ''}")
            if os.path.lexists(backup):
                continue
            if self._journal is not None:
                self._journal.add("backup", path=self._journal.relative(backup), of=self._journal.relative(path))
            self._backups.append((backup, path))
            try:
                # A file of its own where it is a symbolic link: the link's target may be changed by others.
                if path.is_symlink():
                    raise OSError(errno.EPERM, "is a symbolic link")
                os.link(path, backup)
            except FileExistsError:
                self._backups.pop()
                continue
            except OSError:
                try:
                    os.close(os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                    self._backups[-1] = (backup, None)
                    shutil.copyfile(path, backup)
                    shutil.copymode(path, backup)
                    flush(backup)
                except FileExistsError:
                    self._backups.pop()
                    continue
                except OSError as error:
                    raise refused(backup, error) from error
            return backup
        raise BadRequest(f"{path}: has a thousand backups; remove some")

    def discard(self, older: Iterable[Path]) -> None:
        """Let the files of an older output that are not replaced go away with the commit."""
        new = {staged.target for staged in self._staged}
        self._discarded += [path for path in older if path not in new]

    def shown_in(self, view: Path) -> None:
        """Write down a folder of symbolic links that is about to be made, to show what is staged."""
        self._begin()
        if self._journal is not None:
            self._journal.add("view", path=str(view))

    def appended(self) -> tuple[Path, ...]:
        """Return the files that were appended to."""
        return tuple(appended.path for appended in self._appended)

    def staged(self) -> tuple[tuple[Path, Path], ...]:
        """Return the target of everything that is staged so far, and where it is until then."""
        return tuple((staged.target, staged.temporary) for staged in self._staged)

    def commit(self, *, in_place: bool = False) -> tuple[Path, ...]:
        """Flush everything to the disk and put it in place. An interrupt waits until that is done.

        Args:
            in_place: Whether every target is a newer version of what is there, and each step leaves a whole checkpoint.

        Returns:
            The targets, in order.

        Raises:
            BadRequest: A target appeared meanwhile, or the file system refuses. Nothing was changed.
        """
        with self.all_or_nothing():
            for staged in self._staged:
                staged.finish()
            alone = self._overwrite and len(self._staged) == 1 and not self._discarded
            in_place = in_place or (alone and is_file(self._staged[0].target))
            token = self._token()
            moves = [Move(path, None, hidden_beside(path, OLD, token), None, Seen.at(path)) for path in self._discarded]
            for staged in self._staged:
                there = Seen.at(staged.target) if self._overwrite else None
                old = None if there is None else hidden_beside(staged.target, OLD, token)
                moves.append(Move(staged.target, staged.temporary, old, Seen.at(staged.temporary), there))
            with uninterrupted():
                for folder in {move.target.parent for move in moves}:
                    flush_folder(folder)
                self._moves = moves
                if self._journal is not None:
                    self._journal.commit(moves, in_place=in_place)
                _moves.forward(moves, in_place=in_place)
                self.is_committed = True
                self._clean_up()
        return tuple(staged.target for staged in self._staged)

    def undo(self) -> str:
        """Take back everything.

        Returns:
            What to tell the user of what could not be taken back; empty where nothing is left.
        """
        with uninterrupted():
            is_told = self._tell_undoing()
            # Files are given back first: an index that could not be names what was appended.
            whole = _moves.back(self._moves)
            # Where the journal still says that the commit is to be finished, so that has to be possible.
            whole &= is_told
            if whole or self._journal is None:
                for staged in self._staged:
                    whole &= remove(staged.temporary)
                for appended in self._appended:
                    whole &= cut_off(appended.path, appended.before, appended.after)
                for backup, original in self._backups:
                    # A second name only if it is one: a file that another program made under that name is not ours.
                    if original is None or is_same(backup, original):
                        remove(backup)
            names = ", ".join(str(staged.target) for staged in self._staged) or "nothing was staged"
            _log.debug("undone: %s" if whole else "not undone: %s", names)
            folders = [staged.temporary.parent for staged in self._staged]
            self._staged, self._appended, self._backups, self._moves, self._discarded = [], [], [], [], []
            self._close(whole, folders)
        if whole:
            return ""
        return f"; {self._owner} is incomplete: the next run of ckpt-doctor there completes it or rolls it back"

    def _tell_undoing(self) -> bool:
        """Write down that the commit is taken back; return whether the next run would not finish it."""
        if self._journal is None or not self._moves:
            return True
        try:
            self._journal.tell_undoing()
        except OSError as error:
            _log.debug("%s: %s", self._journal.path, error)
            return False
        return True

    def _clean_up(self) -> None:
        """Remove what the commit has replaced, and the journal; what fails is a note, as all is in place."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.add("done")
        left = _moves.clean(self._moves)
        self.notes += [f"{path}: the old file cannot be removed; the next run tries again" for path in left]
        _log.debug("committed: %s", ", ".join(str(staged.target) for staged in self._staged))
        self._close(not left, [move.target.parent for move in self._moves])

    def _close(self, is_over: bool, folders: Iterable[Path]) -> None:
        """Give up the lock; and the journal, where nothing is left to be done in these folders."""
        journal, self._journal = self._journal, None
        try:
            if journal is not None and is_over:
                journal.end(folders)
        except OSError as error:
            where = journal and journal.path
            _log.warning("%s: cannot be removed: %s; the next run tries again", where, error.strerror)
        finally:
            if journal is not None:
                journal.close()
            self._lock.release()

    def _begin(self) -> None:
        """Take the lock and open the journal, before anything is written."""
        if self._owner is None or self._journal is not None:
            return
        try:
            self._lock.acquire()
            self._journal = Journal(self._owner)
        except FileExistsError:  # Of either name.
            self._lock.release()
            raise BadRequest(
                f"{self._owner}: an interrupted run left it incomplete; start again: the next run completes it or "
                "rolls it back"
            ) from None
        except OSError as error:
            self._lock.release()
            raise refused(self._owner, error) from error

    def _new(self, target: Path, mode: int | None) -> Path:
        """Return the hidden name of what is about to be created, after it was written down."""
        self._begin()
        temporary = hidden_beside(target, NEW, self._token())
        if self._journal is not None:
            self._journal.add("new", durable=True, path=self._journal.relative(temporary))
        self._staged.append(_Staged(temporary, target, mode))
        return temporary

    @staticmethod
    def _token() -> str:
        import secrets  # Loads OpenSSL, which no scan needs.

        return secrets.token_hex(6)
