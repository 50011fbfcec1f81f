"""New values into a new file, and the proof that it holds them and nothing else changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ckpt_doctor.checkpoint import Array, Checkpoint, same_values
from ckpt_doctor.errors import BadRequest, VerificationFailed
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes

_CHUNK = 1 << 20
_SHARD = re.compile(r"\.data-\d{5,}-of-\d{5,}")


def check_output(checkpoint: Checkpoint, output: str, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before hours of work.

    Raises:
        BadRequest: It exists, is the checkpoint itself, has another extension, or its folder is not there.
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
    existing = files_at(checkpoint, output)
    if existing and not overwrite:
        raise BadRequest(f"--output {output}: {existing[0]} exists; give another name or --overwrite")


def files_at(checkpoint: Checkpoint, output: str) -> list[Path]:
    """Return the files that lie where the output would be written."""
    target = Path(output)
    if checkpoint.format == "tensor-bundle":
        beside = target.parent.iterdir() if target.parent.is_dir() else ()
        return sorted(path for path in beside if _is_of_bundle(path.name, target.name))
    return [target] if target.exists() else []


def _is_of_bundle(name: str, prefix: str) -> bool:
    """Return whether a file belongs to the bundle `prefix`, and not to one whose name only begins alike."""
    rest = name.removeprefix(prefix)
    return name.startswith(prefix) and (rest in (".index", ".meta") or _SHARD.fullmatch(rest) is not None)


def _place(path: Path) -> Path:
    """Return a path that two names of one directory entry share; the entry itself may be a link."""
    return Path(os.path.realpath(path.parent)) / path.name


def hashes(files: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of each file, in hexadecimal."""
    table = {}
    for name in files:
        path = Path(name)
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            table[name] = digest.hexdigest()
    return table


def write(
    checkpoint: Checkpoint, changes: Changes, output: str | None, *, overwrite: bool, backup: bool
) -> tuple[str, tuple[str, ...]]:
    """Write the changes, to `output` or in place; return the path written and the backup files."""
    form = format_of(checkpoint)
    if output is None:
        return checkpoint.path, tuple(map(str, form.rewrite_in_place(checkpoint, changes, backup=backup)))
    form.rewrite(checkpoint, Path(output), changes, overwrite=overwrite)
    return output, ()


def fingerprints(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return a digest of every variable's type, shape and bytes."""
    table = {}
    for variable in checkpoint.variables:
        value = variable.read()
        head = f"{value.dtype}{value.shape}".encode()
        data = b"\0".join(value.reshape(-1).tolist()) if value.dtype == object else value.tobytes()
        table[variable.name] = hashlib.blake2b(head + data, digest_size=16).digest()
    return table


def verify(
    written: str, before: Mapping[str, bytes], values: Mapping[str, Array], created: tuple[Path, ...] = ()
) -> tuple[Checkpoint, int]:
    """Reopen what was written and compare: planned variables equal the plan, all others are byte for byte the same.

    Args:
        written: The path.
        before: Fingerprints of the variables of the source.
        values: What was planned.
        created: What to remove where the comparison fails.

    Returns:
        The written checkpoint, and the number of variables that did not change.

    Raises:
        VerificationFailed: Something differs; what was created is removed.
    """
    checkpoint = open_checkpoint(written)
    after = fingerprints(checkpoint)
    wrong = [name for name in before if name not in values and after.get(name) != before[name]]
    wrong += [name for name in after if name not in values and name not in before]
    for name, value in values.items():
        variable = checkpoint.variable(name)
        if variable is None or not same_values(variable.read(), value):
            wrong.append(name)
    if wrong:
        for path in created:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        what = "it was removed" if created else "the backup holds what was there before"
        raise VerificationFailed(f"{written}: {wrong[0]} does not hold what was to be written; {what}")
    return checkpoint, sum(name not in values for name in after)
