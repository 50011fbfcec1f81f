"""Slices of partitioned variables, and the keys under which they lie.

A variable that was saved in parts has one entry that lists its slices and, for each slice, an entry under a key made of
name and slice in OrderedCode, an encoding that sorts as its values do
(tensorflow/core/util/saved_tensor_slice_util.cc: EncodeTensorNameSlice, tensorflow/core/lib/strings/ordered_code.cc).
"""

from __future__ import annotations

from typing import Any

from ckpt_doctor.formats._damaged import Damaged

WHOLE = -1  # The length of an extent that spans its dimension.

Extents = tuple[tuple[int, int], ...]


def extents_of(message: Any) -> Extents:
    """Return `(start, length)` of every dimension of a `TensorSlice` message."""
    return tuple((extent.start, extent.length if extent.HasField("length") else WHOLE) for extent in message.extent)


def bounds(extents: Extents, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the slice as indices into an array of `shape`.

    Raises:
        Damaged: It does not lie within the shape.
    """
    if len(extents) != len(shape):
        raise Damaged("checksum-mismatch", f"a slice has {len(extents)} dimensions, its variable has {len(shape)}")
    out = []
    for (start, length), size in zip(extents, shape, strict=True):
        if length == WHOLE:
            start, length = 0, size
        if start < 0 or length < 0 or start + length > size:
            raise Damaged("checksum-mismatch", f"a slice spans {start} to {start + length} of a dimension of {size}")
        out.append(slice(start, start + length))
    return tuple(out)


def key_of(name: bytes, extents: Extents) -> bytes:
    """Return the key of a slice of the variable `name`."""
    out = bytearray(_number(0) + _string(name) + _number(len(extents)))
    for start, length in extents:
        out += _signed(start) + _signed(length)
    return bytes(out)


def is_slice_key(key: bytes) -> bool:
    """Return whether a key is that of a slice: it begins with the number 0, as no variable's name does."""
    return key.startswith(b"\0")


def _number(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _string(value: bytes) -> bytes:
    out = bytearray()
    for byte in value:
        out.append(byte)
        if byte == 0:
            out.append(255)
        elif byte == 255:
            out.append(0)
    return bytes(out) + b"\0\1"


def _signed(value: int) -> bytes:
    """Return a signed number: as many bytes as it needs, their count in the leading bits, inverted where negative."""
    magnitude = ~value if value < 0 else value
    if magnitude < 64:
        return bytes([0x80 ^ (value & 255)])
    length = magnitude.bit_length() // 7 + 1
    out = bytearray((value & (1 << 8 * length) - 1).to_bytes(length, "big"))
    # `length` leading ones; the tenth byte's worth spills into the second byte.
    header = ((1 << length) - 1) << (16 - length)
    out[0] ^= header >> 8
    out[1] ^= header & 255
    return bytes(out)
