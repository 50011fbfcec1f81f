"""The values of V1 checkpoints: `Tensor` messages ⇄ arrays.

A slice's values lie in the message's typed fields (`float_val`, `int_val` …), one number for each element, two for a
complex one; shape and type are those of the checkpoint's metadata.

Source: tensorflow/core/util/saved_tensor_slice_util.h (TensorProtoData, Fill).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ckpt_doctor.checkpoint import Array, numpy_dtype
from ckpt_doctor.formats import _dtypes
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._meta_graph import first_field
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Type → field of `Tensor`.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "string": "string_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "float16": "half_val",
    "bfloat16": "half_val",
} | dict.fromkeys(
    ("int32", "int16", "int8", "uint16", "uint8", "qint8", "quint8", "qint32", "qint16", "quint16"), "int_val"
)
# Packed numbers that need no decoding: NumPy's type and the field's number.
_PACKED: dict[str, tuple[str, int]] = {"float32": ("<f4", 5), "float64": ("<f8", 6)}


def decode(serialised: bytes, number: int, count: int) -> Array:
    """Return `count` values from a serialised `SavedTensorSlices` with data, flat.

    Args:
        serialised: The value of a slice's key.
        number: Number of the type.
        count: How many there must be.

    Raises:
        Damaged: There are more or fewer, or the type has no array.
    """
    name = _dtypes.name_of(number)
    if name not in _FIELDS:
        raise _damaged(f"holds values of type {name}, which have no array")
    if name in _PACKED:
        kind, field = _PACKED[name]
        data = _tensor_field(serialised, field)
        width = np.dtype(kind).itemsize
        if data is not None and len(data) == width * count:
            return np.frombuffer(data, kind).astype(numpy_dtype(name), copy=False)
    try:
        tensor = pb.SavedTensorSlices.FromString(serialised).data.data
    except DecodeError as error:
        raise _damaged("cannot be parsed") from error
    values = getattr(tensor, _FIELDS[name])
    dtype = numpy_dtype(name)
    needed = 2 * count if dtype.kind == "c" else count
    if len(values) != needed and not values and tensor.tensor_content:
        return _from_content(tensor.tensor_content, dtype, count)
    if len(values) != needed:
        raise _damaged(f"has {len(values)} numbers, {needed} are needed")
    if name == "string":
        out = np.empty(count, object)
        out[:] = list(values)
        return out
    if name in ("float16", "bfloat16"):
        return _numbers(values, np.dtype(np.uint16), name).view(dtype)
    if dtype.kind == "c":
        return _numbers(values, np.dtype(np.float32 if name == "complex64" else np.float64), name).view(dtype)
    return _numbers(values, dtype, name)


def _numbers(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    """Return the numbers of a field as an array; one that its type cannot hold is damage."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if len(values) and not limits.min <= min(values) <= max(values) <= limits.max:
            raise _damaged(f"has numbers that are not {name}")
    return np.array(values, dtype)


def _damaged(reason: str) -> Damaged:
    return Damaged("truncated", reason)


def encode(array: Array) -> pb.Tensor:
    """Return an array as the message that `decode` reads.

    Raises:
        ValueError: V1 checkpoints cannot hold its type.
    """
    name = "string" if array.dtype == object else array.dtype.name
    if name not in _FIELDS:
        raise ValueError(f"V1 checkpoints cannot hold {array.dtype}")
    flat: Any = np.ascontiguousarray(array).reshape(-1)
    if name == "string":
        flat = [value.encode() if isinstance(value, str) else bytes(value) for value in flat]
    elif name in ("float16", "bfloat16"):
        flat = flat.view(np.uint16).tolist()
    elif array.dtype.kind == "c":
        flat = flat.view(np.float32 if name == "complex64" else np.float64).tolist()
    else:
        flat = flat.tolist()
    tensor = pb.Tensor()
    getattr(tensor, _FIELDS[name]).extend(flat)
    return tensor


def _from_content(content: bytes, dtype: np.dtype[Any], count: int) -> Array:
    if dtype.kind == "O" or len(content) != dtype.itemsize * count:
        raise _damaged(f"has {len(content)} bytes, but {count} values are needed")
    return np.frombuffer(content, dtype)


def _tensor_field(serialised: bytes, field: int) -> memoryview | None:
    """Return a packed field of the `Tensor` in a `SavedTensorSlices`, without parsing the rest."""
    data: memoryview | None = memoryview(serialised)
    for number in (2, 3, field):  # SavedTensorSlices.data, SavedSlice.data, Tensor.field
        if data is None:
            return None
        data = first_field(data, number)
    return data
