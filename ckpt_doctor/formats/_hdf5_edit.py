"""Changing an HDF5 file in place: values of datasets, new datasets, and Keras' ordered lists of names.

The file is a private copy of the original. What is not changed keeps its bytes, its place in the file and its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ckpt_doctor.checkpoint import Array, numpy_dtype, same_values
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import (
    Dataset,
    describe,
    read_numbers,
)
from ckpt_doctor.formats._hdf5_errors import hdf5_errors
from ckpt_doctor.formats._hdf5_objects import (
    find,
    has_attribute,
    holds,
)

# Keras' own limit for one attribute (`HDF5_OBJECT_HEADER_LIMIT` in keras/src/legacy/saving/legacy_h5_format.py).
_LONGEST_LIST_BYTES = 64512


def apply(
    copy: Path | BinaryIO,
    where: str,
    datasets: Mapping[str, Dataset],
    values: Mapping[str, Array],
    weight_names: Mapping[str, tuple[str, ...]],
) -> None:
    """Change the private copy of a file.

    Args:
        copy: The copy, or a stream of it that can be written.
        where: The file's name, for messages.
        datasets: What the file holds.
        values: New value of each dataset by its path; one that is absent is added.
        weight_names: New `weight_names` of each group by its path.

    Raises:
        RepairRefused: A value has another shape or type than the dataset; or HDF5 cannot store it.
    """
    if not values and not weight_names:
        return
    import h5py

    try:
        with _writing():
            file = h5py.File(copy, "r+")
        try:
            for name, value in values.items():
                stored = datasets.get(name)
                if stored is None:
                    add_dataset(file, name, value)
                else:
                    set_value(find(file, name), stored, value)
            for group, names in weight_names.items():
                set_names(find(file, group), "weight_names", names)
        finally:
            with _writing():
                file.close()
    except Damaged as error:
        raise RepairRefused(f"{where}: HDF5 cannot make the change: {error.reason}") from error


@contextmanager
def _writing() -> Iterator[None]:
    """Set the boundary round a call into h5py that writes; a full disk stays what it is."""
    try:
        with hdf5_errors():
            yield
    except Damaged as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from None
        raise


def set_value(dataset: Any, stored: Dataset, value: Array) -> None:
    """Overwrite the value of a dataset that is there; equal numbers are left alone."""
    held = numpy_dtype(stored.dtype)
    if held != value.dtype or stored.shape != value.shape:
        raise RepairRefused(
            f"{stored.path}: holds {stored.dtype} of shape {stored.shape}, not {value.dtype} of shape {value.shape}"
        )
    if stored.dtype == "string":
        with _writing():
            kind = dataset.id.get_type()
            most = None if kind.is_variable_str() else kind.get_size()
        longest = max((len(item) for item in value.ravel()), default=0)
        if most is not None and longest > most:
            raise RepairRefused(f"{stored.path}: holds strings of {most} bytes, not {longest}")
    elif same_values(read_numbers(dataset, stored), value):
        return
    elif stored.dtype == "bfloat16":
        with _writing():
            opaque = dataset.dtype.kind == "V"
        value = np.ascontiguousarray(value).reshape(value.shape).view("V2") if opaque else value.astype(np.float32)
    with _writing():
        dataset[...] = value


def add_dataset(file: Any, path: str, value: Array) -> None:
    """Add a dataset the way Keras writes one, with the groups above it."""
    import h5py

    group_path, _, name = path.rpartition("/")
    group = file
    for part in group_path.split("/"):
        if holds(group, part):
            group = find(group, part)
        else:
            with _writing():
                group = group.create_group(part)
        if not isinstance(group, h5py.Group):
            raise RepairRefused(f"{path}: {group.name} is a variable, not a group")
    if holds(group, name):
        raise RepairRefused(f"{path}: something other than a tensor has this name")
    with _writing():
        dataset = group.create_dataset(name, data=value)
    described = describe(path, dataset)
    if value.dtype.name == "bfloat16" and name.isdigit():
        with _writing():
            dataset.attrs["dtype"] = "bfloat16"  # As `H5IOStore.__setitem__` does; the legacy format has no such mark.
    if not isinstance(described, Dataset) or described.dtype != value.dtype.name or described.shape != value.shape:
        raise RepairRefused(f"{path}: HDF5 cannot hold values of type {value.dtype}")


def set_names(group: Any, name: str, names: tuple[str, ...]) -> None:
    """Replace a list of names, as bytes or text like the old one, split where it is too long for one attribute."""
    import h5py

    first = next((key for key in (name, f"{name}0") if has_attribute(group, key)), None)
    with _writing():
        kind: Any = group.attrs.get_id(first).get_type() if first is not None else None
        is_variable = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
        is_utf8 = is_variable and kind.get_cset() == h5py.h5t.CSET_UTF8
        attributes = list(group.attrs)
    encoded = [text.encode() for text in names]
    if is_variable:
        list_type = h5py.string_dtype("utf-8" if is_utf8 else "ascii")
        # HDF5 keeps long texts apart from the attribute, which holds 16 bytes for each.
        pieces = _split(np.array(encoded, dtype=object), len(encoded) * 16)
    else:
        array = np.array(encoded, dtype="S")
        list_type = None
        pieces = _split(array, array.nbytes)
    stale = [key for key in attributes if isinstance(key, str) and key.startswith(name)]
    for key in stale:
        if key == name or key[len(name) :].isdigit():
            with _writing():
                del group.attrs[key]
    for index, piece in enumerate(pieces):
        with _writing():
            group.attrs.create(name if len(pieces) == 1 else f"{name}{index}", piece, dtype=list_type)


def _split(array: Array, nbytes: int) -> list[Array]:
    """Split a list evenly into the fewest pieces that fit, as `save_attributes_to_hdf5_group` does."""
    count = max(1, -(-nbytes // _LONGEST_LIST_BYTES))
    while True:
        pieces = np.array_split(array, count)
        if all(len(piece) * (nbytes / max(1, len(array))) <= _LONGEST_LIST_BYTES for piece in pieces):
            return pieces
        count += 1
