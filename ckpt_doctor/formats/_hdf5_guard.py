"""A stream between HDF5 and the bytes, which stops what would hang or crash the library on damaged files.

HDF5 believes some of the lengths that it reads: a heap of variable-length strings with one wrong size makes it loop for
ever, in C, where nothing can interrupt it. Every block passes through here first, and those are checked.

The stream keeps no exception: a traceback leads to h5py's frames, from there to a property list of HDF5, and from that
back to the stream, through C, where no garbage collector looks. HDF5 would then call Python after its end (h5py 3.14).

Source: HDF5 File Format Specification 3.0, III.E (global heap); `H5HG__cache_heap_deserialize` in H5HGcache.c, 1.14.6.
"""

from __future__ import annotations

import io

from ckpt_doctor.formats._boundary import remember
from ckpt_doctor.formats._hdf5_errors import beyond_the_end, structure
from ckpt_doctor.formats._streams import Handle

_HEAP_SIGNATURE = b"GCOL"
_HEAP_HEADER = 16
_OBJECT_HEADER = 16


class GuardedStream(io.RawIOBase):
    """A read-only stream that refuses to hand damaged structures to HDF5.

    Args:
        handle: The bytes.
        length_size: Size of HDF5's lengths in bytes, from the superblock.
    """

    def __init__(self, handle: Handle, length_size: int) -> None:
        super().__init__()
        self._handle = handle
        self._length_size = length_size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; see `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._handle.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # h5py and io hand over memoryviews
        """Read a block, and check it where it is one that HDF5 does not check.

        Raises:
            Damaged: The file ends before, or the block would hang HDF5.
            BadRequest: The storage fails.
        """
        try:
            self._read(memoryview(buffer))
        except BaseException as error:
            remember(error)
            raise
        return len(buffer)

    def _read(self, view: memoryview) -> None:
        """Fill the view from where the stream stands.

        Raises:
            Damaged: The file ends before, or the block would hang HDF5.
        """
        start, wanted = self._position, len(view)
        count = 0
        if start + wanted <= self._handle.size:
            while count < wanted and (more := self._handle.readinto(start + count, view[count:])):
                count += more
        if count < wanted:
            raise beyond_the_end(f"{wanted} bytes at {start} are incomplete")
        self._position += wanted
        if wanted >= _HEAP_HEADER and view[:4] == _HEAP_SIGNATURE:
            check_heap(bytes(view), self._length_size)


def check_heap(block: bytes, length_size: int) -> None:
    """Check that the objects of a global heap follow each other to its end.

    Args:
        block: The heap from its signature on; one that is not complete yet is left for when it is.
        length_size: Size of HDF5's lengths in bytes.

    Raises:
        Damaged: They do not.
    """
    size = int.from_bytes(block[8 : 8 + length_size], "little")
    if size > len(block):
        return
    position = _HEAP_HEADER
    while position + _OBJECT_HEADER <= size:
        index = int.from_bytes(block[position : position + 2], "little")
        length = int.from_bytes(block[position + 8 : position + 8 + length_size], "little")
        # The size of free space (index 0) includes its header.
        step = _OBJECT_HEADER + (length + 7) // 8 * 8 if index else length
        if step < _OBJECT_HEADER or position + step > size:
            raise structure(f"damaged heap of strings: object {index} of {length} bytes at byte {position} of {size}")
        position += step
