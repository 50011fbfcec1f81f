"""The values of V1 checkpoints, as TensorFlow's messages hold them (tensor.proto)."""

import ml_dtypes
import numpy as np
import pytest

from ckpt_doctor.formats import _dtypes
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._slice_values import decode, encode
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Field of `Tensor`, what is in it, and the values that it stands for: tensor.proto, "half_val" holds the bits.
FIELDS = [
    ("float_val", [1.5, -2.0], np.array([1.5, -2.0], np.float32)),
    ("double_val", [1.5, -2.0], np.array([1.5, -2.0], np.float64)),
    ("int_val", [-3, 7], np.array([-3, 7], np.int32)),
    ("int_val", [-3, 7], np.array([-3, 7], np.int8)),
    ("int64_val", [-(1 << 40), 7], np.array([-(1 << 40), 7], np.int64)),
    ("bool_val", [True, False], np.array([True, False])),
    ("string_val", [b"a", b""], np.array([b"a", b""], object)),
    ("half_val", [0x3C00, 0xC000], np.array([1.0, -2.0], np.float16)),
    ("half_val", [0x3F80, 0xC000], np.array([1.0, -2.0], ml_dtypes.bfloat16)),
    ("scomplex_val", [1.0, 2.0, 0.0, -1.0], np.array([1 + 2j, -1j], np.complex64)),
    ("dcomplex_val", [1.0, 2.0, 0.0, -1.0], np.array([1 + 2j, -1j], np.complex128)),
    ("uint32_val", [1, 1 << 31], np.array([1, 1 << 31], np.uint32)),
    ("uint64_val", [1, 1 << 63], np.array([1, 1 << 63], np.uint64)),
]


def number_of(array):
    name = "string" if array.dtype == object else array.dtype.name
    return next(number for number in range(1, 24) if _dtypes.name_of(number) == name)


def serialised(**fields):
    message = pb.SavedTensorSlices()
    for field, values in fields.items():
        if field == "tensor_content":
            message.data.data.tensor_content = values
        else:
            getattr(message.data.data, field).extend(values)
    return message.SerializeToString()


@pytest.mark.parametrize(("field", "numbers", "array"), FIELDS, ids=lambda value: str(getattr(value, "dtype", "")))
def test_every_type_has_its_field(field, numbers, array):
    found = decode(serialised(**{field: numbers}), number_of(array), 2)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()
    assert list(getattr(encode(array), field)) == numbers
    # One number more or less is damage, as is a field of another type.
    for wrong in (numbers[:-1], [*numbers, numbers[-1]]):
        with pytest.raises(Damaged, match=f"has {len(wrong)} numbers, {len(numbers)} are needed"):
            decode(serialised(**{field: wrong}), number_of(array), 2)
    with pytest.raises(Damaged, match="has 0 numbers"):
        decode(serialised(), number_of(array), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.float16])
def test_values_as_bytes(dtype):
    array = np.array([1, 2, 3], dtype)
    found = decode(serialised(tensor_content=array.tobytes()), number_of(array), 3)
    assert (found.dtype, found.tolist()) == (array.dtype, [1, 2, 3])
    with pytest.raises(Damaged, match=f"has {3 * array.itemsize} bytes, but 4 values are needed"):
        decode(serialised(tensor_content=array.tobytes()), number_of(array), 4)


def test_packed_numbers_are_not_parsed_one_by_one():
    """A field that is not packed, as writers of proto2 do it, is parsed; a packed one is read as it lies."""
    packed = decode(serialised(float_val=[1.0, 2.0]), 1, 2)
    assert not packed.flags.owndata
    # float_val = 5, each with a tag of its own: (5 << 3) | 5.
    tensor = b"".join(b"\x2d" + np.float32(value).tobytes() for value in (1.0, 2.0))
    slice_ = b"\x1a" + bytes([len(tensor)]) + tensor
    assert decode(b"\x12" + bytes([len(slice_)]) + slice_, 1, 2).tolist() == [1.0, 2.0]


def test_numbers_that_the_type_cannot_hold_are_damage():
    with pytest.raises(Damaged, match="has numbers that are not int8"):
        decode(serialised(int_val=[1, 300]), number_of(np.array([0], np.int8)), 2)


def test_texts_are_stored_as_their_bytes():
    assert list(encode(np.array(["ä", b"\xff", np.bytes_(b"x")], object)).string_val) == ["ä".encode(), b"\xff", b"x"]


def test_what_v1_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="cannot hold float8"):
        encode(np.zeros(2, ml_dtypes.float8_e5m2))
    with pytest.raises(Damaged, match="cannot be parsed"):
        decode(b"\xff\xff", number_of(np.array([0], np.int32)), 1)
