"""New values into a new file, and the proof that it holds them and nothing else changed."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_doctor.checkpoint import Checkpoint, same_values
from ckpt_doctor.errors import BadRequest, VerificationFailed
from ckpt_doctor.formats import format_of, open_checkpoint, recognise
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.receipt import is_receipt
from ckpt_doctor.formats.replacing import folders_above, identities, replaced

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
        raise BadRequest(f"--output {output}: is the checkpoint itself; to change it where it lies, use --in-place")
    if here in {_place(Path(name)) for name in checkpoint.files}:
        raise BadRequest(f"--output {output}: is a file of the checkpoint itself; give a new prefix, or --in-place")
    if checkpoint.format not in ("tensor-bundle", "saved-model", "tensor-slices-v1"):
        wanted = (
            "".join(source.suffixes[-2:]) if source.name.endswith((".weights.h5", ".weights.json")) else source.suffix
        )
        if not target.name.endswith(wanted):
            raise BadRequest(
                f"--output {output}: the repaired file is of the same format; its name must end in {wanted}"
            )
    if not target.parent.is_dir():
        raise BadRequest(f"--output {output}: there is no folder {target.parent}")
    older = replaced(format_of(checkpoint), checkpoint, target, overwrite=overwrite)
    gone = {identity: path for path in older for identity in identities(path)}
    for given in inputs:
        for path in _paths_named_by(given):
            for place in (path, *folders_above(path)):
                for identity in identities(place) & gone.keys():
                    raise BadRequest(
                        f"--output {output}: {gone[identity]} would be replaced, and {path} is read; give another name"
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
        raise BadRequest(f"--receipt {receipt}: exists and is not a receipt of ckpt-doctor; give another name")
    for option, other in (("--output", output), ("the checkpoint", checkpoint)):
        if other is not None and _collide(path, Path(other)):
            raise BadRequest(f"--receipt {receipt}: is a name that {option} {other} takes; give another name")


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


@dataclass(frozen=True, eq=False)
class Written:
    """What was written.

    Attributes:
        path: Where.
        checkpoint: The same, opened again.
        unchanged: Number of variables that are what they were.
        backups: Files that hold what was there before.
    """

    path: str
    checkpoint: Checkpoint
    unchanged: int
    backups: tuple[str, ...]


def write_verified(
    source: Checkpoint, changes: Changes, output: str | None, *, overwrite: bool, backup: bool, full_verify: bool
) -> Written:
    """Write the changes and compare what was written with the plan.

    Planned variables must equal the plan and all others must be byte for byte what they were. A bundle that was changed
    in place was only added to, so there the others are compared by type, shape and place, unless `full_verify` asks for
    every byte.

    Args:
        source: The checkpoint.
        changes: What is different afterwards.
        output: Where to write; None changes the checkpoint itself.
        overwrite: Replace what lies at `output`.
        backup: Keep what was there when the checkpoint itself is changed.
        full_verify: See above.

    Raises:
        VerificationFailed: Something differs; what was written to `output` is removed.
    """
    form = format_of(source)
    appended = output is None and source.format == "tensor-bundle" and not full_verify
    before = _outlines(source) if appended else _fingerprints(source)
    backups: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()
    if output is None:
        backups = form.rewrite_in_place(source, changes, backup=backup)
    else:
        written = form.rewrite(source, Path(output), changes, overwrite=overwrite)
    path = output or source.path
    checkpoint = open_checkpoint(path)
    wrong = _differences(checkpoint, before, _outlines(checkpoint) if appended else _fingerprints(checkpoint), changes)
    if full_verify:
        wrong += [damage.where for damage in form.verify(checkpoint)]
    if wrong:
        for created in written:
            created.unlink(missing_ok=True)
        if output is not None and Path(output).is_dir():
            shutil.rmtree(output)
        kept = f"; {backups[0]} holds what was there before" if backups else ""
        what = "it was removed" if output is not None else f"the checkpoint was changed in place{kept}"
        raise VerificationFailed(f"{path}: {wrong[0]} does not hold what was to be written; {what}")
    unchanged = sum(variable.name not in changes.values for variable in checkpoint.variables)
    return Written(path, checkpoint, unchanged, tuple(map(str, backups)))


def _differences(
    checkpoint: Checkpoint, before: Mapping[str, bytes], after: Mapping[str, bytes], changes: Changes
) -> list[str]:
    """Return the names of the variables that are not what they should be."""
    names = dict.fromkeys([*before, *after])
    wrong = [name for name in names if name not in changes.values and before.get(name) != after.get(name)]
    for name, value in changes.values.items():
        variable = checkpoint.variable(name)
        if variable is None or not same_values(variable.read(), value):
            wrong.append(name)
    return wrong


def _outlines(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return type, shape and size of every variable."""
    return {v.name: f"{v.dtype}{v.shape}{v.nbytes}".encode() for v in checkpoint.variables}


def _fingerprints(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return a digest of every variable's type, shape and bytes."""
    table = {}
    for variable in checkpoint.variables:
        value = variable.read()
        head = f"{value.dtype}{value.shape}".encode()
        data = b"\0".join(value.reshape(-1).tolist()) if value.dtype == object else value.tobytes()
        table[variable.name] = hashlib.blake2b(head + data, digest_size=16).digest()
    return table
