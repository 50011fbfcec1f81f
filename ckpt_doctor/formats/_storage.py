"""Reading bytes, wherever they lie: a local path, or a URL that fsspec knows.

Remote objects are read by byte ranges. Nothing here writes.
"""

# Paths are strings here: a `Path` would fold the `//` of a URL, and the slash after which a prefix may be empty.
# ruff: noqa: PTH112, PTH113, PTH116, PTH118
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

from ckpt_doctor.errors import BadRequest, MissingExtra
from ckpt_doctor.formats._local_file import LocalFile, OutOfBounds, unreadable
from ckpt_doctor.formats._natural import in_natural_order

REMOTE_CHUNK = 16 << 20  # A remote request costs a round trip whatever its size.


class Source(Protocol):
    """One open file.

    Attributes:
        path: As it was given.
        size: In bytes, when it was opened.
    """

    path: str
    size: int

    def read(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset`.

        Raises:
            OutOfBounds: The file is shorter.
            BadRequest: The storage fails.
        """
        ...

    def chunks(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield the same bytes in pieces; each piece is valid until the next is asked for."""
        ...


class RemoteFile:
    """An object that fsspec reaches; every read asks for a byte range."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._system, self._key = _file_system(path)
        try:
            size = self._system.info(self._key).get("size")
        except remote_errors() as error:
            raise _as_os_error(path, error) from error
        if size is None:
            raise BadRequest(f"{path}: the server does not report its size; download it first")
        self.size = int(size)

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfBounds(self.path, offset + length, self.size)
        if not length:
            return memoryview(b"")
        try:
            data = self._system.cat_file(self._key, start=offset, end=offset + length)
        except remote_errors() as error:
            raise unreadable(self.path, error) from error
        if len(data) != length:
            raise OutOfBounds(self.path, offset + length, offset + len(data))
        return memoryview(data)

    def chunks(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `Source.chunks`."""
        end = offset + length
        if end > self.size:
            raise OutOfBounds(self.path, end, self.size)
        for start in range(offset, end, REMOTE_CHUNK):
            yield self.read(start, min(REMOTE_CHUNK, end - start))


def open_source(path: str) -> Source:
    """Open a file for reading.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It is a folder, or cannot be read.
        MissingExtra: The URL needs a package that is not installed.
    """
    if is_remote(path):
        return RemoteFile(path)
    if is_folder(path):
        raise BadRequest(f"{path}: is a folder, a file is expected")
    return LocalFile(path)


def open_remote(path: str) -> Any:
    """Open a remote object as a seekable file that is read in blocks.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It cannot be read.
        MissingExtra: The URL needs a package that is not installed.
    """
    system, key = _file_system(path)
    try:
        return system.open(key, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except remote_errors() as error:
        raise unreadable(path, error) from error


def read_head(path: str, length: int = 4096) -> bytes:
    """Return the first bytes of a file, fewer where it is shorter, none where it is no file."""
    try:
        if not is_file(path):
            return b""
        source = open_source(path)
        return bytes(source.read(0, min(length, source.size)))
    except (FileNotFoundError, OutOfBounds):
        return b""


def read_all(path: str) -> bytes:
    """Return a whole file; for small ones.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It cannot be read.
    """
    source = open_source(path)
    return bytes(source.read(0, source.size))


def is_remote(path: str) -> bool:
    """Return whether `path` is a URL."""
    return "://" in path


def is_file(path: str) -> bool:
    """Return whether a file (after symbolic links) is there."""
    if is_remote(path):
        return _answer(path, "isfile")
    try:
        return os.path.isfile(path)
    except ValueError:  # A null byte.
        return False


def is_folder(path: str) -> bool:
    """Return whether a folder is there."""
    if is_remote(path):
        return _answer(path, "isdir")
    try:
        return os.path.isdir(path)
    except ValueError:
        return False


def size_of(path: str) -> int:
    """Return the size of a file in bytes, 0 where it is not there."""
    if is_remote(path):
        try:
            return RemoteFile(path).size
        except FileNotFoundError:
            return 0
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def join(folder: str, name: str) -> str:
    """Return the path of `name` in `folder`."""
    if is_remote(folder):
        return f"{folder.rstrip('/')}/{name}"
    return os.path.join(folder, name)


def split(path: str) -> tuple[str, str]:
    """Return folder and name of a path; the folder of a bare name is `""`."""
    if is_remote(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    return os.path.split(path)


class Entry(NamedTuple):
    """One entry of a folder, after symbolic links.

    Attributes:
        name: Its name.
        kind: What it leads to: `special` is a pipe, a device or a socket; `nowhere` a link without a target or in a
            circle; `unreadable` a link whose target may not be asked for.
        link: Whether it is a symbolic link itself.
    """

    name: str
    kind: Literal["file", "folder", "special", "nowhere", "unreadable"]
    link: bool = False


def entries_in(folder: str) -> tuple[Entry, ...]:
    """Return everything in a folder in natural order; nothing where it cannot be listed (plain HTTP).

    Raises:
        BadRequest: A local folder cannot be read.
    """
    if is_remote(folder):
        system, key = _file_system(folder)
        try:
            listed = system.ls(key, detail=True)
        except remote_errors():
            return ()
        found = {
            name: Entry(name, "folder" if entry.get("type") == "directory" else "file")
            for entry in listed
            if (name := str(entry["name"]).rstrip("/").rpartition("/")[2]) and entry["name"].rstrip("/") != key
        }
    else:
        try:
            with os.scandir(folder or ".") as entries:
                found = {entry.name: _entry(entry) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except (OSError, ValueError) as error:
            raise unreadable(folder, error) from error
    return tuple(found[name] for name in in_natural_order(found))


def names_in(folder: str) -> tuple[tuple[str, bool], ...]:
    """Return `(name, is a folder)` of everything in a folder, likewise.

    Raises:
        BadRequest: A local folder cannot be read.
    """
    return tuple((entry.name, entry.kind == "folder") for entry in entries_in(folder))


def expand(pattern: str) -> tuple[str, ...]:
    """Return the URLs that match a pattern, in natural order; none where the storage cannot list."""
    system, key = _file_system(pattern)
    protocol = pattern.split("://", 1)[0]
    try:
        return tuple(f"{protocol}://{found.lstrip('/')}" for found in in_natural_order(map(str, system.glob(key))))
    except remote_errors():
        return ()


def _entry(entry: os.DirEntry[str]) -> Entry:
    """Return an entry of a local folder; what is no link is not asked for."""
    link = entry.is_symlink()
    try:
        if entry.is_dir():
            return Entry(entry.name, "folder", link)
        if entry.is_file():
            return Entry(entry.name, "file", link)
        if not link:
            return Entry(entry.name, "special")
        os.stat(entry.path)
    except PermissionError:
        return Entry(entry.name, "unreadable", link)
    except OSError:  # No target, or a loop of symbolic links.
        return Entry(entry.name, "nowhere", link)
    return Entry(entry.name, "special", link)


def _answer(path: str, question: str) -> bool:
    system, key = _file_system(path)
    try:
        return bool(getattr(system, question)(key))
    except remote_errors() as error:
        raise unreadable(path, error) from error


def _file_system(path: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the key of the object in it."""
    protocol = path.split("://", 1)[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtra(f"{path}: reading URLs needs fsspec; pip install fsspec") from None
    try:
        system, key = url_to_fs(path)
    except ImportError as error:
        package = getattr(error, "name", None) or _BACKENDS.get(protocol)
        advice = f"pip install {_BACKENDS.get(protocol, package)}" if package else str(error)
        raise MissingExtra(f"{path}: reading {protocol}:// needs another package; {advice}") from error
    except ValueError as error:
        raise BadRequest(f"{path}: {error}") from error
    return system, str(key)


# What to install for the commonest protocols; fsspec's own error names the rest.
_BACKENDS = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}


def remote_errors() -> tuple[type[BaseException], ...]:
    """Return what fsspec and the backends that are loaded raise when storage fails; some have roots of their own."""
    # RuntimeError includes NotImplementedError: storage that cannot list.
    errors: list[type[BaseException]] = [OSError, ValueError, RuntimeError]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("requests", "RequestException"),
        ("httpx", "HTTPError"),
    ):
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            errors.append(found)
    return tuple(errors)


def _as_os_error(path: str, error: BaseException) -> Exception:
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(path)
    return unreadable(path, error)
