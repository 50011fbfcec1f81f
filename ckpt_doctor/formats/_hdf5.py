"""HDF5 as a tree of plain arrays, read with suspicion.

What a Keras file needs of HDF5 is small: groups, hard links, attributes, and datasets of numbers or strings, stored
whole or in chunks behind a few filters. All else that HDF5 can do (links into other files, virtual and external
datasets, plugins, a declared terabyte behind a stored kilobyte) has no place in one and is refused, never followed.

HDF5 keeps no checksum of its data (a Fletcher-32 filter aside, which Keras does not use). Damage to the structure is
noticed where it breaks the structure; a flipped bit inside a stored array reads as another number.

h5py is imported inside the functions: it takes longer than the rest of the program.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array, Damage, numpy_dtype
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5_errors import beyond_the_end, hdf5_errors
from ckpt_doctor.formats._hdf5_objects import OpenFile, Refused, address_behind, address_of, names_in, open_object
from ckpt_doctor.formats._natural import natural_key

_log = logging.getLogger(__name__)

# Filters of HDF5 and h5py themselves: deflate, shuffle, Fletcher-32, LZF. Others are plugins, or decoders that nobody
# feeds Keras files through.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}

# Deflate expands by 1032 at most. Below the floor a bomb does no harm; keras/src/saving/saving_lib.py has the same
# guard with 4 GiB and 1000 (CVE-2026-0897).
BOMB_FLOOR_BYTES = 1 << 28
BOMB_EXPANSION = 1100

# What is packed so well is looked through chunk by chunk; HDF5 unpacks a chunk as a whole.
_PIECES_EXPANSION = 10
_CHUNK_EXPANSION = 100

_MOST_OBJECTS = 1_000_000
# Models of Keras are nested 30 deep at most, and have a few groups for each; a path of a million groups is as long.
DEEPEST = 500


@dataclass(frozen=True)
class Dataset:
    """One stored array, described and unread.

    Attributes:
        path: From the root of the file, without the leading slash.
        shape: Its dimensions.
        dtype: TensorFlow's name of its type.
        nbytes: Its size in memory, in bytes (for strings, of the references).
        in_pieces: Whether it is so much larger than what is stored of it that it is looked through chunk by chunk.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    in_pieces: bool = False


@dataclass
class Tree:
    """All that was found in a file.

    Attributes:
        datasets: Those that hold a tensor, keyed by path, in the order of the walk.
        others: Those that hold none (compound types, references …): path → reason.
        groups: Paths of all groups, `""` first.
        damages: What was refused or could not be read.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


def walk(file: OpenFile, where: str) -> Tree:
    """Return everything in an open `h5py.File`, following hard links only.

    A group that is reached a second time (a cycle, or a diamond of links) is not entered again.

    Args:
        file: The open file.
        where: The file's name, for messages.
    """
    import h5py

    tree = Tree()
    seen: dict[int, str] = {address_of(file.h5): ""}
    stack: list[tuple[str, Any]] = [("", file.h5)]
    count = 0
    while stack:
        path, group = stack.pop()
        tree.groups.append(path)
        below: list[tuple[str, Any]] = []
        for name in _names(group, path, where, tree):
            count += 1
            if count > _MOST_OBJECTS:
                message = f"more than {_MOST_OBJECTS} objects; not read on"
                tree.damages.append(Damage("not-a-checkpoint", where, message))
                return tree
            child_path = f"{path}/{name}" if path else name
            try:
                address = address_behind(group, name)
                child = open_object(group, name)
                if isinstance(child, h5py.Group):
                    if address in seen:
                        twin = seen[address] or "/"
                        raise Refused(f"a second link to the group {twin!r}; not followed")
                    if child_path.count("/") >= DEEPEST:
                        raise Refused(f"groups are nested more than {DEEPEST} deep; not read on")
                    seen[address] = child_path
                    below.append((child_path, child))
                    file.keep(child_path, child)
                elif isinstance(child, h5py.Dataset):
                    _note(tree, child_path, child, file.size)
                    file.keep(child_path, child)
            except Damaged as error:
                tree.damages.append(error.at(f"{where}:{child_path}", (child_path,)))
        stack.extend(reversed(below))
    _log.debug("%s: %d groups, %d arrays", where, len(tree.groups), len(tree.datasets))
    for path, reason in tree.others.items():
        _log.debug("%s:%s: passed over: %s", where, path, reason)
    return tree


def _note(tree: Tree, path: str, dataset: Any, file_size: int) -> None:
    """Put a dataset into the tree, as a tensor or as something else."""
    described = describe(path, dataset, file_size)
    if isinstance(described, Dataset):
        tree.datasets[path] = described
    else:
        tree.others[path] = described


def _names(group: Any, path: str, where: str, tree: Tree) -> list[str]:
    """Return the names of a group's links, numbers in numeric order; an unreadable list is a damage."""
    try:
        names = names_in(group)
    except Damaged as error:
        tree.damages.append(error.at(f"{where}:{path or '/'}"))
        return []
    readable = []
    for name in names:
        if isinstance(name, bytes):  # What h5py gives where it is no UTF-8.
            tree.damages.append(Damage("not-a-checkpoint", f"{where}:{path or '/'}", f"the name {name!r} is not UTF-8"))
        elif "/" in name:  # HDF5 itself takes it for a path.
            tree.damages.append(Damage("not-a-checkpoint", f"{where}:{path or '/'}", f"the name {name!r} has a slash"))
        else:
            readable.append(name)
    return sorted(readable, key=natural_key)


def describe(path: str, dataset: Any, file_size: int | None = None) -> Dataset | str:
    """Describe a dataset without reading it.

    Args:
        path: Its path.
        dataset: The `h5py.Dataset`.
        file_size: Size of the file in bytes; None for one that is being written.

    Returns:
        The description, or why it holds no tensor.

    Raises:
        Refused: Reading it would lead out of the file or run out of memory.
        Damaged: It cannot be read.
    """
    import h5py

    with hdf5_errors():
        created = dataset.id.get_create_plist()
        layout = created.get_layout()
        other = created.get_external(0)[0] if created.get_external_count() else None
        filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
        shape = dataset.shape
        chunk = created.get_chunk() if layout == h5py.h5d.CHUNKED else None
        stored = int(dataset.id.get_storage_size())
        kind = dataset.id.get_type()
        item_size = int(kind.get_size())
    if layout == h5py.h5d.VIRTUAL:
        raise Refused("a virtual dataset, made of pieces of other files; not followed")
    if other is not None:
        raise Refused(f"its values are in another file, {other.decode('utf-8', 'replace')!r}; not followed")
    for code in filters:
        if code not in _FILTERS:
            raise Refused(f"filter {code} is not read; `h5repack -f GZIP=1` converts it")
    if shape is None:
        return "an empty dataset"
    shape = tuple(int(size) for size in shape)
    if len(shape) > 32:
        raise Refused(f"{len(shape)} dimensions; HDF5 allows 32")
    dtype = _tensorflow_type(dataset, kind, in_one_piece=layout == h5py.h5d.CONTIGUOUS)
    if dtype is None:
        with hdf5_errors():
            return f"values of type {dataset.dtype}, which no tensor has"
    nbytes = math.prod(shape) * item_size
    if nbytes > BOMB_FLOOR_BYTES and nbytes > BOMB_EXPANSION * stored:
        raise Refused(f"shape {shape} declares {nbytes} bytes, {stored} are stored; not read")
    if file_size is not None and stored > file_size:
        raise beyond_the_end(f"{stored} bytes are declared as stored, the file has {file_size}")
    if chunk is not None and math.prod(chunk) * item_size > max(BOMB_FLOOR_BYTES, _CHUNK_EXPANSION * stored):
        raise Refused(f"a chunk of shape {chunk}, {math.prod(chunk) * item_size} bytes, for {stored} stored; not read")
    in_pieces = chunk is not None and dtype != "string" and nbytes > max(BOMB_FLOOR_BYTES, _PIECES_EXPANSION * stored)
    return Dataset(path, shape, dtype, nbytes, in_pieces)


def _tensorflow_type(dataset: Any, stored: Any, *, in_one_piece: bool) -> str | None:
    """Return TensorFlow's name of a dataset's type, or None where it has none.

    h5py stores ml_dtypes' bfloat16 as two opaque bytes, and Keras 3 adds an attribute that says so
    (`H5IOStore.__setitem__` in keras/src/saving/saving_lib.py); no other type of TensorFlow becomes two opaque bytes.
    Keras' legacy format leaves the attribute out. HDF5 2.0 has a floating-point type of its own for it.

    Args:
        dataset: The `h5py.Dataset`.
        stored: Its type, an `h5py.h5t.TypeID`.
        in_one_piece: Whether it is stored so.
    """
    import h5py

    with hdf5_errors():
        kind, size = stored.get_class(), stored.get_size()
        exponent_bits = stored.get_fields()[2] if kind == h5py.h5t.FLOAT and size == 2 else 0
        is_variable = kind == h5py.h5t.STRING and stored.is_variable_str()
    if kind == h5py.h5t.OPAQUE:
        return "bfloat16" if size == 2 else None
    if exponent_bits == 8:
        return "bfloat16"
    if kind == h5py.h5t.STRING:
        return "string" if in_one_piece or not is_variable else None
    with hdf5_errors():
        dtype = dataset.dtype
    name = _name_of(dtype)
    if dtype.kind in "biufc" and name not in ("float128", "complex256", "longdouble", "clongdouble"):
        return name
    return None


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """Return NumPy's name of a type, which takes it longer to make than HDF5 to read a small array."""
    return str(dtype.name)


def read_value(file: OpenFile, described: Dataset) -> Array:
    """Read a dataset that a walk through the same open file has found.

    Returns:
        Its value in native byte order; strings as an object array of `bytes`.

    Raises:
        Refused: It is not what was described (the file has changed since).
        Damaged: It cannot be read.
    """
    dataset = _found_again(file, described)
    return _read_strings(file, dataset, described) if described.dtype == "string" else read_numbers(dataset, described)


def read_pieces(file: OpenFile, described: Dataset) -> Iterator[Array]:
    """Yield the chunks of a dataset of numbers, one at a time.

    Raises:
        Refused: See `read_value`.
        Damaged: Likewise.
    """
    dataset = _found_again(file, described)
    with hdf5_errors():
        places = iter(dataset.iter_chunks())
    while True:
        with hdf5_errors():
            place = next(places, None)
        if place is None:
            return
        yield read_numbers(dataset, described, place)


def _found_again(file: OpenFile, described: Dataset) -> Any:
    """Return the dataset that a walk has described."""
    import h5py

    dataset = file.take(described.path)
    if not isinstance(dataset, h5py.Dataset):
        raise _changed()
    with hdf5_errors():
        shape = dataset.shape
    if shape != described.shape:
        raise _changed()
    return dataset


def _changed() -> Refused:
    return Refused("shape or type are not those read a moment ago: the file has changed")


def _read_strings(file: OpenFile, dataset: Any, described: Dataset) -> Array:
    strings = np.empty(described.shape, dtype=object)
    with hdf5_errors():
        is_variable = dataset.id.get_type().is_variable_str()
        offset = dataset.id.get_offset() if is_variable else None
        stored = () if is_variable else np.asarray(dataset[()]).ravel()
    if not is_variable:
        texts = [bytes(item) for item in stored]
    elif offset is None:  # No text was ever written.
        texts = [b""] * strings.size
    else:
        texts = file.texts.at(file.texts.read(offset, strings.size * file.texts.reference_size), strings.size)
    strings.ravel()[:] = texts
    return strings


def _array(dataset: Any) -> Array:
    """Return what h5py reads; the boundary is set by whoever calls."""
    import h5py

    identifier = dataset.id
    plain = isinstance(identifier.get_type(), (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
    if not plain or not identifier.shape or 0 in identifier.shape:
        return np.asarray(dataset[()], order="C")
    # What `dataset[()]` comes to, without the selection that h5py prepares first, in half the time.
    array = np.empty(identifier.shape, identifier.dtype)
    identifier.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def read_numbers(dataset: Any, described: Dataset, place: tuple[slice, ...] = ()) -> Array:
    """Read a dataset that holds no strings, or the part of it at `place`, in native byte order.

    Raises:
        Refused: It is not of the type that was described (the file has changed since).
        Damaged: It cannot be read.
    """
    with hdf5_errors():
        array = np.asarray(dataset[place], order="C") if place else _array(dataset)
    target = numpy_dtype(described.dtype)
    if described.dtype == "bfloat16":
        if array.dtype.itemsize != target.itemsize:
            raise _changed()
        return array.view(target) if array.dtype.kind == "V" else array.astype(target)
    if array.dtype.newbyteorder("=") != target:
        raise _changed()
    return array.astype(target, copy=False)
