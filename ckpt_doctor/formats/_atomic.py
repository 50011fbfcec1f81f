"""The only code of the package that creates output files: all of them, or none.

Every file is written under a temporary name in its target's folder, flushed to the disk, and renamed when all are
complete, in the order in which they were staged: what is staged last is the commit point. A target that exists is never
replaced unless that was asked for, not even when it appears while we write. What is replaced keeps a name until all is
through. Failures, and interrupts, leave no temporary file and what was there before. Only a crash of the machine can
leave a hidden `.NAME.ckpt-doctor-….tmp`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckpt_doctor.errors import BadRequest

_log = logging.getLogger(__name__)

_REFUSALS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for this file system",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
}


@dataclass
class _Staged:
    temporary: Path
    target: Path
    mode: int | None = None  # Given at the end: a read-only mode would keep us from filling it.
    aside: Path | None = None  # The name that what was at the target is moved to until the commit is through.
    second: Path | None = None  # A second name of it, which it keeps where the file is replaced in one step.
    moving: bool = False  # What gives it its final name is under way, or over.

    def finish(self) -> None:
        """Give it its mode and flush it to the disk."""
        if self.mode is not None:
            self.temporary.chmod(self.mode)
        _flush(self.temporary)

    @property
    def is_placed(self) -> bool:
        """Whether it has its final name. An interrupt can come right behind a rename, so the disk is asked."""
        return self.moving and (not os.path.lexists(self.temporary) or _is_same(self.temporary, self.target))

    def take_over(self) -> None:
        """Take the place of a file in one step."""
        self.second = _temporary_beside(self.target)
        _second_name(self.target, self.second)
        self.moving = True
        self.temporary.replace(self.target)

    def step_in(self) -> None:
        """Take its final name, which must be free."""
        self.moving = True
        if not self.temporary.is_dir():
            try:
                # Unlike a rename, a link fails where the target exists.
                os.link(self.temporary, self.target)
            except FileExistsError:
                raise _exists(self.target) from None
            except OSError:  # A file system without hard links.
                pass
            else:
                self.temporary.unlink()
                return
        check_target(self.target, overwrite=False)
        self.temporary.rename(self.target)

    def step_back(self) -> None:
        """Give the target back to what was there."""
        placed = self.is_placed
        if self.second is not None:
            if placed:
                _put_back(self.second, self.target, over=True)
            else:
                _remove(self.second)
        else:
            if placed and not _is_file(self.aside):
                _remove(self.target)
            if self.aside is not None:
                _put_back(self.aside, self.target, over=placed)
        _remove(self.temporary)


@dataclass
class _Appended:
    path: Path
    before: int
    after: int | None = None  # None while it is being written.


class Outputs:
    """Files that appear together.

    Stage files and fill them within `all_or_nothing`, then `commit` or `replace`; or `undo`.

    Args:
        overwrite: Whether a target that exists is replaced.
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self._staged: list[_Staged] = []
        self._appended: list[_Appended] = []
        self._backups: list[tuple[Path, Path | None]] = []  # Its name; and the file that it is a second name of.
        self._discarded: list[tuple[Path, Path]] = []
        self._committed = False

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
            if not self._committed:
                self.undo()
            if isinstance(error, OSError) and error.errno in _REFUSALS:
                where = error.filename or where
                raise BadRequest(f"{where}: cannot be written: {_REFUSALS[error.errno]}") from error
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
        temporary = _temporary_beside(target)
        if like is None and target.exists():
            like = target
        try:
            mode = None if like is None else stat.S_IMODE(like.stat().st_mode)
            self._staged.append(_Staged(temporary, target, mode))
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
            if copy and like is not None:
                shutil.copyfile(like, temporary)
        except OSError as error:
            raise _refused(target, error) from error
        return temporary

    def stage_folder(self, target: Path, *, like: Path) -> Path:
        """Create the temporary folder that will become `target`; the caller fills it.

        Args:
            target: Where it will be.
            like: The folder whose mode it gets.
        """
        check_target(target, overwrite=self._overwrite)
        temporary = _temporary_beside(target)
        try:
            mode = stat.S_IMODE(like.stat().st_mode) | stat.S_IRWXU
            self._staged.append(_Staged(temporary, target, mode))
            temporary.mkdir()
        except OSError as error:
            raise _refused(target, error) from error
        return temporary

    def append(self, path: Path, pieces: Iterable[bytes | memoryview]) -> int:
        """Append to a file that is there and flush it to the disk; undone unless committed.

        Returns:
            The size of the file before, in bytes: the offset of the first new byte.
        """
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(path, flags), "ab") as file:
                size = os.fstat(file.fileno()).st_size
                appended = _Appended(path, size)
                self._appended.append(appended)
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                appended.after = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise _refused(path, error) from error
        _log.debug("appended %d bytes to %s", appended.after - size, path)
        return size

    def keep_backup(self, path: Path) -> Path:
        """Keep what is at `path` as `NAME.bak` (`NAME.bak1` … where older backups lie); removed unless committed."""
        for number in range(1000):
            backup = path.with_name(f"{path.name}.bak{number or ''}")
            if os.path.lexists(backup):
                continue
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
                    _flush(backup)
                except FileExistsError:
                    self._backups.pop()
                    continue
                except OSError as error:
                    raise _refused(backup, error) from error
            return backup
        raise BadRequest(f"{path}: has a thousand backups; remove some")

    def discard(self, older: Iterable[Path]) -> None:
        """Let the files of an older output that are not replaced go away with the commit."""
        new = {staged.target for staged in self._staged}
        self._discarded += [(path, _temporary_beside(path)) for path in older if path not in new]

    def appended(self) -> tuple[Path, ...]:
        """Return the files that were appended to."""
        return tuple(appended.path for appended in self._appended)

    def staged(self) -> tuple[tuple[Path, Path], ...]:
        """Return the target of everything that is staged so far, and where it is until then."""
        return tuple((staged.target, staged.temporary) for staged in self._staged)

    def commit(self) -> tuple[Path, ...]:
        """Flush everything to the disk and put it in place.

        Returns:
            The targets, in order.

        Raises:
            BadRequest: A target appeared meanwhile, or the file system refuses.
        """
        with self.all_or_nothing():
            for staged in self._staged:
                staged.finish()
            alone = self._overwrite and len(self._staged) == 1 and not self._discarded
            if alone and _is_file(self._staged[0].target):
                self._staged[0].take_over()
            else:
                # The commit point of what is replaced goes first: no reader may take the old index for new data.
                for staged in reversed(self._staged):
                    if self._overwrite and os.path.lexists(staged.target):
                        staged.aside = _temporary_beside(staged.target)
                        staged.target.rename(staged.aside)
                for path, aside in self._discarded:
                    path.rename(aside)
                for staged in self._staged:
                    staged.step_in()
            for folder in {staged.target.parent for staged in self._staged}:
                _flush_folder(folder)
            self._committed = True
        return self._finished()

    def replace(self) -> tuple[Path, ...]:
        """Commit where every target is a newer version of what is there, and each step leaves a whole checkpoint."""
        with self.all_or_nothing():
            for staged in self._staged:
                staged.finish()
            for staged in self._staged:
                if os.path.lexists(staged.target):
                    staged.take_over()
                else:
                    staged.step_in()
                _flush_folder(staged.target.parent)
            self._committed = True
        return self._finished()

    def undo(self) -> None:
        """Take back everything; what cannot be put back keeps its hidden name, and that is logged as an error."""
        for staged in reversed(self._staged):
            staged.step_back()
        for path, aside in self._discarded:
            _put_back(aside, path, over=False)
        for appended in reversed(self._appended):
            _cut_off(appended)
        for backup, original in self._backups:
            # A second name only if it is one: a file that another program made under that name meanwhile is not ours.
            if original is None or _is_same(backup, original):
                _remove(backup)
        _log.debug("undone: %s", ", ".join(str(staged.target) for staged in self._staged) or "nothing was staged")
        self._staged, self._discarded, self._appended, self._backups = [], [], [], []

    def _finished(self) -> tuple[Path, ...]:
        """Remove what the commit has replaced and return the targets."""
        for old in (
            *(staged.aside or staged.second for staged in self._staged),
            *(aside for _, aside in self._discarded),
        ):
            if old is not None:
                _remove(old)
        targets = tuple(staged.target for staged in self._staged)
        _log.debug("committed: %s", ", ".join(map(str, targets)))
        return targets


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot be written, before any work.

    Raises:
        BadRequest: It exists and `overwrite` is false; or its folder is absent or cannot be written.
    """
    folder = target.parent
    if not folder.is_dir():
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise BadRequest(f"{target}: cannot be written: the folder {folder} {what}")
    if os.path.lexists(target) and not overwrite:
        raise _exists(target)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"{target}: cannot be written: the folder {folder} is read-only for this user")


def may_append(path: Path) -> bool:
    """Return whether a file is ours alone to change: regular, one link, no symbolic link, writable.

    Through a hard link or a symbolic link into a content-addressed cache (DVC, the Hugging Face hub) an append would
    change other people's files.
    """
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and os.access(path, os.W_OK)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _flush(Path(parent, name))
        _flush_folder(Path(parent))


def _exists(target: Path) -> BadRequest:
    return BadRequest(f"{target}: exists already; pass --overwrite to replace it, or choose another output")


def _refused(path: Path, error: OSError) -> BadRequest:
    reason = _REFUSALS.get(error.errno or 0) or error.strerror or str(error)
    return BadRequest(f"{path}: cannot be written: {reason}")


def _temporary_beside(target: Path) -> Path:
    # Names are limited to 255 bytes; the suffix must fit.
    name = os.fsdecode(os.fsencode(target.name)[:180])
    import secrets  # Loads OpenSSL, which no scan needs.

    return target.with_name(f".{name}.ckpt-doctor-{secrets.token_hex(6)}.tmp")


def _is_file(path: Path | None) -> bool:
    """Return whether a path is there and is not a folder; a symbolic link to one is not."""
    return path is not None and os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are names of one file."""
    try:
        return os.path.samestat(path.lstat(), other.lstat())
    except OSError:
        return False


def _put_back(saved: Path, target: Path, *, over: bool) -> None:
    """Give something its old name back; `over` what is there, or not at all where something has appeared."""
    if not os.path.lexists(saved):
        return
    try:
        if over or not _is_file(saved):
            saved.replace(target)
            return
        try:
            os.link(saved, target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # A file system without hard links.
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "something else is there now") from None
            saved.replace(target)
        else:
            saved.unlink()
    except OSError as error:
        _log.error("%s cannot be put back: %s; what was there is kept as %s", target, error.strerror, saved)


def _cut_off(appended: _Appended) -> None:
    """Take back what was appended, unless another program has appended behind it: its index may name that."""
    try:
        if appended.after is None or appended.path.stat().st_size == appended.after:
            os.truncate(appended.path, appended.before)
    except OSError as error:
        _log.warning("%s: %s; it keeps bytes at its end that no index names", appended.path, error)


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name, follow_symlinks=False)
    except (OSError, NotImplementedError):
        if path.is_symlink():
            name.symlink_to(path.readlink())
        else:
            shutil.copy2(path, name)


def _flush(path: Path) -> None:
    if path.is_dir():
        flush_tree(path)
        return
    # Flushing needs no permission to write, but Windows wants a handle that has it.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Folders cannot be opened there.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some network file systems cannot.
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
