"""Changes of an HDF5 file in place, looked at with h5py."""

import h5py
import ml_dtypes
import numpy as np
import pytest

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats._hdf5 import describe
from ckpt_doctor.formats._hdf5_edit import add_dataset, apply, set_names, set_value
from ckpt_doctor.formats._hdf5_objects import find


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as opened:
        yield opened


def test_a_dataset_is_added_with_the_groups_above_it(file):
    file.create_group("a")
    add_dataset(file, "a/b/c/gamma", np.arange(3.0))
    add_dataset(file, "a/b/beta", np.float32(2.0))
    assert file["a/b/c/gamma"][:].tolist() == [0.0, 1.0, 2.0]
    assert (file["a/b/beta"].dtype, file["a/b/beta"][()]) == (np.float32, 2.0)
    with pytest.raises(RepairRefused, match="a/b/beta/x: /a/b/beta is a variable, not a group"):
        add_dataset(file, "a/b/beta/x", np.zeros(1))
    with pytest.raises(RepairRefused, match="a/b: something other than a tensor has this name"):
        add_dataset(file, "a/b", np.zeros(1))


def test_bfloat16_is_marked_as_keras_3_does_where_names_are_positions(file):
    """keras/src/saving/saving_lib.py, `H5IOStore.__setitem__`; the legacy format has no such mark."""
    value = np.array([1.5, 2.0], ml_dtypes.bfloat16)
    add_dataset(file, "layers/bn/vars/2", value)
    assert file["layers/bn/vars/2"].attrs["dtype"] == "bfloat16"
    add_dataset(file, "layers/bn/vars/3", np.zeros(2, np.float32))
    assert "dtype" not in file["layers/bn/vars/3"].attrs


@pytest.mark.parametrize(
    ("dtype", "character_set", "length"),
    [
        (h5py.string_dtype("utf-8"), h5py.h5t.CSET_UTF8, None),
        (h5py.string_dtype("ascii"), h5py.h5t.CSET_ASCII, None),
        ("S7", h5py.h5t.CSET_ASCII, 7),
    ],
)
def test_a_list_of_names_keeps_its_kind(file, dtype, character_set, length):
    file.attrs.create("weight_names", np.array([b"bn/g", b"bn/b"], dtype="S4"), dtype=dtype)
    set_names(file, "weight_names", ("bn/g", "bn/b", "bn/mean"))
    kind = file.attrs.get_id("weight_names").get_type()
    assert [text if isinstance(text, str) else text.decode() for text in file.attrs["weight_names"]] == [
        "bn/g", "bn/b", "bn/mean",
    ]  # fmt: skip
    assert (kind.get_cset(), kind.is_variable_str()) == (character_set, length is None)
    assert length is None or kind.get_size() == length


def test_a_text_that_does_not_fit_is_refused(file):
    dataset = file.create_dataset("names", data=np.array([b"abc"], "S3"))
    stored = describe("names", dataset)
    with pytest.raises(RepairRefused, match="names: holds strings of 3 bytes, not 4"):
        set_value(find(file, "names"), stored, np.array([b"long"], object))
    with pytest.raises(RepairRefused, match=r"names: holds string of shape \(1,\), not float64 of shape \(1,\)"):
        set_value(find(file, "names"), stored, np.zeros(1))


def test_nothing_to_change_opens_nothing(tmp_path):
    apply(tmp_path / "absent.h5", "absent.h5", {}, {}, {})
    assert not (tmp_path / "absent.h5").exists()
