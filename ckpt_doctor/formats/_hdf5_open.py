"""From a path to an open HDF5 file, or to the reason why it is none.

Everything goes through a Python stream, never through HDF5's own drivers: the same way reads local files, remote ones
and a member of a zip archive, takes no lock on a file that a training process is writing, and cannot be led to another
file by a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from ckpt_doctor.checkpoint import Array, Damage, Variable
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._hdf5 import H5PY_ERRORS, Dataset, OpenFile, damage_of, read_value, text_attribute
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
        OSError: HDF5 refuses the bytes.
        ValueError: The superblock is damaged.
    """
    import h5py

    with stream_opener() as stream:
        superblock = read_superblock(stream)
        if superblock is None:
            raise OSError("no HDF5 signature")
        guarded = GuardedStream(stream, superblock.length_size)
        with h5py.File(cast("BinaryIO", guarded), "r") as file:
            yield OpenFile(file, Texts(stream, superblock))


def stream_of(path: str) -> StreamOpener:
    """Return what opens the file at `path`."""

    def open_it() -> BinaryIO:
        try:
            return open_binary(path)
        except FileNotFoundError:
            raise BadRequest(f"{path}: no such file") from None

    return open_it


def check_whole(stream_opener: StreamOpener, size: int, where: str, path: str, format: str) -> None:  # noqa: A002
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
        except H5PY_ERRORS as error:
            message = f"the HDF5 signature is there and no superblock behind it: {error}"
            raise UnreadableCheckpoint(path, format, (Damage("not-a-checkpoint", where, message),)) from error
    if superblock is None:
        raise UnreadableCheckpoint(path, format, (Damage("not-a-checkpoint", where, _what_it_is(head)),))
    if superblock.end > size:
        message = f"{size} bytes, the superblock promises {superblock.end}"
        raise UnreadableCheckpoint(path, format, (Damage("truncated", where, message),))
    if superblock.is_open:
        _check_unfinished(stream_opener, size, where, path, format)


def _check_unfinished(stream_opener: StreamOpener, size: int, where: str, path: str, format: str) -> None:  # noqa: A002
    """Check that HDF5 opens a file that is marked as open; many are whole all the same.

    Raises:
        UnreadableCheckpoint: It does not. The superblock's own length was then never brought up to date.
    """
    try:
        with opened(stream_opener):
            pass
    except H5PY_ERRORS as error:
        message = (
            f"{size} bytes of a file that was never closed: the save was interrupted, or the file was copied before it "
            f"ended ({' '.join(str(error).split())})"
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


def layout_at(path: str) -> str | None:
    """Return the Keras layout of the HDF5 file at `path`; None where it has none or cannot be read.

    See `layout_of`.
    """
    try:
        with opened(stream_of(path)) as file:
            return layout_of(file)
    except H5PY_ERRORS:
        return None


def is_sound(path: str) -> bool:
    """Return whether HDF5 opens the file at `path` and lists its root."""
    try:
        with opened(stream_of(path)) as file:
            list(file.h5)
            return True
    except H5PY_ERRORS:
        return False


def layout_of(file: OpenFile) -> str | None:
    """Return the Keras layout of an open file, by content: the extension says little, `.h5` is used for all.

    Returns:
        `keras-hdf5` (whole model), `keras-weights-hdf5`, `keras-weights-v3`, or None.
    """
    root = file.h5
    if "model_weights" in root or text_attribute(file, root, "model_config") is not None:
        return "keras-hdf5"
    if any(name in root.attrs for name in ("layer_names", "layer_names0", "nb_layers")):
        return "keras-weights-hdf5"
    if "graph" in root and "nb_params" in root["graph"].attrs:
        return "keras-weights-hdf5"
    return "keras-weights-v3" if _has_vars(root) else None


def _has_vars(root: Any) -> bool:
    """Return whether a group is called `vars`: every Keras 3 store has one (`H5IOStore._create_h5_group`)."""
    import h5py

    queue = [root["/"]]
    for searched, group in enumerate(queue):
        if searched > _GROUPS_SEARCHED:
            break
        for name in group:
            hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
            if hard and group.get(name, getclass=True) is h5py.Group:
                if name == "vars":
                    return True
                if len(queue) <= _GROUPS_SEARCHED:
                    queue.append(group[name])
    return False


def check_file(path: str, format: str) -> None:  # noqa: A002
    """Check that the file at `path` is an HDF5 file, whole.

    Raises:
        UnreadableCheckpoint: It is not.
    """
    check_whole(stream_of(path), size_of(path), path, path, format)


def unreadable(path: str, format: str, error: BaseException, where: str | None = None) -> UnreadableCheckpoint:  # noqa: A002
    """Return the error for a file that HDF5 gives up on."""
    return UnreadableCheckpoint(path, format, (damage_of(error, where or path),))


def variable(
    stream_opener: StreamOpener,
    path: str,
    format: str,  # noqa: A002
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
        except H5PY_ERRORS as error:
            damage = damage_of(error, f"{path}:{dataset.path}", (dataset.path,))
            raise UnreadableCheckpoint(path, format, (damage,)) from error

    return Variable(dataset.path, dataset.shape, dataset.dtype, dataset.nbytes, reader, label)


def read_all(stream_opener: StreamOpener, where: str, datasets: Mapping[str, Dataset]) -> Iterator[Damage]:
    """Read every dataset of an HDF5 file and yield those that cannot be read."""
    try:
        with opened(stream_opener) as file:
            for path, described in datasets.items():
                yield from _try_reading(file, where, path, described)
    except H5PY_ERRORS as error:
        yield damage_of(error, where)


def _try_reading(file: OpenFile, where: str, path: str, described: Dataset) -> tuple[Damage, ...]:
    """Read one dataset; return why that fails."""
    try:
        read_value(file, path, described)
    except H5PY_ERRORS as error:
        return (damage_of(error, f"{where}:{path}", (path,)),)
    return ()
