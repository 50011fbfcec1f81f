"""What a copy may replace: an older checkpoint of the same format, and nothing else.

A format says which files a copy takes (`Footprint`) and which files an older checkpoint there consists of (`parts`).
Whatever else is in the way is a reason to refuse, with or without `--overwrite`. What an older checkpoint is, is read
from its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._file_steps import check_target
from ckpt_doctor.formats._storage import is_remote, read_head

if TYPE_CHECKING:
    from ckpt_doctor.formats.interface import Format


@dataclass(frozen=True)
class Footprint:
    """The names that a copy of a checkpoint takes.

    Attributes:
        name: The path that the copy is opened by.
        written: Every file or folder that is written, or may be.
        beside: Other paths of the same name: what an older checkpoint would leave behind, or what would hide the copy.
    """

    name: str
    written: tuple[Path, ...]
    beside: tuple[Path, ...] = ()


def replaced(form: Format, checkpoint: Checkpoint, target: Path, *, overwrite: bool) -> tuple[Path, ...]:
    """Return the files and folders that a copy at `target` replaces or removes; none where nothing is there.

    Args:
        form: The format of the checkpoint.
        checkpoint: What is copied.
        target: Where to.
        overwrite: Whether an older checkpoint may be replaced.

    Raises:
        BadRequest: Something is there that may not be replaced, or nothing can be written there.
    """
    if is_remote(str(target)) or target.name in ("", ".", "..") or "\0" in str(target):
        raise refused(target, "does not name a new file or folder on this machine")
    footprint = form.footprint(checkpoint, target)
    check_target(footprint.written[-1], overwrite=True)
    there = [path for path in (*footprint.written, *footprint.beside) if os.path.lexists(path)]
    _refuse_source(checkpoint, target, there)
    if not there:
        return ()
    if not overwrite:
        raise refused(target, f"{min(there)} exists; pass another name or --overwrite")
    # The name that was asked for says most; a `.meta` beside it says little.
    first = next((path for path in there if path == Path(footprint.name)), there[0])
    older = _older(form, checkpoint, target, footprint.name, first)
    parts = tuple(dict.fromkeys(form.parts(older)))
    _refuse_source(checkpoint, target, parts)
    for path in there:
        if path not in parts:
            raise foreign(path, older, target)
    return parts


def check_still(
    form: Format, checkpoint: Checkpoint, target: Path, older: tuple[Path, ...], *, overwrite: bool
) -> None:
    """Check right before a commit that at the target there still is what `replaced` found.

    Raises:
        BadRequest: There is not; nothing that is there may be replaced unseen.
    """
    if replaced(form, checkpoint, target, overwrite=overwrite) != older:
        raise refused(target, "changed while the checkpoint was written; start again")


def foreign(path: Path, older: Checkpoint, target: Path | str) -> BadRequest:
    """Return the refusal of a target at which a file is found that is not part of the checkpoint there."""
    return refused(
        target,
        f"{path} is not part of the {older.format} checkpoint {older.path} and would be lost; move it away or pass "
        "another name",
    )


def refused(target: Path | str, why: str) -> BadRequest:
    """Return the refusal of a target."""
    return BadRequest(f"--output {target}: {why}")


def identities(path: Path | str) -> set[tuple[int, int]]:
    """Return device and inode of a path, and of what it leads to; the same for all names of one file."""
    found = set()
    for look in (Path.lstat, Path.stat):
        try:
            status = look(Path(path))
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def folders_above(path: Path | str) -> Iterator[str]:
    """Yield the folders above a path, as it is written and as its symbolic links lead."""
    for whole in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):  # noqa: PTH100 - keeps the links
        yield from map(str, Path(whole).parents)


def _refuse_source(checkpoint: Checkpoint, target: Path, paths: Iterable[Path]) -> None:
    """Refuse to replace a file of the source under any of its names, or a folder that it is in; or to write into it."""
    if is_remote(checkpoint.path):
        return
    own = {identity: file for file in checkpoint.files for identity in identities(file)}
    folders = {folder for file in checkpoint.files for folder in folders_above(file)}
    above = {identity for folder in folders for identity in identities(folder)}
    # A SavedModel is a folder of its own; the folder of any other checkpoint belongs to nobody.
    root = identities(checkpoint.path) & above
    if root and any(identities(folder) & root for folder in folders_above(target)):
        raise refused(target, f"is inside the checkpoint itself ({checkpoint.path}); pass a path outside it")
    for path in paths:
        found = identities(path)
        same = next((own[identity] for identity in found if identity in own), None)
        if same is not None:
            raise refused(
                target,
                f"{path} is another name of {same}, a file of the checkpoint itself; pass another name, or --in-place",
            )
        if found & above and path.is_dir():
            raise refused(target, f"{path} contains the checkpoint itself ({checkpoint.path}); pass another name")


def _older(form: Format, checkpoint: Checkpoint, target: Path, name: str, first: Path) -> Checkpoint:
    """Return the checkpoint that is replaced.

    Raises:
        BadRequest: It is not one, not of the same format, or cannot be read.
    """
    from ckpt_doctor.formats import recognise

    only = f"--overwrite replaces only a {checkpoint.format} checkpoint; pass another name"
    found = recognise(name)
    if found is not form:
        raise refused(target, f"{first} {_description(first, found)}; {only}")
    try:
        older = form.read(name)
    except UnreadableCheckpoint as error:
        raise refused(target, f"{first} cannot be read as a checkpoint ({error}); {only}") from error
    except FileNotFoundError as error:
        raise refused(target, f"{error} was removed meanwhile; start again") from error
    if older.format != checkpoint.format:
        raise refused(target, f"{first} is a {older.format} checkpoint; {only}")
    return older


def _description(path: Path, found: Format | None) -> str:
    """Return what a path is, in words that follow its name."""
    if path.is_dir():
        return "is a folder" if found is None else f"is a folder with a {found.name} checkpoint"
    if not path.is_file():
        return "is not a regular file"
    head = read_head(str(path))
    described = _foreign.describe(head)
    if described is not None:
        return f"is {described}"
    if found is not None:
        return f"is a file of a {found.name} checkpoint"
    return f"begins with {head[:8].hex(' ')}" if head else "is empty"
