"""From a path to an open HDF5 file, or to the reason why it is none.

Everything goes through a Python stream, never through HDF5's own drivers: the same way reads local files, remote ones
and a member of a zip archive, takes no lock on a file that a training process is writing, and cannot be led to another
file by a link.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from ckpt_doctor.checkpoint import Array, Damage, FormatName, Variable
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import (
    Dataset,
    OpenFile,
    follow,
    has_attribute,
    holds,
    names_in,
    read_value,
    text_attribute,
)
from ckpt_doctor.formats._hdf5_errors import hdf5_errors, structure
from ckpt_doctor.formats._hdf5_guard import GuardedStream
from ckpt_doctor.formats._hdf5_superblock import is_mangled, read_superblock
from ckpt_doctor.formats._hdf5_texts import Texts
from ckpt_doctor.formats._storage import open_binary, size_of

StreamOpener = Callable[[], BinaryIO]

# How far a file is searched for a group `vars` before it counts as no Keras file.
_GROUPS_SEARCHED = 10_000


@contextmanager
def opened(stream_opener: StreamOpener) -> Iterator[OpenFile]:
    """Give an open HDF5 file on a stream; both are closed afterwards.

    Raises:
        Damaged: It has no superblock, or HDF5 refuses the bytes.
    """
    import h5py

    with stream_opener() as stream:
        superblock = read_superblock(stream)
        if superblock is None:
            raise structure("no HDF5 signature")
        size = stream.seek(0, io.SEEK_END)
        guarded = GuardedStream(stream, size, superblock.length_size)
        with hdf5_errors():
            file = h5py.File(cast("BinaryIO", guarded), "r")
        try:
            yield OpenFile(file, Texts(stream, superblock, size), size)
        finally:
            with hdf5_errors():
                file.close()


def stream_of(path: str) -> StreamOpener:
    """Return what opens the file at `path`."""

    def open_it() -> BinaryIO:
        try:
            return open_binary(path)
        except FileNotFoundError:
            raise BadRequest(f"{path}: no such file") from None

    return open_it


def check_whole(stream_opener: StreamOpener, size: int, where: str, path: str, format: FormatName) -> None:  # noqa: A002
    """Check that a stream holds an HDF5 file, with nothing cut off its end.

    Args:
        stream_opener: Opens the stream.
        size: Its length in bytes.
        where: Its name, for messages.
        path: The checkpoint that it belongs to.
        format: That checkpoint's format.

    Raises:
        UnreadableCheckpoint: It does not.
    """
    with stream_opener() as stream:
        try:
            head = stream.read(512)
            superblock = read_superblock(stream)
        except Damaged as error:
            message = f"the HDF5 signature is there and no superblock behind it: {error.reason}"
            raise UnreadableCheckpoint(path, format, (Damage("not-a-checkpoint", where, message),)) from error
    if superblock is None:
        raise UnreadableCheckpoint(path, format, (Damage("not-a-checkpoint", where, _what_it_is(head)),))
    if superblock.end > size:
        message = f"{size} bytes, the superblock promises {superblock.end}"
        raise UnreadableCheckpoint(path, format, (Damage("truncated", where, message),))
    if superblock.is_open:
        _check_unfinished(stream_opener, size, where, path, format)


def _check_unfinished(stream_opener: StreamOpener, size: int, where: str, path: str, format: FormatName) -> None:  # noqa: A002
    """Check that HDF5 opens a file that is marked as open; many are whole all the same.

    Raises:
        UnreadableCheckpoint: It does not. The superblock's own length was then never brought up to date.
    """
    try:
        with opened(stream_opener):
            pass
    except Damaged as error:
        message = (
            f"{size} bytes of a file that was never closed: the save was interrupted, or the file was copied before it "
            f"ended ({error.reason})"
        )
        raise UnreadableCheckpoint(path, format, (Damage("truncated", where, message),)) from error


def _what_it_is(head: bytes) -> str:
    """Say what a file without the HDF5 signature looks like."""
    if not head:
        return "the file is empty; an HDF5 file is expected"
    if is_mangled(head):
        shown = " ".join(f"{byte:02X}" for byte in head[:8])
        return (
            f"starts with {shown}: an HDF5 file whose line ends a text-mode copy has changed, which cannot be undone; "
            "copy it again as binary (git: `*.h5 binary` in .gitattributes)"
        )
    described = _foreign.describe(head)
    if described:
        return f"is {described}; an HDF5 file is expected"
    return f"starts with {head[:8].hex(' ')}; an HDF5 file starts with 89 48 44 46 0d 0a 1a 0a"


def layout_at(path: str) -> FormatName | None:
    """Return the Keras layout of the HDF5 file at `path`; None where it has none or cannot be read.

    See `layout_of`.
    """
    try:
        with opened(stream_of(path)) as file:
            return layout_of(file)
    except Damaged:
        return None


def is_sound(path: str) -> bool:
    """Return whether HDF5 opens the file at `path` and lists its root."""
    try:
        with opened(stream_of(path)) as file:
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
    import h5py

    queue = [root]
    for searched, group in enumerate(queue):
        if searched > _GROUPS_SEARCHED:
            break
        for name in names_in(group):
            with hdf5_errors():
                hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
                is_group = hard and group.get(name, getclass=True) is h5py.Group
            if is_group:
                if name == "vars":
                    return True
                if len(queue) <= _GROUPS_SEARCHED:
                    with hdf5_errors():
                        queue.append(group[name])
    return False


def check_file(path: str, format: FormatName) -> None:  # noqa: A002
    """Check that the file at `path` is an HDF5 file, whole.

    Raises:
        UnreadableCheckpoint: It is not.
    """
    check_whole(stream_of(path), size_of(path), path, path, format)


def unreadable(path: str, format: FormatName, error: Damaged, where: str | None = None) -> UnreadableCheckpoint:  # noqa: A002
    """Return the error for a file that cannot be read."""
    return UnreadableCheckpoint(path, format, (error.at(where or path),))


def variable(
    stream_opener: StreamOpener,
    path: str,
    format: FormatName,  # noqa: A002
    dataset: Dataset,
    label: str | None,
    check: Callable[[], None] = lambda: None,
) -> Variable:
    """Return a dataset as a variable that is read when it is asked for.

    Args:
        stream_opener: Opens the HDF5 file.
        path: The checkpoint's path, for messages.
        format: The checkpoint's format.
        dataset: The dataset.
        label: Its name for people.
        check: Called before a value is read; raises `UnreadableCheckpoint` where the file cannot be trusted.
    """

    def reader() -> Array:
        check()
        try:
            with opened(stream_opener) as file:
                return read_value(file, dataset.path, dataset)
        except Damaged as error:
            damage = error.at(f"{path}:{dataset.path}", (dataset.path,))
            raise UnreadableCheckpoint(path, format, (damage,)) from error

    return Variable(dataset.path, dataset.shape, dataset.dtype, dataset.nbytes, reader, label)


def read_all(stream_opener: StreamOpener, where: str, datasets: Mapping[str, Dataset]) -> Iterator[Damage]:
    """Read every dataset of an HDF5 file and yield those that cannot be read."""
    try:
        with opened(stream_opener) as file:
            for path, described in datasets.items():
                yield from _try_reading(file, where, path, described)
    except Damaged as error:
        yield error.at(where)


def _try_reading(file: OpenFile, where: str, path: str, described: Dataset) -> tuple[Damage, ...]:
    """Read one dataset; return why that fails."""
    try:
        read_value(file, path, described)
    except Damaged as error:
        return (error.at(f"{where}:{path}", (path,)),)
    return ()
