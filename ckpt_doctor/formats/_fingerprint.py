"""The fingerprint of a SavedModel: `fingerprint.pb`, since TensorFlow 2.12.

Its `checkpoint_hash` is the FarmHash Fingerprint64 of `variables/variables.index`, so a rewrite must compute it anew.
The other hashes are of the graph, which a rewrite leaves alone. TensorFlow does not compare them when it loads; caches
and registries that are built on them do.

Sources: tensorflow/core/protobuf/fingerprint.proto, tensorflow/cc/saved_model/fingerprinting.cc
(HashCheckpointIndexFile), and the hash as published in https://github.com/google/farmhash (namespace farmhashna,
Hash64).
"""

from __future__ import annotations

from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._table import decode_varint, encode_varint

_CHECKPOINT_HASH = 5  # FingerprintDef.checkpoint_hash
_MASK = (1 << 64) - 1
_K0 = 0xC3A5C85C97CB3127
_K1 = 0xB492B66FBE98F273
_K2 = 0x9AE16A3B2F90404F


def with_checkpoint_hash(fingerprint: bytes, index: bytes) -> bytes:
    """Return a serialised `FingerprintDef` with the hash of a new index; one without any hash stays as it is.

    Raises:
        Damaged: It cannot be parsed.
    """
    out = bytearray()
    position = 0
    while position < len(fingerprint):
        start = position
        tag, position = decode_varint(fingerprint, position)
        if tag & 7 == 0:
            _, position = decode_varint(fingerprint, position)
        elif tag & 7 == 2:
            length, position = decode_varint(fingerprint, position)
            position += length
        elif tag & 7 in (1, 5):
            position += 8 if tag & 7 == 1 else 4
        else:
            raise Damaged("not-a-checkpoint", "has a field of unknown kind")
        if tag >> 3 == _CHECKPOINT_HASH:
            out += encode_varint(tag) + encode_varint(fingerprint64(index))
        else:
            out += fingerprint[start:position]
    return bytes(out)


def fingerprint64(data: bytes) -> int:
    """Return FarmHash's Fingerprint64."""
    size = len(data)
    if size <= 16:
        return _up_to_16(data)
    if size <= 32:
        return _up_to_32(data)
    if size <= 64:
        return _up_to_64(data)
    x = 81
    y = (81 * _K1 + 113) & _MASK
    z = _mix((y * _K2 + 113) & _MASK) * _K2 & _MASK
    v = w = (0, 0)
    x = (x * _K2 + _word(data, 0)) & _MASK
    end = (size - 1) // 64 * 64
    for at in range(0, end, 64):
        x, y, z, v, w = _round(data, at, x, y, z, v, w, _K1, 1)
    factor = _K1 + ((z & 255) << 1)
    w = ((w[0] + (size - 1 & 63)) & _MASK, w[1])
    v = ((v[0] + w[0]) & _MASK, v[1])
    w = ((w[0] + v[0]) & _MASK, w[1])
    x, y, z, v, w = _round(data, size - 64, x, y, z, v, w, factor, 9)
    return _pair(
        (_pair(v[0], w[0], factor) + _mix(y) * _K0 + z) & _MASK, (_pair(v[1], w[1], factor) + x) & _MASK, factor
    )


_Words = tuple[int, int]


def _round(
    data: bytes, at: int, x: int, y: int, z: int, v: _Words, w: _Words, factor: int, weight: int
) -> tuple[int, int, int, _Words, _Words]:
    """Return the state after 64 bytes."""
    x = _turn(x + y + v[0] + _word(data, at + 8), 37) * factor & _MASK
    y = _turn(y + v[1] + _word(data, at + 48), 42) * factor & _MASK
    x ^= w[1] * weight & _MASK
    y = (y + v[0] * weight + _word(data, at + 40)) & _MASK
    z = _turn(z + w[0], 33) * factor & _MASK
    v = _weak(data, at, v[1] * factor, x + w[0])
    w = _weak(data, at + 32, z + w[1], y + _word(data, at + 16))
    return z, y, x, v, w


def _weak(data: bytes, at: int, a: int, b: int) -> _Words:
    w, x, y, z = (_word(data, at + 8 * number) for number in range(4))
    a = (a + w) & _MASK
    b = _turn(b + a + z, 21)
    c = a
    a = (a + x + y) & _MASK
    b = (b + _turn(a, 44)) & _MASK
    return (a + z) & _MASK, (b + c) & _MASK


def _up_to_16(data: bytes) -> int:
    size = len(data)
    factor = _K2 + 2 * size
    if size >= 8:
        a = (_word(data, 0) + _K2) & _MASK
        b = _word(data, size - 8)
        return _pair((_turn(b, 37) * factor + a) & _MASK, (_turn(a, 25) + b) * factor & _MASK, factor)
    if size >= 4:
        a = int.from_bytes(data[:4], "little")
        return _pair((size + (a << 3)) & _MASK, int.from_bytes(data[-4:], "little"), factor)
    if size:
        y = data[0] + (data[size >> 1] << 8)
        z = size + (data[-1] << 2)
        return _mix((y * _K2 ^ z * _K0) & _MASK) * _K2 & _MASK
    return _K2


def _up_to_32(data: bytes) -> int:
    size = len(data)
    factor = _K2 + 2 * size
    a = _word(data, 0) * _K1 & _MASK
    b = _word(data, 8)
    c = _word(data, size - 8) * factor & _MASK
    d = _word(data, size - 16) * _K2 & _MASK
    return _pair((_turn(a + b, 43) + _turn(c, 30) + d) & _MASK, (a + _turn(b + _K2, 18) + c) & _MASK, factor)


def _up_to_64(data: bytes) -> int:
    size = len(data)
    factor = _K2 + 2 * size
    a = _word(data, 0) * _K2 & _MASK
    b = _word(data, 8)
    c = _word(data, size - 8) * factor & _MASK
    d = _word(data, size - 16) * _K2 & _MASK
    y = (_turn(a + b, 43) + _turn(c, 30) + d) & _MASK
    z = _pair(y, (a + _turn(b + _K2, 18) + c) & _MASK, factor)
    e = _word(data, 16) * factor & _MASK
    f = _word(data, 24)
    g = (y + _word(data, size - 32)) * factor & _MASK
    h = (z + _word(data, size - 24)) * factor & _MASK
    return _pair((_turn(e + f, 43) + _turn(g, 30) + h) & _MASK, (e + _turn(f + a, 18) + g) & _MASK, factor)


def _pair(u: int, v: int, factor: int) -> int:
    a = _mix((u ^ v) * factor & _MASK)
    b = _mix((v ^ a) * factor & _MASK)
    return b * factor & _MASK


def _mix(value: int) -> int:
    return value ^ value >> 47


def _turn(value: int, bits: int) -> int:
    value &= _MASK
    return (value >> bits | value << 64 - bits) & _MASK


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
