"""A stream between HDF5 and the bytes, which stops what would hang or crash the library on damaged files.

HDF5 believes some of the lengths that it reads: a heap of variable-length strings with one wrong size makes it loop for
ever, in C, where nothing can interrupt it. Every block passes through here first, and those are checked.

Source: HDF5 File Format Specification 3.0, III.E (global heap); `H5HG__cache_heap_deserialize` in H5HGcache.c, 1.14.6.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

_HEAP_SIGNATURE = b"GCOL"
_HEAP_HEADER = 16
_OBJECT_HEADER = 16


class GuardedStream(io.RawIOBase):
    """A read-only stream that refuses to hand damaged structures to HDF5.

    Args:
        stream: The stream beneath, closed with this one.
        length_size: Size of HDF5's lengths in bytes, from the superblock.
    """

    def __init__(self, stream: BinaryIO, length_size: int) -> None:
        super().__init__()
        self._stream = cast("io.BufferedIOBase", stream)
        self._length_size = length_size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; see `io.IOBase.seek`."""
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # h5py and io hand over memoryviews
        """Read a block, and check it where it is one that HDF5 does not check.

        Raises:
            OSError: It is damaged.
        """
        count = 0
        view = memoryview(buffer)
        while count < len(view):
            more = self._stream.readinto(view[count:])
            if not more:
                break
            count += more
        if count >= _HEAP_HEADER and view[:4] == _HEAP_SIGNATURE:
            check_heap(bytes(view[:count]), self._length_size)
        return count

    def close(self) -> None:
        """Close the stream beneath as well."""
        if not self.closed:
            self._stream.close()
        super().close()


def check_heap(block: bytes, length_size: int) -> None:
    """Check that the objects of a global heap follow each other to its end.

    Args:
        block: The heap from its signature on; one that is not complete yet is left for when it is.
        length_size: Size of HDF5's lengths in bytes.

    Raises:
        OSError: They do not.
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
            raise OSError(f"damaged heap of strings: object {index} of {length} bytes at byte {position} of {size}")
        position += step
