"""Checkpoint formats: bytes ⇄ `Checkpoint`. One file a format, both directions.

A path is recognised by its bytes; where they tell nothing (a damaged head, a git-LFS pointer), by its name, so that
damage is reported as damage and not as a format that nobody knows.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ckpt_doctor.checkpoint import Checkpoint, FormatName
from ckpt_doctor.errors import BadRequest, UnsupportedFormat
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._bundle_index import prefix_of
from ckpt_doctor.formats._kept import keeping
from ckpt_doctor.formats._storage import is_file, is_folder, is_remote, join, names_in, read_head, split
from ckpt_doctor.formats.interface import Format
from ckpt_doctor.formats.keras_hdf5 import KerasHdf5
from ckpt_doctor.formats.keras_v3 import KerasV3
from ckpt_doctor.formats.saved_model import SavedModel
from ckpt_doctor.formats.tensor_bundle import TensorBundle
from ckpt_doctor.formats.tensor_slices_v1 import TensorSlicesV1

_log = logging.getLogger(__name__)

# In the order in which they are asked. Formats do not overlap in their bytes.
FORMATS: tuple[Format, ...] = (SavedModel(), TensorBundle(), TensorSlicesV1(), KerasV3(), KerasHdf5())

# Whose a damaged file is, by the end of its name; the longest first. `.ckpt` is what single-file checkpoints are
# called.
_BY_NAME: tuple[tuple[str, FormatName], ...] = (
    (".index", "tensor-bundle"),
    ("saved_model.pb", "saved-model"),
    (".weights.json", "keras-v3"),
    (".weights.h5", "keras-v3"),
    (".keras", "keras-v3"),
    (".h5", "keras-hdf5"),
    (".hdf5", "keras-hdf5"),
    (".ckpt", "tensor-slices-v1"),
)
# Layouts that one class reads.
_READER_OF: dict[FormatName, FormatName] = {"keras-weights-hdf5": "keras-hdf5", "keras-weights-v3": "keras-v3"}
_HEAD = 4096


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open one checkpoint; values are read when they are asked for.

    Args:
        path: A prefix or any of its files, a SavedModel folder, a file, a folder that holds one checkpoint (or whose
            `checkpoint` file names the latest), or a URL.

    Raises:
        BadRequest: Nothing is there, or a folder holds several checkpoints.
        UnsupportedFormat: It is no checkpoint by its bytes nor by its name.
        UnreadableCheckpoint: It is one, damaged so far that nothing of it can be read.
        MissingExtra: A URL needs a package that is not installed.
    """
    place = tidy(os.fspath(path))
    with keeping():
        form = recognise(place)
        if form is None:
            if is_folder(place):
                place = _only_one_in(place)
                form = recognise(place)
            if form is None:
                raise _unrecognised(place)
        _log.debug("%s: recognised as %s", place, form.name)
        try:
            checkpoint = form.read(place)
        except FileNotFoundError as error:
            raise BadRequest(f"{place}: {error} is not there") from error
    _log.debug(
        "%s: %s, %d variables, %d bookkeeping entries, %d defects seen, written by %s",
        checkpoint.path,
        checkpoint.format,
        len(checkpoint.variables),
        len(checkpoint.bookkeeping),
        len(checkpoint.damages),
        checkpoint.producer or "a program that does not say so",
    )
    return checkpoint


def format_of(checkpoint: Checkpoint) -> Format:
    """Return the format that a checkpoint was read by."""
    name = _READER_OF.get(checkpoint.format, checkpoint.format)
    return next(form for form in FORMATS if form.name == name)


def recognise(path: str, head: bytes | None = None) -> Format | None:
    """Return the format of a path, by its bytes or else by its name; None where neither tells.

    Args:
        path: A prefix, a file or a folder.
        head: The first bytes of the file, where they were read already.
    """
    head = read_head(path, _HEAD) if head is None else head
    for form in FORMATS:
        if form.recognises(path, head):
            return form
    return by_name(path) if is_file(path) else None


def by_name(path: str) -> Format | None:
    """Return the format that a file's name claims."""
    lower = path.lower()
    claimed = next((name for ending, name in _BY_NAME if lower.endswith(ending)), None)
    return next((form for form in FORMATS if form.name == claimed), None)


def tidy(path: str) -> str:
    """Return a path without what shells and people add: `~`, `file://`, a slash at the end.

    Raises:
        BadRequest: No file can have this name.
    """
    if "\0" in path:
        raise BadRequest(f"{path!r}: a path cannot contain a null character")
    if path.startswith("file://"):
        path = path[len("file://") :]
    if path.startswith("~"):
        path = str(Path(path).expanduser())
    return path.rstrip("/") or path[:1] if not is_remote(path) else path.rstrip("/")


def absent(path: str) -> BadRequest:
    """Return the error for a path at which there is no checkpoint: what was looked for, and what is there."""
    prefix = prefix_of(path) or path
    folder, name = split(prefix)
    names = [found for found, _ in names_in(folder)] if not is_remote(path) else []
    index = f"{prefix}.index"
    for place in (path, index):
        if not is_remote(place) and os.path.lexists(place) and not (is_file(place) or is_folder(place)):
            return BadRequest(f"{place}: is a pipe, a device or a broken link; expected a file or a folder")
    beside = [found for found in names if name and found.startswith((f"{name}.", f"{name}_temp"))]
    if beside:
        listed = ", ".join(beside[:5]) + (", …" if len(beside) > 5 else "")
        return BadRequest(
            f"{path}: {index} is missing, and a checkpoint cannot be read without it; found only {listed}"
        )
    alike = [found[: -len(".index")] for found in names if found.startswith(name) and found.endswith(".index")]
    advice = f"; did you mean {join(folder, alike[-1])}?" if name and alike else ""
    return BadRequest(f"{path}: no such file or folder, and no checkpoint with this prefix ({index}){advice}")


def _only_one_in(folder: str) -> str:
    from ckpt_doctor.formats.discovery import STATE_FILE, discover

    found = discover([folder])
    if len(found.checkpoints) == 1:
        return found.checkpoints[0]
    listed = discover([join(folder, STATE_FILE)]) if is_file(join(folder, STATE_FILE)) else None
    if listed is not None and not listed.damages and not listed.unopened:
        # An Estimator keeps more below its folder: `keras`, `export`, `eval`; TensorFlow loads what the folder lists.
        here = tuple(path for path in found.checkpoints if split(path)[0] == folder)
        if len(here) == 1 and here == listed.checkpoints:
            return here[0]
    if found.unopened:
        raise found.unopened[0]
    if not found.checkpoints:
        raise UnsupportedFormat(f"{folder}: no checkpoint in this folder")
    few = ", ".join(found.checkpoints[:3])
    raise BadRequest(f"{folder}: {len(found.checkpoints)} checkpoints in this folder ({few} …); name one of them")


def _unrecognised(path: str) -> BadRequest | UnsupportedFormat:
    if not is_file(path) or (prefix_of(path) is not None and not path.endswith(".index")):
        return absent(path)
    head = read_head(path, _HEAD)
    what = _foreign.describe(head) or (f"begins with {head[:8].hex(' ')}" if head else "is empty")
    what = what if what.startswith(("begins", "is ")) else f"is {what}"
    return UnsupportedFormat(
        f"{path}: {what}, which is not a checkpoint; expected a TensorFlow bundle (.index), V1 file, SavedModel or "
        "Keras file (.h5, .keras, .weights.h5)"
    )
