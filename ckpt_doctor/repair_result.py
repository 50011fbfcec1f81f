"""What a repair comes to: the same names as in the JSON report (`ckpt-doctor/fix/1`)."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_doctor.result import ChannelValues


@dataclass(frozen=True)
class Spread:
    """How the values of one vector spread over its channels.

    Attributes:
        min: The smallest.
        median: The middle one.
        max: The largest.
    """

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Statistics:
    """The statistics of one layer, in the units of its input.

    Attributes:
        mean: Of the moving mean.
        variance: Of the moving variance, in squared units.
    """

    mean: Spread
    variance: Spread


@dataclass(frozen=True)
class RepairedLayer:
    """One layer whose statistics were set, or would be in a dry run.

    Attributes:
        name: The layer.
        method: How they were found: `layerwise`, `training`, `debias`, `initial` or `copy`.
        before: What was stored, or None where nothing was.
        after: What is stored now.
        standard_error: The largest standard error of a channel's mean, in standard deviations of that channel; None
            where nothing was estimated.
        residual: How far the stored statistics are from those of the layer's input at inference, measured after the
            repair: the worst channel's `|mean difference| / sqrt(variance + epsilon)` or relative variance difference,
            whichever is larger; None where it was not measured.
        before_values: What was stored, channel by channel; for plots, and in no JSON.
        after_values: What is stored now, likewise.
    """

    name: str
    method: str
    before: Statistics | None
    after: Statistics | None
    standard_error: float | None = None
    residual: float | None = None
    before_values: ChannelValues | None = None
    after_values: ChannelValues | None = None


@dataclass(frozen=True)
class LeftLayer:
    """One layer that was to be repaired and was not.

    Attributes:
        name: The layer.
        reason: Why, and what would make it possible.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Metric:
    """What the user's own measure says; higher is better.

    Attributes:
        before: Of the checkpoint as it was.
        after: Of the repaired one.
    """

    before: float
    after: float


@dataclass(frozen=True)
class FileHash:
    """One file of the checkpoint or of what was written.

    Attributes:
        path: The file.
        before: Its SHA-256 in hexadecimal before the repair; None where it was not there.
        after: Its SHA-256 after it; None where it is not there.
    """

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class RepairResult:
    """What `fix` did, or would do.

    Attributes:
        checkpoint: The checkpoint that was repaired.
        output: What was written; None where nothing was.
        method: The method asked for or, for `auto`, chosen; None where there was nothing to repair.
        samples: Number of samples of the data that were used.
        batches: Number of batches that they came in.
        layers: The layers whose statistics were set.
        left: The layers that were to be repaired and were not.
        unchanged_variables: Number of stored tensors that are what they were, byte for byte.
        metric: The user's measure before and after, where one was given.
        sha256: The files before and after; empty where nothing was written.
        seconds: How long it took.
        dry_run: Whether nothing was to be written.
        complete: Whether everything that was to be repaired is, or would be, and the written checkpoint scans clean of
            it: exit code 0.
        backups: Files that hold what was there before a repair in place.
        notes: What else the user should know, a sentence each.
        clean: Whether a scan of what was written, with the same options, finds nothing but notes; in no JSON.
        needs_receipt: Whether it does so only beside a receipt, because nothing in the file shows that its statistics
            are new (the step counter goes on saying what it said); in no JSON.
    """

    checkpoint: str
    output: str | None
    method: str | None
    samples: int
    batches: int
    layers: tuple[RepairedLayer, ...]
    left: tuple[LeftLayer, ...]
    unchanged_variables: int
    metric: Metric | None
    sha256: tuple[FileHash, ...]
    seconds: float
    dry_run: bool
    complete: bool
    backups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clean: bool = True
    needs_receipt: bool = False
