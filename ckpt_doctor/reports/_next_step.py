"""The command that repairs what a scan has found."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from ckpt_doctor.result import CheckpointResult


@dataclass(frozen=True)
class NextStep:
    """What to do about a checkpoint.

    Attributes:
        lines: A shell command, its lines joined by backslashes.
        remarks: What the words in capitals stand for.
    """

    lines: tuple[str, ...]
    remarks: tuple[str, ...]


def next_step(checkpoint: CheckpointResult) -> NextStep | None:
    """Return the command that repairs what can be repaired, or None where nothing can."""
    repairable = [finding for finding in checkpoint.findings if finding.repair != "none"]
    damaged = any(finding.rule.startswith("CK") and finding.severity == "error" for finding in checkpoint.findings)
    if not repairable or damaged:  # A repair reads every byte: what is damaged must be whole again first.
        return None
    options, remarks = [f"ckpt-doctor fix {_quoted(checkpoint.path)}"], []
    if any(finding.repair == "estimate" for finding in repairable):
        if not {"graph", "config"} & set(checkpoint.evidence):
            options.append("--model MODEL")
            remarks.append("MODEL: its .meta, SavedModel or Keras config, or FILE.py:FUNCTION that builds it")
        options.append("--data DATA.npz")
        remarks.insert(0, "DATA.npz: inputs like those of training, by numpy.savez; no labels needed")
    if all(finding.certainty == "unproven" for finding in repairable):
        options.append("--unproven")
    options.append(f"--output {_quoted(repaired_name(checkpoint))}")
    first, *rest = options
    lines = [first, *(f"    {option}" for option in rest)]
    return NextStep((*(f"{line} \\" for line in lines[:-1]), lines[-1]), tuple(remarks))


def _quoted(text: str) -> str:
    """Return `text` for a shell, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "\\\\"))
    return "$'" + escaped.replace("'", "\\'") + "'"


def repaired_name(checkpoint: CheckpointResult) -> str:
    """Return a name for the repaired checkpoint beside the broken one; a file keeps its extension."""
    path = PurePosixPath(checkpoint.path)
    if checkpoint.format.startswith("keras-"):
        extension = "".join(path.suffixes[-2:]) if path.name.endswith((".weights.h5", ".weights.json")) else path.suffix
        return f"{checkpoint.path.removesuffix(extension)}-repaired{extension}"
    return f"{checkpoint.path.rstrip('/')}-repaired"
