"""The only code of the package that creates output files: all of them, or none.

Every file is written under a temporary name in its target's folder, flushed to the disk, and renamed when all are
complete, in the order in which they were staged: what is staged last is the commit point. A target that exists is never
replaced unless that was asked for, not even when it appears while we write. Failures, and interrupts, leave no
temporary file and what was there before. Only a crash of the machine can leave a hidden `.NAME.ckpt-doctor-….tmp`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ckpt_doctor.errors import BadRequest

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
    saved: Path | None = None  # What the target was, under another name, until the commit is through.
    placed: bool = False

    def finish(self) -> None:
        """Give it its mode and flush it to the disk."""
        if self.mode is not None:
            self.temporary.chmod(self.mode)
        _flush(self.temporary)


class Outputs:
    """Files that appear together.

    Use as a context manager: stage files, fill them, `commit`. Leaving without a commit undoes everything.

    Args:
        overwrite: Whether a target that exists is replaced.
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self._staged: list[_Staged] = []
        self._appended: list[tuple[Path, int]] = []
        self._backups: list[Path] = []
        self._discarded: list[tuple[Path, Path]] = []
        self._committed = False

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self._undo()
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            where = error.filename or (self._staged[-1].target if self._staged else "output")
            raise BadRequest(f"{where}: cannot be written: {_REFUSALS[error.errno]}") from error

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
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
            self._staged.append(_Staged(temporary, target, mode))
            if copy and like is not None:
                shutil.copyfile(like, temporary)
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
                self._appended.append((path, size))
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _refused(path, error) from error
        return size

    def keep_backup(self, path: Path) -> Path:
        """Keep what is at `path` as `NAME.bak` (`NAME.bak1` … where older backups lie); removed unless committed."""
        for number in range(1000):
            backup = path.with_name(f"{path.name}.bak{number or ''}")
            try:
                # A file of its own where it is a symbolic link: the link's target may be changed by others.
                if path.is_symlink():
                    raise OSError(errno.EPERM, "is a symbolic link")
                os.link(path, backup)
            except FileExistsError:
                continue
            except OSError:
                try:
                    os.close(os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                except FileExistsError:
                    continue
                except OSError as error:
                    raise _refused(backup, error) from error
                self._backups.append(backup)
                try:
                    shutil.copyfile(path, backup)
                    shutil.copymode(path, backup)
                    _flush(backup)
                except OSError as error:
                    raise _refused(backup, error) from error
                return backup
            self._backups.append(backup)
            return backup
        raise BadRequest(f"{path}: has a thousand backups; remove some")

    def discard(self, older: Iterable[Path]) -> None:
        """Let the files of an older output that are not replaced go away with the commit."""
        new = self.targets()
        self._discarded += [(path, _temporary_beside(path)) for path in older if path not in new]

    def targets(self) -> tuple[Path, ...]:
        """Return what is staged so far."""
        return tuple(staged.target for staged in self._staged)

    def commit(self) -> tuple[Path, ...]:
        """Flush everything to the disk and put it in place.

        Returns:
            The targets, in order.

        Raises:
            BadRequest: A target appeared meanwhile, or the file system refuses.
        """
        for staged in self._staged:
            staged.finish()
        # Where older files are replaced, the commit point goes first: no reader may take the old index for new data.
        if self._overwrite and len(self._staged) > 1:
            for staged in reversed(self._staged):
                self._put_aside(staged)
        for path, aside in self._discarded:
            path.rename(aside)
        for staged in self._staged:
            self._place(staged)
        for folder in {staged.target.parent for staged in self._staged}:
            _flush_folder(folder)
        self._committed = True
        for old in (*(staged.saved for staged in self._staged), *(aside for _, aside in self._discarded)):
            if old is not None:
                _remove(old)
        return tuple(staged.target for staged in self._staged)

    def replace(self) -> tuple[Path, ...]:
        """Commit where every target is a newer version of what is there, and each step leaves a whole checkpoint."""
        for staged in self._staged:
            staged.finish()
        for staged in self._staged:
            if staged.target.exists():
                staged.saved = _temporary_beside(staged.target)
                _second_name(staged.target, staged.saved)
            staged.temporary.replace(staged.target)
            staged.placed = True
            _flush_folder(staged.target.parent)
        self._committed = True
        for staged in self._staged:
            if staged.saved is not None:
                _remove(staged.saved)
        return tuple(staged.target for staged in self._staged)

    def _put_aside(self, staged: _Staged) -> None:
        if os.path.lexists(staged.target):
            saved = _temporary_beside(staged.target)
            staged.target.rename(saved)
            staged.saved = saved

    def _place(self, staged: _Staged) -> None:
        if self._overwrite:
            if len(self._staged) == 1 and staged.target.is_dir():
                self._put_aside(staged)
            staged.temporary.replace(staged.target)
        elif staged.temporary.is_dir():
            check_target(staged.target, overwrite=False)
            staged.temporary.rename(staged.target)
        else:
            try:
                # Unlike a rename, a link fails where the target exists.
                os.link(staged.temporary, staged.target)
            except FileExistsError:
                raise _exists(staged.target) from None
            except OSError:  # A file system without hard links.
                check_target(staged.target, overwrite=False)
                staged.temporary.rename(staged.target)
            else:
                staged.temporary.unlink()
        staged.placed = True

    def _undo(self) -> None:
        for staged in reversed(self._staged):
            if staged.placed and staged.saved is None:
                _remove(staged.target)
            if staged.saved is not None:
                with contextlib.suppress(OSError):
                    if staged.placed and staged.target.is_dir():
                        _remove(staged.target)
                    staged.saved.replace(staged.target)
                # A rename between two links of one file does nothing and leaves both.
                _remove(staged.saved)
            _remove(staged.temporary)
        for path, aside in self._discarded:
            with contextlib.suppress(OSError):
                aside.replace(path)
        for path, size in reversed(self._appended):
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        for backup in self._backups:
            _remove(backup)

    def stage_folder(self, target: Path, *, like: Path) -> Path:
        """Create the temporary folder that will become `target`; the caller fills it.

        Args:
            target: Where it will be.
            like: The folder whose mode it gets.
        """
        check_target(target, overwrite=self._overwrite)
        temporary = _temporary_beside(target)
        try:
            temporary.mkdir()
        except OSError as error:
            raise _refused(target, error) from error
        self._staged.append(_Staged(temporary, target, stat.S_IMODE(like.stat().st_mode) | stat.S_IRWXU))
        return temporary


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
    return target.with_name(f".{name}.ckpt-doctor-{secrets.token_hex(6)}.tmp")


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
