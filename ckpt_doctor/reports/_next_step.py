"""The command that repairs what a scan has found."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ckpt_doctor.checkpoint import LAYOUTS
from ckpt_doctor.finding import Finding
from ckpt_doctor.result import CheckpointResult
from ckpt_doctor.rules import repaired_unasked

# What Keras before 2 wrote is read and never rewritten; see `formats.keras_hdf5`.
_READ_ONLY = ("Keras 0.", "Keras 1")
_OF_DATA = "BN401"
_SWAPPED = "BN206"


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
    """Return the command that repairs what can be repaired, or None where nothing can.

    It says what `fix` needs to be told: the data and options of `scan --data`, which layers where only data show that
    their statistics are wrong, and --unproven only where nothing else is to be done.
    """
    # Where roles are swapped for good, statistics from data would belong to another network.
    swapped = {finding.layer for finding in checkpoint.findings if (finding.rule, finding.repair) == (_SWAPPED, "none")}
    repairable = [
        finding for finding in checkpoint.findings if finding.repair != "none" and finding.layer not in swapped
    ]
    damaged = any(finding.rule.startswith("CK") and finding.severity == "error" for finding in checkpoint.findings)
    # A repair reads every byte: what is damaged must be whole again first. What is remote is never written.
    if not repairable or damaged or "://" in checkpoint.path or (checkpoint.producer or "").startswith(_READ_ONLY):
        return None
    of_data = [finding for finding in repairable if finding.rule == _OF_DATA]
    safe = repaired_unasked(repairable)
    chosen = [*of_data, *safe] or repairable
    options, remarks = [f"ckpt-doctor fix {_quoted(checkpoint.path)}"], []
    estimates = any(finding.repair == "estimate" for finding in chosen)
    if estimates and "--model" not in checkpoint.measured_with and not {"graph", "config"} & set(checkpoint.evidence):
        options.append("--model MODEL")
        remarks.append(
            "MODEL: its .meta (preferably of the training graph), a Keras model or its .json, or FILE.py:FUNCTION"
        )
    if checkpoint.measured_with:
        words = [_quoted(word) for word in checkpoint.measured_with]
        options += [" ".join(pair) for pair in _pairs(words)]
    if estimates and "--data" not in checkpoint.measured_with:
        options.append("--data DATA.npz")
        remarks.insert(0, "DATA.npz: training-like inputs, saved with numpy.savez; no labels needed")
    if of_data:
        options += [f"--layers {_quoted(pattern)}" for pattern in _patterns(checkpoint, chosen)]
        remarks.append("only if these data are what the model will serve; otherwise check the preprocessing first")
    elif not safe:
        options.append("--unproven")
        remarks.append(
            "--unproven: some findings are not proven; pass it only if the layers were trained on batch statistics, "
            "or let --metric FILE.py:FUNCTION decide"
        )
    else:
        left = {layer for finding in repairable for layer in finding.layers}
        left -= {layer for finding in chosen for layer in finding.layers}
        if left:
            remarks.append(f"--unproven would also repair {len(left)} layers with unproven findings")
    options.append(f"--output {_quoted(repaired_name(checkpoint))}")
    first, *rest = options
    lines = [first, *(f"    {option}" for option in rest)]
    return NextStep((*(f"{line} \\" for line in lines[:-1]), lines[-1]), tuple(remarks))


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield each option with its value, as one line each."""
    found: list[str] = []
    for word in words:
        if word.startswith("--") and found:
            yield tuple(found)
            found = []
        found.append(word)
    if found:
        yield tuple(found)


def _patterns(checkpoint: CheckpointResult, findings: Sequence[Finding]) -> list[str]:
    """Return globs for exactly the layers of some findings."""
    names = list(dict.fromkeys(layer for finding in findings for layer in finding.layers))
    every = {layer.name for layer in checkpoint.batch_norm_layers}
    return ["*"] if set(names) == every else [glob.escape(name) for name in names]


def _quoted(text: str) -> str:
    """Return `text` for a shell, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "\\\\"))
    return "$'" + escaped.replace("'", "\\'") + "'"


def repaired_name(checkpoint: CheckpointResult) -> str:
    """Return a name for the repaired checkpoint beside the broken one; a file keeps its extension."""
    path = PurePosixPath(checkpoint.path)
    if LAYOUTS[checkpoint.format].one_file:
        extension = "".join(path.suffixes[-2:]) if path.name.endswith((".weights.h5", ".weights.json")) else path.suffix
        return f"{checkpoint.path.removesuffix(extension)}-repaired{extension}"
    return f"{checkpoint.path.rstrip('/')}-repaired"
