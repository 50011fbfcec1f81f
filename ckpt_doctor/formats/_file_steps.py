"""Single steps on files that a commit, its undoing and the recovery of it are made of."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
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
# Names are limited to 255 bytes; what is added to one must fit.
_LONGEST_NAME = 180
# `.NAME.ckpt-doctor-TOKEN.new` is being written, `.old` is what was at NAME; one lock and one journal for a checkpoint,
# which is called `.undo` where it could not be written any more that a commit is taken back.
NEW, OLD, LOCK, JOURNAL, UNDO = ".new", ".old", ".lock", ".journal", ".undo"
_OWN_NAME = re.compile(r"\..*\.ckpt-doctor(?:-[0-9a-f]{12})?\.(?P<kind>new|old|lock|journal|undo)", re.DOTALL)


def own_kind(name: str) -> str | None:
    """Return what a hidden file of ours is by its name: `new`, `old`, `lock` or `journal`; None for any other."""
    match = _OWN_NAME.fullmatch(name)
    return match and ("journal" if match["kind"] == "undo" else match["kind"])


def hidden_beside(target: Path, suffix: str, token: str | None = None) -> Path:
    """Return the hidden name of ours that goes with a file."""
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    return target.with_name(f".{name}.ckpt-doctor{f'-{token}' if token else ''}{suffix}")


def reason(error: OSError) -> str | None:
    """Return why the file system refuses, in words; None where it is no such refusal."""
    return _REFUSALS.get(error.errno or 0)


def refused(path: Path, error: OSError) -> BadRequest:
    """Return the refusal of a file that cannot be written."""
    return BadRequest(f"{path}: cannot be written: {reason(error) or error.strerror or error}")


def exists(target: Path) -> BadRequest:
    """Return the refusal of a target that is there."""
    return BadRequest(f"{target}: exists already; pass --overwrite to replace it, or choose another output")


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
        raise exists(target)
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


def is_file(path: Path | None) -> bool:
    """Return whether a path is there and is not a folder; a symbolic link to one is not."""
    return path is not None and os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are names of one file."""
    try:
        return os.path.samestat(path.lstat(), other.lstat())
    except OSError:
        return False


def step_in(temporary: Path, target: Path) -> None:
    """Give a file or folder its final name, which must be free.

    Raises:
        BadRequest: It is not.
    """
    if not temporary.is_dir():
        try:
            # Unlike a rename, a link fails where the target exists.
            os.link(temporary, target)
        except FileExistsError:
            raise exists(target) from None
        except OSError:  # A file system without hard links.
            pass
        else:
            temporary.unlink()
            return
    check_target(target, overwrite=False)
    temporary.rename(target)


def put_back(saved: Path, target: Path, *, over: bool) -> bool:
    """Give something its old name back; `over` what is there, or not at all where something has appeared.

    Returns:
        Whether it has its old name. If not, it keeps its hidden one, which is logged as an error.
    """
    try:
        if over or not is_file(saved):
            saved.replace(target)
            return True
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
        return False
    return True


def cut_off(path: Path, before: int, after: int) -> bool:
    """Take back what was appended, unless another program has appended behind it: its index may name that.

    Args:
        path: The file.
        before: Its size before, in bytes.
        after: Its size with all that was appended.

    Returns:
        Whether nothing is left to be done.
    """
    try:
        size = path.lstat().st_size
        if before < size <= after:
            os.truncate(path, before)
        elif size > after:
            _log.warning("%s: another program has added to it; it keeps %d bytes of no use", path, after - before)
    except FileNotFoundError:
        return True
    except OSError as error:
        _log.warning("%s: %s; it keeps bytes at its end that no index names", path, error)
        return False
    return True


def second_name(path: Path, name: Path) -> None:
    """Give what is at a path a second name; a copy where the file system has no hard links."""
    try:
        os.link(path, name, follow_symlinks=False)
    except (OSError, NotImplementedError):
        if path.is_symlink():
            name.symlink_to(path.readlink())
        else:
            shutil.copy2(path, name)
            flush(name)


def flush(path: Path) -> None:
    """Flush a file to the disk, or everything below a folder."""
    if path.is_dir():
        for parent, _, names in os.walk(path):
            for name in names:
                flush(Path(parent, name))
            flush_folder(Path(parent))
        return
    # Flushing needs no permission to write, but Windows wants a handle that has it.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
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


def remove(path: Path) -> bool:
    """Remove a file or a folder, if it is there.

    Returns:
        Whether nothing is there any more.
    """
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)
