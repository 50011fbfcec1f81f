"""CRC32C as TensorFlow stores it.

TensorFlow and LevelDB mask a checksum before it is stored, because the checksum of data that hold checksums is weak:
rotated right by 15 bits, plus a constant (tensorflow/core/lib/hash/crc32c.h).
"""

from __future__ import annotations

from collections.abc import Iterable

import google_crc32c
import numpy as np

_DELTA = 0xA282EAD8


def mask(crc: int) -> int:
    """Return the stored form of a CRC32C."""
    return ((crc >> 15 | crc << 17) + _DELTA) & 0xFFFFFFFF


def extend(crc: int, data: bytes | memoryview) -> int:
    """Return the CRC32C of what `crc` was of, followed by `data`."""
    # The C code wants `bytes` or an array; the array makes no copy of a view.
    return int(google_crc32c.extend(crc, np.frombuffer(data, np.uint8))) if len(data) else crc


def masked(data: bytes | memoryview) -> int:
    """Return the stored form of the CRC32C of `data`."""
    return mask(int(google_crc32c.value(data)) if isinstance(data, bytes) else extend(0, data))


def masked_of(pieces: Iterable[memoryview]) -> int:
    """Return the stored form of the CRC32C of all pieces in a row."""
    crc = 0
    for piece in pieces:
        crc = extend(crc, piece)
    return mask(crc)
