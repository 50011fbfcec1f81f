"""A second reader of TensorFlow's files, written apart from the package: the truth for what the package writes.

It trusts the file and checks nothing. Tables are read by the rules of LevelDB's documentation, messages by their field
numbers.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array, numpy_dtype

NAMES = (
    "- float32 float64 int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32 bfloat16 qint16 quint16 "
    "uint16 complex128 float16 resource variant uint32 uint64 float8_e5m2 float8_e4m3fn float8_e4m3fnuz "
    "float8_e4m3b11fnuz float8_e5m2fnuz int4 uint4"
).split()


def expected(folder: Path) -> dict[str, tuple[str, Array]]:
    """Return what TensorFlow read from a sample, as `fixtures/make_bundles.py` wrote it down."""
    out = {}
    with np.load(folder / "expected.npz") as arrays:
        for name, entry in json.loads((folder / "expected.json").read_text()).items():
            shape = tuple(entry["shape"])
            if "strings" in entry:
                value = np.empty(len(entry["strings"]), object)
                value[:] = [bytes.fromhex(text) for text in entry["strings"]]
            else:
                value = arrays[entry["key"]]
                if value.dtype != numpy_dtype(entry["dtype"]):
                    value = value.view(numpy_dtype(entry["dtype"]))
            out[name] = (entry["dtype"], value.reshape(shape))
    return out


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes) -> list[tuple[int, Any]]:
    out: list[tuple[int, Any]] = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value: Any
            value, at = varint(data, at)
        elif tag & 7 == 2:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        elif tag & 7 == 5:
            value, at = struct.unpack("<I", data[at : at + 4])[0], at + 4
        else:
            value, at = struct.unpack("<Q", data[at : at + 8])[0], at + 8
        out.append((tag >> 3, value))
    return out


def block(data: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    content = data[offset : offset + size]
    restarts = struct.unpack("<I", content[-4:])[0]
    end, at, key, out = len(content) - 4 - 4 * restarts, 0, b"", []
    while at < end:
        shared, at = varint(content, at)
        unshared, at = varint(content, at)
        length, at = varint(content, at)
        key = key[:shared] + content[at : at + unshared]
        at += unshared
        out.append((key, content[at : at + length]))
        at += length
    return out


def table(data: bytes) -> list[tuple[bytes, bytes]]:
    footer = data[-48:]
    assert footer[40:] == bytes.fromhex("57fb808b247547db")
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    size, at = varint(footer, at)
    out = []
    for _, handle in block(data, offset, size):
        start, at = varint(handle, 0)
        out += block(data, start, varint(handle, at)[0])
    return out


def shape_of(message: bytes) -> tuple[int, ...]:
    sizes = [dict(fields(dim)).get(1, 0) for number, dim in fields(message) if number == 2]
    return tuple(sizes)


def bundle(prefix: str) -> dict[str, Array]:
    """Return every variable of a bundle but the object graph; slices are put together by their shapes' order."""
    entries = table(Path(f"{prefix}.index").read_bytes())
    shards = dict(fields(entries[0][1])).get(1, 0)
    out: dict[str, Array] = {}
    pieces = {}
    for key, value in entries[1:]:
        entry = fields(value)
        flat = dict(entry)
        shape = shape_of(flat.get(2, b""))
        path = Path(f"{prefix}.data-{flat.get(3, 0):05d}-of-{shards:05d}")
        if key.startswith(b"\0"):
            pieces[key] = (path, flat, shape)
            continue
        if b"OBJECT" in key:
            continue
        slices = [content for number, content in entry if number == 7]
        out[key.decode()] = np.empty(0) if slices else stored(path, flat, shape)
        if slices:
            out[key.decode()] = np.zeros(shape, numpy_dtype(NAMES[flat[1]]))
            for one, (_, piece) in zip(slices, sorted(k for k in _of(key, entries)), strict=True):
                where = []
                for (number, extent), size in zip(fields(one), shape, strict=True):
                    assert number == 1
                    parts = dict(fields(extent))
                    where.append(slice(parts.get(1, 0), parts.get(1, 0) + parts.get(2, size)))
                part = dict(fields(piece))
                part_path = Path(f"{prefix}.data-{part.get(3, 0):05d}-of-{shards:05d}")
                out[key.decode()][tuple(where)] = stored(part_path, part, shape_of(part.get(2, b"")))
    return out


def _of(key: bytes, entries: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(k, v) for k, v in entries if k.startswith(b"\0" + key + b"\0\1")]


def stored(path: Path, entry: dict[int, Any], shape: tuple[int, ...]) -> Array:
    data = path.read_bytes()[entry.get(4, 0) : entry.get(4, 0) + entry.get(5, 0)]
    if NAMES[entry[1]] != "string":
        return np.frombuffer(data, numpy_dtype(NAMES[entry[1]])).reshape(shape)
    count = int(np.prod(shape))
    lengths, at = [], 0
    for _ in range(count):
        length, at = varint(data, at)
        lengths.append(length)
    at += 4
    value = np.empty(count, object)
    for number, length in enumerate(lengths):
        value[number] = data[at : at + length]
        at += length
    return value.reshape(shape)
