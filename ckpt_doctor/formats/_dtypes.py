"""TensorFlow's element types: their numbers in files, names and sizes (tensorflow/core/framework/types.proto)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import find_numpy_dtype

# Number in files → name, bytes an element (0: not of fixed size).
_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("float64", 8),
    3: ("int32", 4),
    4: ("uint8", 1),
    5: ("int16", 2),
    6: ("int8", 1),
    7: ("string", 0),
    8: ("complex64", 8),
    9: ("int64", 8),
    10: ("bool", 1),
    11: ("qint8", 1),
    12: ("quint8", 1),
    13: ("qint32", 4),
    14: ("bfloat16", 2),
    15: ("qint16", 2),
    16: ("quint16", 2),
    17: ("uint16", 2),
    18: ("complex128", 16),
    19: ("float16", 2),
    20: ("resource", 0),
    21: ("variant", 0),
    22: ("uint32", 4),
    23: ("uint64", 8),
    24: ("float8_e5m2", 1),
    25: ("float8_e4m3fn", 1),
    26: ("float8_e4m3fnuz", 1),
    27: ("float8_e4m3b11fnuz", 1),
    28: ("float8_e5m2fnuz", 1),
    # One element a byte: TensorFlow packs these neither in memory nor in files.
    29: ("int4", 1),
    30: ("uint4", 1),
    31: ("int2", 1),
    32: ("uint2", 1),
    33: ("float4_e2m1fn", 1),
}
_NUMBERS = {name: number for number, (name, _) in _TYPES.items()}
# In text protobuf prints `DT_FLOAT`, and `DT_FLOAT_REF` for a reference (tensorflow/core/framework/types.proto).
_IN_TEXT = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF"}
NAMES_IN_TEXT = {
    f"DT_{_IN_TEXT.get(name, name.upper())}{suffix}": number + further
    for number, (name, _) in _TYPES.items()
    for suffix, further in (("", 0), ("_REF", 100))
} | {"DT_INVALID": 0}


def name_of(number: int) -> str:
    """Return TensorFlow's name of a type; `unknown-N` for a number that is newer than this code."""
    # Reference types of old graphs are the same types plus 100.
    known = _TYPES.get(number - 100 if number > 100 else number)
    return known[0] if known else f"unknown-{number}"


def size_of(number: int) -> int:
    """Return the bytes of one element, 0 where they vary or the type is unknown."""
    known = _TYPES.get(number - 100 if number > 100 else number)
    return known[1] if known else 0


def array_type(number: int) -> np.dtype[Any] | None:
    """Return the NumPy type that holds values of a type; None where none does."""
    return find_numpy_dtype(name_of(number))


def number_of(dtype: np.dtype[Any]) -> int:
    """Return the number under which TensorFlow stores arrays of this dtype.

    Raises:
        KeyError: TensorFlow has no such type.
    """
    if dtype.kind == "O":
        return _NUMBERS["string"]
    return _NUMBERS[dtype.name]


def swapped(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the array with the bytes of every number in the other order (the dtype stays)."""
    width = array.dtype.itemsize // 2 if array.dtype.kind == "c" else array.dtype.itemsize
    if width == 1:
        return array
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"u{width}").byteswap().view(array.dtype).reshape(array.shape)
