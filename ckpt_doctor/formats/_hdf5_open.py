"""Which Keras layout an HDF5 file has, and its datasets as variables."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_doctor.checkpoint import Array, Damage, FormatName, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import DEEPEST, Dataset
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_objects import (
    OpenFile,
    Refused,
    follow,
    has_attribute,
    holds,
    names_in,
    text_attribute,
)
from ckpt_doctor.formats._kept import shared

# Inside of how many groups a file is searched for what Keras writes, before it counts as none of its files.
_GROUPS_SEARCHED = 10_000


def layout_at(path: str) -> FormatName | None:
    """Return the Keras layout of the HDF5 file at `path`; None where it has none or cannot be read.

    See `layout_of`.
    """
    try:
        return shared(Hdf5File.at, path).fact(layout_of)
    except Damaged:
        return None


def is_sound(path: str) -> bool:
    """Return whether HDF5 opens the file at `path` and lists its root."""
    try:
        with shared(Hdf5File.at, path).reading() as file:
            names_in(file.h5)
            return True
    except Damaged:
        return False


def layout_of(file: OpenFile) -> FormatName | None:
    """Return the Keras layout of an open file, by content: the extension says little, `.h5` is used for all.

    Returns:
        `keras-hdf5` (whole model), `keras-weights-hdf5`, `keras-weights-v3`, or None.
    """
    root = file.h5
    if holds(root, "model_weights") or text_attribute(file, root, "model_config") is not None:
        return "keras-hdf5"
    if any(has_attribute(root, name) for name in ("layer_names", "layer_names0", "nb_layers")):
        return "keras-weights-hdf5"
    if is_numbered_graph(root):
        return "keras-weights-hdf5"
    return "keras-weights-v3" if _has_vars(root) else None


def is_numbered_graph(root: Any) -> bool:
    """Return whether a file holds a `Graph` model of Keras 0.3."""
    return holds(root, "graph") and has_attribute(follow(root, "graph"), "nb_params")


def _has_vars(root: Any) -> bool:
    """Return whether a group is called `vars`: every Keras 3 store has one (`H5IOStore._create_h5_group`)."""
    return any(name == "vars" for name, _ in groups_below(root, DEEPEST + 1))


def groups_below(root: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield name and object of the groups below a group, those nearest first; symbolic links are not followed.

    Of a file with very many groups, those inside of only so many are reached.

    Args:
        root: An `h5py.Group`.
        levels: How deep to go; 1 for the groups in `root` alone.

    Raises:
        Damaged: Something on the way cannot be read.
    """
    import h5py

    # Each group that stays open keeps its whole path in HDF5.
    queue = deque([(root, 1)])
    entered = 0
    while queue:
        group, level = queue.popleft()
        for name in names_in(group):
            if not isinstance(name, str) or "/" in name:
                continue
            try:
                child = follow(group, name)
            except Refused:
                continue
            if isinstance(child, h5py.Group):
                yield name, child
                if entered < _GROUPS_SEARCHED and level < levels:
                    queue.append((child, level + 1))
                    entered += 1


def unreadable(path: str, format: FormatName, error: Damaged, where: str | None = None) -> UnreadableCheckpoint:  # noqa: A002
    """Return the error for a file that cannot be read."""
    return UnreadableCheckpoint(path, format, (error.at(where or path),))


def variable(
    file: Hdf5File,
    path: str,
    format: FormatName,  # noqa: A002
    dataset: Dataset,
    label: str | None,
    check: Callable[[], None] = lambda: None,
) -> Variable:
    """Return a dataset as a variable that is read when it is asked for.

    Args:
        file: The file that holds it.
        path: The checkpoint's path, for messages.
        format: The checkpoint's format.
        dataset: The dataset.
        label: Its name for people.
        check: Called before a value is read; raises `UnreadableCheckpoint` where the file cannot be trusted.
    """

    def reader() -> Array:
        check()
        try:
            return file.value(dataset)
        except Damaged as error:
            damage = error.at(f"{path}:{dataset.path}", (dataset.path,))
            raise UnreadableCheckpoint(path, format, (damage,)) from error

    def pieces() -> Iterator[Array]:
        try:
            yield from file.pieces(dataset)
        except Damaged as error:
            damage = error.at(f"{path}:{dataset.path}", (dataset.path,))
            raise UnreadableCheckpoint(path, format, (damage,)) from error

    in_pieces = pieces if dataset.in_pieces else None
    return Variable(dataset.path, dataset.shape, dataset.dtype, dataset.nbytes, reader, label, in_pieces)


def read_all(file: Hdf5File, datasets: Mapping[str, Dataset]) -> Iterator[Damage]:
    """Read every dataset of an HDF5 file and yield those that cannot be read."""
    for path, dataset in datasets.items():
        try:
            if not dataset.in_pieces:
                file.value(dataset)
                continue
            for _ in file.pieces(dataset):
                pass
        except Damaged as error:
            yield error.at(f"{file.where}:{path}", (path,))
