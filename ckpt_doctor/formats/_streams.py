"""Files for libraries that want a stream (h5py, zipfile): any number of streams on one handle.

Of the handles of local files only those used last hold a descriptor (see `_descriptors`); another one is opened again
where it is read, if its path still leads to the same file. Remote objects are read in blocks, as fsspec caches them.
"""

from __future__ import annotations

import io
import os
import threading
from typing import Any, BinaryIO, Protocol, cast

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._boundary import remember
from ckpt_doctor.formats._descriptors import RECENT, identity
from ckpt_doctor.formats._local_file import unreadable
from ckpt_doctor.formats._storage import is_remote, open_remote, remote_errors


class Handle(Protocol):
    """One file, or a part of one.

    Attributes:
        path: Its name, for messages.
        size: In bytes.
    """

    path: str
    size: int

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Read up to `len(buffer)` bytes from `offset`; return how many.

        Raises:
            BadRequest: The storage fails.
        """
        ...


class LocalHandle:
    """A file of this machine; stays the same file when its path is given to a new one by a rename.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._file: io.FileIO | None = None
        self.path = path
        self._lock = threading.Lock()
        self._file = self._opened()
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        self._identity = identity(status)
        RECENT.used(self)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """See `Handle.readinto`."""
        with self._lock:
            if self._file is None:
                self._file = self._same_again()
            try:
                self._file.seek(offset)
                count = self._file.readinto(buffer)
            except OSError as error:
                raise unreadable(self.path, error) from error
        RECENT.used(self)
        return count

    def release(self) -> None:
        """Give the descriptor back until the next read; not while one goes on."""
        if self._lock.acquire(blocking=False):
            try:
                if self._file is not None:
                    self._file.close()
                    self._file = None
            finally:
                self._lock.release()

    def _opened(self) -> io.FileIO:
        try:
            return io.FileIO(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(self.path) from None
        except (OSError, ValueError) as error:  # ValueError: a null byte.
            raise unreadable(self.path, error) from error

    def _same_again(self) -> io.FileIO:
        try:
            file = self._opened()
        except FileNotFoundError as error:
            raise BadRequest(f"{self.path}: was removed while it was read") from error
        if identity(os.fstat(file.fileno())) != self._identity:
            file.close()
            raise BadRequest(f"{self.path}: was changed while it was read; start again")
        return file


class FileHandle:
    """An open file that cannot be opened again: a remote object, or a nameless temporary file.

    Args:
        path: Its name, for messages.
        file: The file, closed with the handle.
        errors: What reading it raises when the storage fails.
    """

    def __init__(self, path: str, file: Any, errors: tuple[type[BaseException], ...] = (OSError,)) -> None:
        self.path = path
        self._file = file
        self._errors = errors
        self._lock = threading.Lock()
        try:
            self.size = int(file.seek(0, io.SEEK_END))
        except errors as error:
            raise unreadable(path, error) from error

    def __del__(self) -> None:
        self._file.close()

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """See `Handle.readinto`."""
        with self._lock:
            try:
                self._file.seek(offset)
                data = self._file.read(len(buffer))
            except self._errors as error:
                raise unreadable(self.path, error) from error
        buffer[: len(data)] = data
        return len(data)


class MemoryHandle:
    """Bytes in memory."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.size = len(data)
        self._data = memoryview(data)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """See `Handle.readinto`."""
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


class Window:
    """A part of another handle: `size` bytes from `offset`."""

    def __init__(self, handle: Handle, offset: int, size: int) -> None:
        self.path = handle.path
        self.size = size
        self._handle = handle
        self._offset = offset

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """See `Handle.readinto`."""
        wanted = min(len(buffer), self.size - offset)
        return self._handle.readinto(self._offset + offset, buffer[:wanted]) if wanted > 0 else 0


class _Stream(io.RawIOBase):
    """A read-only stream with a position of its own."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._handle.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            if self._position >= self._handle.size:
                return 0
            count = self._handle.readinto(self._position, memoryview(buffer))
        except BaseException as error:
            remember(error)  # The library that reads may translate it.
            raise
        self._position += count
        return count


def stream(handle: Handle) -> BinaryIO:
    """Return a buffered stream on a handle, at its start."""
    return cast("BinaryIO", io.BufferedReader(_Stream(handle)))


def open_handle(path: str) -> Handle:
    """Open a file.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It cannot be read.
        MissingExtra: The URL needs a package that is not installed.
    """
    if is_remote(path):
        return FileHandle(path, open_remote(path), remote_errors())
    return LocalHandle(path)


def read_bytes(handle: Handle, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`, fewer where it ends before.

    Raises:
        BadRequest: The storage fails.
    """
    length = max(0, min(length, handle.size - offset))
    buffer = bytearray(length)
    view = memoryview(buffer)
    count = 0
    while count < length and (more := handle.readinto(offset + count, view[count:])):
        count += more
    return bytes(view[:count])


def open_binary(path: str) -> BinaryIO:
    """Open a file as a buffered stream; see `open_handle`."""
    return stream(open_handle(path))
