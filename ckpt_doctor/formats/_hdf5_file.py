"""An HDF5 file, opened once for all who read it.

Everything goes through our own streams, never through HDF5's drivers: the same way reads local files, remote ones and
members of zip archives, takes no lock on a file that a training process is writing, and cannot be led to another file
by a link.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import (
    Dataset,
    read_pieces,
    read_value,
)
from ckpt_doctor.formats._hdf5_errors import hdf5_errors
from ckpt_doctor.formats._hdf5_guard import GuardedStream
from ckpt_doctor.formats._hdf5_objects import (
    OpenFile,
)
from ckpt_doctor.formats._hdf5_superblock import Superblock, is_mangled, read_superblock
from ckpt_doctor.formats._hdf5_texts import Texts
from ckpt_doctor.formats._streams import Handle, open_handle, read_bytes, stream

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# Vectors are read by the check of every value, by that for NaN, and by the rules; kernels only by the first two.
_SMALL_BYTES = 1 << 16
_REMEMBERED_BYTES = 1 << 25


class Hdf5File:
    """One HDF5 file; opened when it is first read, closed with this object.

    Args:
        where: Its name, for messages.
        opener: Returns the bytes; may raise `Damaged`.
    """

    def __init__(self, where: str, opener: Callable[[], Handle]) -> None:
        self.where = where
        self._opener = opener
        self._lock = threading.RLock()
        self._file: OpenFile | None = None
        self._failure: tuple[type[Damaged], tuple[Any, ...]] | None = None
        self._facts: dict[Callable[[OpenFile], Any], Any] = {}
        self._values: dict[str, Array] = {}
        self._room = _REMEMBERED_BYTES

    @classmethod
    def at(cls, path: str) -> Hdf5File:
        """Return the file at a path."""

        def opener() -> Handle:
            try:
                return open_handle(path)
            except FileNotFoundError:
                raise BadRequest(f"{path}: no such file") from None

        return cls(path, opener)

    @contextmanager
    def reading(self) -> Iterator[OpenFile]:
        """Give the open file, to one thread at a time.

        Raises:
            Damaged: It is not an HDF5 file, or not whole, or HDF5 gives up on it.
        """
        with self._lock:
            if self._failure is not None:
                kind, arguments = self._failure
                raise kind(*arguments)
            if self._file is None:
                try:
                    self._file = self._opened()
                except Damaged as error:
                    # Without its traceback, which would keep the file open.
                    self._failure = Damaged, (error.kind, error.reason)
                    raise
            yield self._file

    def fact(self, find: Callable[[OpenFile], _T]) -> _T:
        """Return what `find` returns for the open file, which it is asked once.

        Raises:
            Damaged: See `reading`, and `find`.
        """
        with self.reading() as file:
            if find not in self._facts:
                self._facts[find] = find(file)
            found: _T = self._facts[find]
            return found

    def value(self, dataset: Dataset) -> Array:
        """Return the value of a dataset.

        Raises:
            Damaged: See `read_value` and `reading`.
        """
        with self._lock:
            known = self._values.get(dataset.path)
            if known is not None:
                return known.copy()
            with self.reading() as file:
                value = read_value(file, dataset)
            if value.dtype != object and value.nbytes <= min(_SMALL_BYTES, self._room):
                self._room -= value.nbytes
                self._values[dataset.path] = value.copy()
            return value

    def pieces(self, dataset: Dataset) -> Iterator[Array]:
        """Yield the value of a dataset of numbers chunk by chunk.

        Raises:
            Damaged: See `read_pieces` and `reading`.
        """
        with self._lock, self.reading() as file:
            yield from read_pieces(file, dataset)

    def _opened(self) -> OpenFile:
        handle = self._opener()
        superblock = _whole(handle)
        try:
            return self._opened_by_hdf5(handle, superblock)
        except Damaged as error:
            if not superblock.is_open:
                raise
            # The superblock's own length was then never brought up to date. Many such files are whole all the same.
            message = (
                f"{handle.size} bytes of a file that was never closed: the save was interrupted, or the file was "
                f"copied before it ended ({error.reason})"
            )
            raise Damaged("truncated", message) from error

    def _opened_by_hdf5(self, handle: Handle, superblock: Superblock) -> OpenFile:
        import h5py

        guarded = GuardedStream(handle, superblock.length_size)
        with hdf5_errors():
            file = h5py.File(cast("BinaryIO", guarded), "r")
        # Also at the interpreter's exit: HDF5 would otherwise close it when there is no Python left to call.
        weakref.finalize(self, _close, file)
        _log.debug("%s: opened, %d bytes of HDF5, superblock version %d", self.where, handle.size, superblock.version)
        return OpenFile(file, Texts(handle, superblock), handle.size)


def _close(file: Any) -> None:
    # Nothing was written, so that nothing is lost with an error.
    with contextlib.suppress(Damaged), hdf5_errors():
        file.close()


def _whole(handle: Handle) -> Superblock:
    """Return the superblock of an HDF5 file with nothing cut off its end.

    Raises:
        Damaged: It is none, or is cut off.
    """
    try:
        superblock = read_superblock(stream(handle))
    except Damaged as error:
        message = f"the HDF5 signature has no superblock after it: {error.reason}"
        raise Damaged("not-a-checkpoint", message) from error
    if superblock is None:
        raise Damaged("not-a-checkpoint", _what_it_is(read_bytes(handle, 0, 512)))
    if superblock.end > handle.size:
        raise Damaged("truncated", f"{handle.size} bytes, the superblock declares {superblock.end}")
    return superblock


def _what_it_is(head: bytes) -> str:
    """Say what a file without the HDF5 signature looks like."""
    if not head:
        return "the file is empty; expected an HDF5 file"
    if is_mangled(head):
        shown = " ".join(f"{byte:02X}" for byte in head[:8])
        return (
            f"starts with {shown}: an HDF5 file whose line ends a text-mode copy has changed, which cannot be undone; "
            "copy it again as binary (git: `*.h5 binary` in .gitattributes)"
        )
    described = _foreign.describe(head)
    if described:
        return f"is {described}; expected an HDF5 file"
    return f"starts with {head[:8].hex(' ')}; an HDF5 file starts with 89 48 44 46 0d 0a 1a 0a"
