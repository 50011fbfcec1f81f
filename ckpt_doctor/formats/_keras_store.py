"""Keras 3's store of weights in one HDF5 file, wherever its bytes come from.

Source: `H5IOStore` in keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckpt_doctor.checkpoint import Damage, FormatName, Variable
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import (
    Dataset,
    walk,
)
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_objects import (
    OpenFile,
    text_attribute,
)
from ckpt_doctor.formats._hdf5_open import unreadable, variable

# TensorFlow 2.12 saved `layers` under this name; Keras 3 still reads it (`H5IOStore.get`).
OLD_LAYERS = "_layer_checkpoint_dependencies"


@dataclass(frozen=True, eq=False)
class Store:
    """What one HDF5 file holds.

    Attributes:
        file: The file.
        variables: Every tensor, named by its path in the file and labelled with the `name` of its group.
        datasets: The same, as HDF5 describes them.
        groups: Path of every group `vars` → its attribute `name`, None in files older than it.
        damages: What could not be read.
        unread: Datasets that hold no tensor: path → reason.
        old_layers: Whether the file has the layout of TensorFlow 2.12 and 2.13.
    """

    file: Hdf5File
    variables: tuple[Variable, ...]
    datasets: dict[str, Dataset]
    groups: dict[str, str | None]
    damages: tuple[Damage, ...]
    unread: dict[str, str]
    old_layers: bool


def read_store(
    source: Hdf5File,
    path: str,
    format: FormatName,  # noqa: A002
    check: Callable[[], None] = lambda: None,
) -> Store:
    """Read names, shapes and groups of one HDF5 file.

    Args:
        source: The file.
        path: The checkpoint that it belongs to.
        format: That checkpoint's format.
        check: Called before a value is read; raises `UnreadableCheckpoint` where the file cannot be trusted.

    Raises:
        UnreadableCheckpoint: It is no HDF5 file, or not whole, or HDF5 gives up on it.
    """
    where = source.where
    try:
        with source.reading() as file:
            tree = walk(file, where)
            groups: dict[str, str | None] = {}
            damages = list(tree.damages)
            for group in tree.groups:
                if group == "vars" or group.endswith("/vars"):
                    groups[group] = _name_of(file, group, where, damages)
            return Store(
                file=source,
                variables=tuple(
                    variable(source, path, format, dataset, groups.get(name.rpartition("/")[0]), check)
                    for name, dataset in tree.datasets.items()
                ),
                datasets=tree.datasets,
                groups=groups,
                damages=tuple(damages),
                unread=dict(tree.others),
                old_layers=OLD_LAYERS in tree.groups,
            )
    except Damaged as error:
        raise unreadable(path, format, error, where) from error


def _name_of(file: OpenFile, group: str, where: str, damages: list[Damage]) -> str | None:
    """Return the user's name of the object whose weights lie in `group`."""
    try:
        return text_attribute(file, file.take(group), "name")
    except Damaged as error:
        damages.append(error.at(f"{where}:{group}"))
        return None
