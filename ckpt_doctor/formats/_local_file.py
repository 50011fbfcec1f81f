"""Reading a file of this machine.

Values are read with `pread` into memory of our own and never through a memory map: when another process truncates a
mapped file (`cp` over a checkpoint that is being scanned), the next access ends the whole process with SIGBUS, and no
handler can turn that into a message. A map saves one copy, about 0.03 s for 100 MB; checksums need no copy either way.
"""

# Paths are strings, as in `_storage`.
from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._descriptors import RECENT

CHUNK = 1 << 20  # One megabyte: fits the cache, so that a checksum reads each byte from memory once.


class OutOfBounds(EOFError):
    """A range ends after the end of its file.

    Attributes:
        path: The file.
        needed: Where the range ends, in bytes from the start of the file.
        size: The size of the file in bytes.
    """

    def __init__(self, path: str, needed: int, size: int) -> None:
        self.path = path
        self.needed = needed
        self.size = size
        super().__init__(f"{path}: ends at byte {size}, {needed} bytes are needed")


class LocalFile:
    """A file of this machine; stays the same file when its path is given to a new one by a rename.

    Raises:
        FileNotFoundError: It is not there.
        BadRequest: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._fd = -1
        self.path = path
        self._lock = threading.Lock()
        self._open()
        status = os.fstat(self._fd)
        self.size = status.st_size
        self._place = status.st_dev, status.st_ino
        RECENT.used(self)

    def _open(self) -> None:
        # Without O_NONBLOCK a pipe with a name is waited for until somebody writes to it; files do not heed it.
        flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))
        try:
            self._fd = os.open(self.path, sum(flags, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(self.path) from None
        except (OSError, ValueError) as error:  # ValueError: a null byte.
            raise unreadable(self.path, error) from error
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            os.close(self._fd)
            self._fd = -1
            raise BadRequest(f"{self.path}: is a pipe or a device; expected a file")

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def release(self) -> None:
        """Give the descriptor back until the next read; not while one goes on."""
        if self._lock.acquire(blocking=False):
            try:
                if self._fd >= 0:
                    os.close(self._fd)
                    self._fd = -1
            finally:
                self._lock.release()

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        """Give the descriptor, which is taken again if it was given back."""
        with self._lock:
            if self._fd < 0:
                try:
                    self._open()
                except FileNotFoundError as error:
                    raise BadRequest(f"{self.path}: was removed while it was read") from error
                status = os.fstat(self._fd)
                if (status.st_dev, status.st_ino) != self._place:
                    os.close(self._fd)
                    self._fd = -1
                    raise BadRequest(f"{self.path}: was replaced while it was read; start again")
            yield self._fd
        RECENT.used(self)

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfBounds(self.path, offset + length, self.size)
        pieces = []
        try:
            while length:
                # Linux moves at most 2 GiB a call.
                piece = self._pread(min(length, 1 << 30), offset)
                if not piece:
                    raise OutOfBounds(self.path, offset + length, offset)
                pieces.append(piece)
                offset += len(piece)
                length -= len(piece)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def chunks(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `Source.chunks`."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise OutOfBounds(self.path, end, self.size)
        if length <= CHUNK or not hasattr(os, "preadv"):
            for start in range(offset, end, CHUNK):
                yield self.read(start, min(CHUNK, end - start))
            return
        buffer = memoryview(bytearray(CHUNK))
        while offset < end:
            try:
                with self._descriptor() as descriptor:
                    count = os.preadv(descriptor, [buffer[: min(CHUNK, end - offset)]], offset)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                raise OutOfBounds(self.path, end, offset)
            yield buffer[:count]
            offset += count

    def _pread(self, length: int, offset: int) -> bytes:
        with self._descriptor() as descriptor:
            if hasattr(os, "pread"):
                return os.pread(descriptor, length, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)  # Windows has no pread.
            return os.read(descriptor, length)


def unreadable(path: str, error: BaseException) -> BadRequest:
    """Return the error that says why `path` cannot be read."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return BadRequest(f"{path}: cannot be read: {reason}")
