"""The values of a tensor bundle: bytes in data files ⇄ arrays.

Numbers lie as in memory, in row-major order, and `crc32c` is of those bytes. Strings lie as::

    varint length of every string …, masked CRC32C of the lengths (4 bytes), the bytes of every string …

where `crc32c` is of every length as four bytes (eight above 2^32-1), of the four bytes of the checksum, and of the
strings.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc (WriteStringTensor, ReadStringTensor, GetValue).
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.formats import _checksum, _dtypes
from ckpt_doctor.formats._bundle_index import Record
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._storage import Source
from ckpt_doctor.formats._table import BadVarint, decode_varint, encode_varint

STRING = 7
VARIANT = 21
# Their bytes are of several lengths, and their checksums not those of their bytes.
OF_NO_NUMBERS = (STRING, VARIANT)


def read(source: Source, record: Record, shape: tuple[int, ...], *, big_endian: bool) -> Array:
    """Return one entry's value after checking its checksum.

    Args:
        source: The data file.
        record: The entry.
        shape: The dimensions of what lies there: the whole variable, or one slice.
        big_endian: Whether the bundle is.

    Raises:
        Damaged: It is short, or fails its checksum, or is of a type that has no array.
    """
    data = _bytes(source, record)
    if record.dtype == STRING:
        return _shaped(_decode_strings(data, record, math.prod(shape), big_endian=big_endian), shape)
    _compare(_checksum.masked(data), record)
    check_size(record, shape)
    return decode(data, record, shape, big_endian=big_endian)


def decode(data: bytes | memoryview, record: Record, shape: tuple[int, ...], *, big_endian: bool) -> Array:
    """Return the value of one entry of numbers whose bytes and size were checked; see `read`.

    Raises:
        Damaged: It is of a type that has no array.
    """
    dtype = _dtypes.array_type(record.dtype)
    if dtype is None:
        name = _dtypes.name_of(record.dtype)
        raise Damaged("not-a-checkpoint", f"holds values of type {name}, which have no array")
    array = np.frombuffer(data, dtype)
    if len(shape) != 1:
        array = _shaped(array, shape)
    return _dtypes.swapped(array) if big_endian != (sys.byteorder == "big") else array


def verify(source: Source, record: Record, shape: tuple[int, ...], *, big_endian: bool) -> None:
    """Read one entry's bytes in pieces and check them.

    Raises:
        Damaged: They are short, or fail their checksum.
    """
    if record.dtype == STRING:
        _decode_strings(_bytes(source, record), record, math.prod(shape), big_endian=big_endian)
        return
    try:
        if record.dtype == VARIANT:
            _compare(_variant_checksum(bytes(source.read(record.offset, record.size)), math.prod(shape)), record)
        else:
            check_size(record, shape)
            _compare(_checksum.masked_of(source.chunks(record.offset, record.size)), record)
    except OutOfBounds as error:
        raise short(record, error) from error


def verify_bytes(data: bytes, record: Record) -> None:
    """Check the bytes of one entry of numbers; its size is checked by `check_size`, best before they are read.

    Raises:
        Damaged: They fail their checksum.
    """
    _compare(_checksum.masked(data), record)


def encode(array: Array, *, big_endian: bool) -> tuple[bytes, int]:
    """Return an array as it is stored, and its masked checksum."""
    if array.dtype == object:
        return _encode_strings(array, big_endian=big_endian)
    if big_endian != (sys.byteorder == "big"):
        array = _dtypes.swapped(array)
    data = np.ascontiguousarray(array).tobytes()
    return data, _checksum.masked(data)


def check_size(record: Record, shape: tuple[int, ...]) -> None:
    """Refuse an entry whose size is not that of its shape.

    Raises:
        Damaged: They differ.
    """
    width = _dtypes.size_of(record.dtype)
    needed = width * math.prod(shape)
    if width and needed != record.size:
        raise Damaged("truncated", f"{record.size} bytes are stored, shape {list(shape)} needs {needed}")


def no_array(shape: tuple[int, ...]) -> Damaged:
    """Return the damage of a shape that NumPy refuses: too many dimensions, or absurd ones beside a zero."""
    return Damaged("not-a-checkpoint", f"no array can have the shape {list(shape)[:8]} ({len(shape)} dimensions)")


def _shaped(flat: Array, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise no_array(shape) from error


def _bytes(source: Source, record: Record) -> memoryview:
    try:
        return source.read(record.offset, record.size)
    except OutOfBounds as error:
        raise short(record, error) from error


def short(record: Record, error: OutOfBounds) -> Damaged:
    """Return the damage of an entry that ends after its data file."""
    return Damaged("truncated", f"needs bytes {record.offset} to {error.needed}, but the file has {error.size}")


def _compare(found: int, record: Record) -> None:
    if found != record.crc:
        raise Damaged("checksum-mismatch", f"checksum {found:#010x}, {record.crc:#010x} is stored")


def _order(big_endian: bool) -> Any:
    return "big" if big_endian else "little"


def _lengths_checksum(lengths: list[int], big_endian: bool) -> int:
    order = _order(big_endian)
    packed = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, order) for length in lengths)
    return _checksum.extend(0, packed)


def _decode_strings(data: memoryview, record: Record, count: int, *, big_endian: bool) -> Array:
    """Return `count` strings as a flat object array of `bytes`."""
    if count > len(data):  # Every string takes a byte for its length.
        raise Damaged("truncated", f"{len(data)} bytes are stored, {count} strings need more")
    lengths = []
    position = 0
    try:
        for _ in range(count):
            length, position = decode_varint(data, position)
            lengths.append(length)
    except BadVarint:
        raise Damaged("checksum-mismatch", "the lengths of its strings are damaged") from None
    stored = bytes(data[position : position + 4])
    position += 4
    if not count and not data:
        return np.empty(0, object)
    crc = _lengths_checksum(lengths, big_endian)
    if len(stored) < 4 or _checksum.mask(crc) != int.from_bytes(stored, _order(big_endian)):
        raise Damaged("checksum-mismatch", "the lengths of its strings fail their checksum")
    if position + sum(lengths) != len(data):
        raise Damaged("truncated", f"{len(data)} bytes are stored, its strings need {position + sum(lengths)}")
    _compare(_checksum.mask(_checksum.extend(_checksum.extend(crc, stored), data[position:])), record)
    out = np.empty(count, object)
    for number, length in enumerate(lengths):
        out[number] = bytes(data[position : position + length])
        position += length
    return out


def _encode_strings(array: Array, *, big_endian: bool) -> tuple[bytes, int]:
    strings = [value.encode() if isinstance(value, str) else bytes(value) for value in array.reshape(-1)]
    lengths = [len(value) for value in strings]
    crc = _lengths_checksum(lengths, big_endian)
    stored = _checksum.mask(crc).to_bytes(4, _order(big_endian))
    body = b"".join(strings)
    crc = _checksum.extend(_checksum.extend(crc, stored), body)
    return b"".join(map(encode_varint, lengths)) + stored + body, _checksum.mask(crc)


def _variant_checksum(data: bytes, count: int) -> int:
    """Return the masked checksum of serialised variants: of each length as eight bytes, content, running checksum."""
    crc = 0
    position = 0
    try:
        for _ in range(count):
            length, position = decode_varint(data, position)
            end = position + length
            crc = _checksum.extend(crc, length.to_bytes(8, "little"))
            crc = _checksum.extend(crc, data[position:end])
            crc = _checksum.extend(crc, data[end : end + 4])
            position = end + 4
            if position > len(data):
                break
    except BadVarint:
        raise Damaged("checksum-mismatch", "its variants are damaged") from None
    if position != len(data):
        raise Damaged("truncated", f"{len(data)} bytes are stored, its variants need {position}")
    return _checksum.mask(crc)
