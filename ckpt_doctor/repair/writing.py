"""New values into a staged copy, and the proof, before it is put in place, that all else is as it was."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.checkpoint import Checkpoint, Variable, same_values
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint, VerificationFailed
from ckpt_doctor.formats import format_of, recognise
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.receipt import is_receipt
from ckpt_doctor.formats.replacing import folders_above, identities, replaced
from ckpt_doctor.formats.staging import Staged
from ckpt_doctor.formats.temporary import TemporaryFolder

_log = logging.getLogger(__name__)
_Mark = Callable[[Variable], bytes]

_CHUNK = 1 << 20
# What follows the name of a bundle or of a sharded V1 checkpoint in the names of its files.
_FILES_OF_A_PREFIX = r"\.index|\.meta|(\.data)?-[\d?]{5}-of-\d{5}"


def check_output(checkpoint: Checkpoint, output: str, *, overwrite: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse an output that cannot be written, before hours of work.

    Args:
        checkpoint: What is to be repaired.
        output: Where to.
        overwrite: Whether a checkpoint of the same format may be replaced there.
        inputs: The other arguments that name files to be read: data, a model. They may not be replaced.

    Raises:
        BadRequest: Something is there that may not be replaced; it is the checkpoint itself; it has another extension;
            or its folder is not there.
    """
    target = Path(output)
    source = Path(checkpoint.path)
    here = _place(target)
    if here == _place(source):
        raise BadRequest(f"--output {output}: is the checkpoint itself; to change it in place, pass --in-place")
    if here in {_place(Path(name)) for name in checkpoint.files}:
        raise BadRequest(f"--output {output}: is a file of the checkpoint itself; pass another prefix, or --in-place")
    if checkpoint.format not in ("tensor-bundle", "saved-model", "tensor-slices-v1"):
        wanted = (
            "".join(source.suffixes[-2:]) if source.name.endswith((".weights.h5", ".weights.json")) else source.suffix
        )
        if not target.name.endswith(wanted):
            raise BadRequest(f"--output {output}: the repaired file has the same format; its name must end in {wanted}")
    if not target.parent.is_dir():
        raise BadRequest(f"--output {output}: the folder {target.parent} does not exist")
    older = replaced(format_of(checkpoint), checkpoint, target, overwrite=overwrite)
    gone = {identity: path for path in older for identity in identities(path)}
    for given in inputs if gone else ():
        for path in _paths_named_by(given):
            for place in (path, *folders_above(path)):
                for identity in identities(place) & gone.keys():
                    raise BadRequest(
                        f"--output {output}: {gone[identity]} would be replaced, but {path} is being read; pass "
                        "another name"
                    )


def check_receipt(receipt: str, checkpoint: str, output: str | None) -> None:
    """Refuse a receipt that would replace anything but a receipt, or be in the way of the output.

    Args:
        receipt: The file to be written.
        checkpoint: The checkpoint as it was named.
        output: Where the repaired checkpoint goes; None where it is changed in place or not written.

    Raises:
        BadRequest: It would.
    """
    path = Path(receipt)
    if path.is_file() and path.stat().st_size and not is_receipt(path):
        raise BadRequest(f"--receipt {receipt}: exists and is not a receipt of ckpt-doctor; pass another name")
    for option, other in (("--output", output), ("the checkpoint", checkpoint)):
        if other is not None and _collide(path, Path(other)):
            raise BadRequest(f"--receipt {receipt}: is a name that {option} {other} uses; pass another name")


def _collide(path: Path, checkpoint: Path) -> bool:
    """Return whether a file has the name of a checkpoint, could be one of its files, or is in its folder."""
    here, there = _place(path), _place(checkpoint)
    if here == there:
        return True
    if checkpoint.is_dir() and recognise(str(checkpoint)) is not None:
        return any(identities(folder) & identities(checkpoint) for folder in folders_above(path))
    stem = re.sub(rf"({_FILES_OF_A_PREFIX}|\.weights\.json)$", "", there.name)
    own = re.fullmatch(rf"{re.escape(stem)}({_FILES_OF_A_PREFIX}|_\d{{5}}\.weights\.h5)", here.name)
    return here.parent == there.parent and own is not None


def _paths_named_by(argument: str) -> Iterator[str]:
    """Yield the files that `[NAME=]FILE[[KEY]]`, `FILE:FUNCTION` or a glob may mean, if they are there."""
    for text in dict.fromkeys((argument, argument.partition("=")[2])):
        for path in dict.fromkeys((text, re.sub(r"\[[^]]*\]$", "", text), text.rpartition(":")[0])):
            if path and os.path.lexists(path):
                yield path
            elif path and any(sign in path for sign in "*?["):
                yield from glob.iglob(path, recursive=True)  # noqa: PTH207 - the pattern may be absolute


def _place(path: Path) -> Path:
    """Return a path that two names of one directory entry share; the entry itself may be a link."""
    return Path(os.path.realpath(path.parent)) / path.name


def hashes(files: tuple[str, ...], *, largest: int | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file, in hexadecimal; of files over `largest` bytes only where that is None."""
    table = {}
    for name in files:
        path = Path(name)
        if path.is_file() and (largest is None or path.stat().st_size <= largest):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            table[name] = digest.hexdigest()
    return table


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: Where.
        files: Every file that is new or changed.
        backups: Files that hold what was there before.
        notes: What could not be tidied up, in words for the user.
    """

    path: str
    files: tuple[str, ...]
    backups: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Ready:
    """A repaired checkpoint that is written, read back and compared, and not yet in place.

    Attributes:
        checkpoint: What will be there, under the names that it will have; it can be read until the commit.
        unchanged: Number of variables that are what they were.
    """

    checkpoint: Checkpoint
    unchanged: int
    _staged: Staged
    _path: str

    def commit(self) -> Written:
        """Put it in place.

        Raises:
            BadRequest: Something else is there by now, or the file system refuses; nothing was changed.
        """
        committed = self._staged.commit()
        return Written(
            self._path, tuple(map(str, committed.files)), tuple(map(str, committed.backups)), committed.notes
        )

    @property
    def is_committed(self) -> bool:
        """Whether it is in place, even if something failed or interrupted after that."""
        return self._staged.is_committed


@contextmanager
def staged(
    source: Checkpoint,
    changes: Changes,
    output: str | None,
    *,
    overwrite: bool = False,
    backup: bool = True,
    full_verify: bool = False,
    dry_run: bool = False,
) -> Iterator[Ready]:
    """Write the changes, compare what was written with the plan, and give it up again unless it is committed.

    Planned variables must equal the plan and all others must be byte for byte what they were. A bundle that is changed
    in place is only added to, so there the others are compared by what the index says of them (type, shape, place and
    checksum), unless `full_verify` asks for every byte. Every variable is read once from the source and once from what
    was written.

    Args:
        source: The checkpoint.
        changes: What is different afterwards.
        output: Where to write; None changes the checkpoint itself.
        overwrite: Replace a checkpoint of the same format at `output`.
        backup: Keep what was there when the checkpoint itself is changed.
        full_verify: See above.
        dry_run: Never change the checkpoint itself: where `output` is None, write to a folder for temporary files.

    Yields:
        What is ready to be committed.

    Raises:
        BadRequest: Something is at `output` that may not be replaced, or there is no room for the files.
        RepairRefused: The format cannot hold the change, or the source is damaged.
        VerificationFailed: What was written is not what was planned; nothing was changed.
    """
    path = output or source.path
    form = format_of(source)
    with ExitStack() as resources:
        target = None if output is None else Path(output)
        if dry_run and target is None:
            folder = resources.enter_context(TemporaryFolder())
            target = Path(folder, Path(os.path.abspath(source.path)).name)  # noqa: PTH100 - keeps the links
        try:
            stage = form.stage(source, target, changes, overwrite=overwrite, backup=backup)
        except BadRequest as error:
            if dry_run and output is None and isinstance(error.__cause__, OSError):
                advice = "a dry run writes a copy to the temporary folder; set TMPDIR to use another folder"
                raise BadRequest(f"{error}; {advice}") from error
            raise
        resources.enter_context(stage)
        checkpoint = _read_back(stage, path)
        entries = stage.only_added and not full_verify
        before, after = (_by_entry(form.entries(one)) if entries else _digest for one in (source, checkpoint))
        wrong = _differences(source, checkpoint, changes, before, after)
        wrong += _other_graphs(checkpoint, changes)
        wrong += [damage.where for damage in checkpoint.damages if not source.damages]
        if full_verify and not wrong:
            wrong += [damage.where for damage in form.verify(checkpoint)]
        if wrong:
            raise VerificationFailed(
                f"{path}: {stage.named(wrong[0])} does not hold the planned values; nothing was changed"
            )
        _log.debug("%s: what was written is what was planned, all else is as it was", path)
        unchanged = sum(variable.name not in changes.values for variable in checkpoint.variables)
        yield Ready(checkpoint, unchanged, stage, path)


def _read_back(stage: Staged, path: str) -> Checkpoint:
    try:
        return stage.open()
    except UnreadableCheckpoint as error:
        raise VerificationFailed(
            f"{path}: the written file cannot be read ({stage.named(str(error))}); nothing was changed"
        ) from error


def _differences(source: Checkpoint, written: Checkpoint, changes: Changes, before: _Mark, after: _Mark) -> list[str]:
    """Return the names of the variables that are not what they should be.

    Args:
        source: What was there.
        written: What was written.
        changes: What is to be different.
        before: Returns what must stay the same of a variable of the source.
        after: The same of a variable that was written.
    """
    # New variables grow the object graph, which is one of the entries for bookkeeping.
    is_grown = any(source.variable(name) is None for name in changes.values)
    stays = [*source.variables, *([] if is_grown else source.bookkeeping)]
    marks = {variable.name: before(variable) for variable in stays if variable.name not in changes.values}
    planned = dict(changes.values)
    wrong = []
    for variable in (*written.variables, *([] if is_grown else written.bookkeeping)):
        plan = planned.pop(variable.name, None)
        try:
            if plan is None:
                is_right = variable.name in marks and marks.pop(variable.name) == after(variable)
            else:
                is_right = same_values(variable.read(), np.asarray(plan))
        except UnreadableCheckpoint:
            is_right = False
        if not is_right:
            wrong.append(variable.name)
    return [*wrong, *planned, *marks]


def _other_graphs(written: Checkpoint, changes: Changes) -> list[str]:
    """Return what holds another graph than the new one that was planned."""
    found = written.descriptions
    planned = (
        (changes.meta_graph, found.meta_graph, "its .meta"),
        (changes.saved_model, found.saved_model, "its model"),
    )
    return [name for plan, graph, name in planned if plan is not None and graph != plan]


def _by_entry(entries: Mapping[str, bytes]) -> _Mark:
    """Return the mark of a variable that is its entry."""
    return lambda variable: entries[variable.name]


def _digest(variable: Variable) -> bytes:
    """Return a digest of a variable's type, shape and bytes."""
    value = variable.read()
    digest = hashlib.blake2b(f"{value.dtype}{value.shape}".encode(), digest_size=16)
    if value.dtype == object:
        for item in value.reshape(-1):
            digest.update(len(item).to_bytes(8, "little") + item)
    else:
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.digest()
