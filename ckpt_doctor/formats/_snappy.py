"""Snappy, read only: the compression that blocks of a table may have.

A block is its length when unpacked, as a varint, and then elements: literals, and copies of what was unpacked before
(https://github.com/google/snappy/blob/main/format_description.txt). TensorFlow writes blocks uncompressed; old files
and other writers hold compressed ones.
"""

from __future__ import annotations

from ckpt_doctor.formats._damaged import Damaged

# The densest element copies 64 bytes and takes three (two bytes give 11 at most).
_MOST_EXPANSION = 22


class SnappyError(Damaged):
    """A block is damaged; the reason follows "a compressed block"."""

    def __init__(self, reason: str) -> None:
        super().__init__("checksum-mismatch", reason)


def unpack(data: bytes | memoryview) -> bytes:
    """Return the unpacked bytes.

    Raises:
        SnappyError: The data are no Snappy block, or claim a size that they cannot unpack to.
    """
    data = bytes(data)
    length, position = _length(data)
    if length > len(data) * _MOST_EXPANSION:
        raise SnappyError(f"claims to unpack {len(data)} bytes to {length}, more than Snappy can")
    out = bytearray()
    end = len(data)
    while position < end:
        tag = data[position]
        position += 1
        kind = tag & 3
        if kind == 0:
            count = tag >> 2
            if count >= 60:
                extra = count - 59
                count = int.from_bytes(data[position : position + extra], "little")
                position += extra
            count += 1
            if position + count > end:
                raise SnappyError("a literal ends after the block")
            out += data[position : position + count]
            position += count
        else:
            width = (1, 2, 4)[kind - 1]
            if position + width > end:
                raise SnappyError("a copy ends after the block")
            back = int.from_bytes(data[position : position + width], "little")
            position += width
            if kind == 1:
                count = (tag >> 2 & 7) + 4
                back |= (tag >> 5) << 8
            else:
                count = (tag >> 2) + 1
            if not 0 < back <= len(out):
                raise SnappyError("a copy begins before the block")
            start = len(out) - back
            if back >= count:
                out += out[start : start + count]
            else:  # The copy overlaps itself: the last `back` bytes repeat.
                out += (bytes(out[start:]) * (count // back + 1))[:count]
        if len(out) > length:
            raise SnappyError("unpacks to more than it claims")
    if len(out) != length:
        raise SnappyError(f"unpacks to {len(out)} bytes instead of {length}")
    return bytes(out)


def _length(data: bytes) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(data[:5]):
        value |= (byte & 127) << 7 * position
        if byte < 128:
            return value, position + 1
    raise SnappyError("has no length")
