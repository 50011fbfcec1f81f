"""The objects of an open HDF5 file: links, groups and attributes, each call into h5py within its boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5_errors import hdf5_errors
from ckpt_doctor.formats._hdf5_texts import Texts

_LONGEST_ATTRIBUTE = 1 << 28
_MOST_CHUNKS = 65536
# Objects that stay open between the walk and their first reading; each takes 2.3 kB (h5py 3.14).
_MOST_KEPT = 1 << 14


class Refused(Damaged):
    """An object of the file is not read; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__("not-a-checkpoint", reason)


@dataclass(frozen=True, eq=False)
class OpenFile:
    """An open file.

    Attributes:
        h5: The `h5py.File`.
        texts: Reads what HDF5 must not be asked for.
        size: Its size in bytes.
    """

    h5: Any
    texts: Texts
    size: int
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def keep(self, path: str, item: Any) -> None:
        """Keep an object open for whoever asks for it next: to find it again takes longer than to read it."""
        if len(self._kept) < _MOST_KEPT:
            self._kept[path] = item

    def take(self, path: str) -> Any:
        """Return the object at a path to which a walk has led, and keep it no longer.

        A dataset that was read holds a cache of its chunks, 1 MiB by default.

        Raises:
            Damaged: It is not there, or cannot be read.
        """
        kept = self._kept.pop(path, None)
        return open_object(self.h5, path) if kept is None else kept


def names_in(group: Any) -> list[str | bytes]:
    """Return the names of a group's links; bytes where one is not UTF-8.

    Raises:
        Damaged: They cannot be read.
    """
    with hdf5_errors():
        return list(iter(group))  # Of a group itself, `list` asks for the length first.


def holds(group: Any, name: str) -> bool:
    """Return whether a group has a link of this name.

    Raises:
        Damaged: The group cannot be read.
    """
    with hdf5_errors():
        return name in group


def has_attribute(item: Any, name: str) -> bool:
    """Return whether an object has an attribute of this name.

    Raises:
        Damaged: The object cannot be read.
    """
    with hdf5_errors():
        return name in item.attrs


def address_of(item: Any) -> int:
    """Return where an object's header lies in the file."""
    import h5py

    with hdf5_errors():
        return int(h5py.h5o.get_info(item.id).addr)


def address_behind(group: Any, name: str) -> int:
    """Return where the header of the object behind a hard link lies in the file.

    Raises:
        Refused: The link is symbolic or external.
        Damaged: It is not there, or cannot be read.
    """
    import h5py

    with hdf5_errors():
        # A fifth of the time that `Group.get(name, getlink=True)` takes.
        encoded = name.encode()
        link = group.id.links.get_info(encoded)
        target = None if link.type == h5py.h5l.TYPE_HARD else group.id.links.get_val(encoded)
    if target is None:
        return int(link.u)
    if link.type == h5py.h5l.TYPE_SOFT:
        raise Refused(f"a symbolic link to {_text(target)!r}; not followed (Keras 3 refuses it too)")
    if link.type == h5py.h5l.TYPE_EXTERNAL:
        raise Refused(f"a link into another file, {_text(target[0])!r}; not followed")
    raise Refused(f"a link of the unknown type {link.type}; not followed")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def open_object(group: Any, path: str) -> Any:
    """Return the object at a path below a group, all links of which are known to be hard ones.

    Returns:
        An `h5py.Group`, an `h5py.Dataset`, or something else for what is neither.

    Raises:
        Damaged: It is not there, or cannot be read.
    """
    import h5py

    with hdf5_errors():
        identifier = h5py.h5o.open(group.id, path.encode())
        if isinstance(identifier, h5py.h5g.GroupID):
            return h5py.Group(identifier)
        return h5py.Dataset(identifier) if isinstance(identifier, h5py.h5d.DatasetID) else identifier


def follow(group: Any, name: str) -> Any:
    """Return the object behind one link.

    Raises:
        Refused: The link is symbolic or external.
        Damaged: The object is not there, or cannot be read.
    """
    address_behind(group, name)
    return open_object(group, name)


def find(group: Any, path: str) -> Any:
    """Return the object at `path` below `group`, following hard links only; `group` itself for an empty path.

    Raises:
        Refused: A part of the path is a symbolic or external link.
        Damaged: An object is not there, or cannot be read.
    """
    import h5py

    current = group
    for part in path.split("/"):
        if part:
            if not isinstance(current, h5py.Group):
                raise Refused(f"{path!r} is not found in the file: an array is in the place of a group")
            current = follow(current, part)
    return current


def attribute(file: OpenFile, item: Any, name: str) -> list[bytes] | Array | None:
    """Return an attribute's value: texts, or numbers; None where it is absent.

    Raises:
        Refused: It is of another type or larger than any that Keras writes.
        Damaged: Its bytes are damaged.
    """
    import h5py

    if not has_attribute(item, name):
        return None
    with hdf5_errors():
        stored = item.attrs.get_id(name)
        count = int(stored.get_space().get_simple_extent_npoints())
        kind = stored.get_type()
        item_size, type_class = int(kind.get_size()), kind.get_class()
        is_variable = type_class == h5py.h5t.STRING and kind.is_variable_str()
    if count * item_size > _LONGEST_ATTRIBUTE:
        raise Refused(f"attribute {name} of {count * item_size} bytes; not read")
    if type_class not in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise Refused(f"attribute {name} is neither text nor a number; not read")
    if is_variable:
        texts = file.texts.of_attribute(address_of(item), name, count)
        if texts is not None:
            return texts
    with hdf5_errors():
        value = np.asarray(item.attrs[name], dtype=object if type_class == h5py.h5t.STRING else None)
    if type_class != h5py.h5t.STRING:
        return value
    return [each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogateescape") for each in value.ravel()]


def text_attribute(file: OpenFile, item: Any, name: str) -> str | None:
    """Return an attribute as text, or None where it is absent or no single text."""
    value = attribute(file, item, name)
    return value[0].decode("utf-8", "replace") if isinstance(value, list) and len(value) == 1 else None


def names_attribute(file: OpenFile, item: Any, name: str) -> tuple[str, ...] | None:
    """Return a list of names, or None where there is none.

    Keras splits a list of more than 64,512 bytes into `name0`, `name1` … (`save_attributes_to_hdf5_group` in
    keras/src/legacy/saving/legacy_h5_format.py). An empty list is stored as an empty array of numbers.
    """
    value = attribute(file, item, name)
    if value is not None:
        return _names_in(value)
    pieces: list[str] = []
    for index in range(_MOST_CHUNKS):
        value = attribute(file, item, f"{name}{index}")
        if value is None:
            break
        pieces.extend(_names_in(value))
    return tuple(pieces) if pieces else None


def _names_in(value: list[bytes] | Array) -> tuple[str, ...]:
    """Return the texts in the value of an attribute."""
    return tuple(each.decode("utf-8", "replace") for each in value) if isinstance(value, list) else ()
