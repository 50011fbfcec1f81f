"""What a scan comes to: the same names as in the JSON report (`ckpt-doctor/scan/1`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ckpt_doctor.finding import Finding


@dataclass(frozen=True)
class LayerSummary:
    """One batch-norm layer as reported.

    Attributes:
        name: The layer.
        gamma: Name of the variable in the file, or None where it is not there.
        beta: Likewise.
        moving_mean: Likewise.
        moving_variance: Likewise.
        companions: Names of the variables that belong to its statistics.
        channels: Length of its vectors, or None where nothing tells.
        epsilon: Added to the variance, where the model says so.
        momentum: Decay of its averages, where the model says so.
        evidence: The strongest evidence for the layer: `graph`, `config`, `object-graph` or `names`.
        status: `ok`, or the name of its worst finding (highest severity, then lowest code).
    """

    name: str
    gamma: str | None
    beta: str | None
    moving_mean: str | None
    moving_variance: str | None
    companions: tuple[str, ...]
    channels: int | None
    epsilon: float | None
    momentum: float | None
    evidence: str
    status: str


@dataclass(frozen=True)
class NotJudged:
    """Something that no verdict could be given on.

    Attributes:
        where: The variable, layer or file.
        reason: Why.
    """

    where: str
    reason: str


@dataclass(frozen=True)
class CheckpointResult:
    """The verdict on one checkpoint.

    Attributes:
        path: As the user would name it.
        format: Its format, or `unknown` where the file is too damaged to tell.
        producer: What wrote it, where known.
        variables: Number of stored tensors, optimizer slots included.
        bytes: Size of its files.
        evidence: What the judgement rests on.
        batch_norm_layers: Its layers, in the order of the model or file.
        not_judged: What could not be judged.
        findings: What is wrong, worst first.
    """

    path: str
    format: str
    producer: str | None
    variables: int
    bytes: int
    evidence: tuple[str, ...]
    batch_norm_layers: tuple[LayerSummary, ...]
    not_judged: tuple[NotJudged, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class PathError:
    """A path that no verdict could be given on.

    Attributes:
        path: As given.
        message: Why.
    """

    path: str
    message: str


@dataclass(frozen=True)
class Summary:
    """How many there are of what.

    Attributes:
        checkpoints: Checkpoints scanned.
        batch_norm_layers: Their batch-norm layers.
        error: Findings of this severity.
        warning: Likewise.
        note: Likewise.
        suppressed: Findings that a baseline holds and that are therefore not reported.
        not_judged: Variables, layers and models that no verdict could be given on.
    """

    checkpoints: int
    batch_norm_layers: int
    error: int
    warning: int
    note: int
    suppressed: int
    not_judged: int


@dataclass(frozen=True)
class AuditResult:
    """The verdict on everything that was asked for.

    Attributes:
        checkpoints: One entry for each checkpoint.
        errors: Paths that could not be scanned.
        passed_over: Number of older checkpoints that a `checkpoint` state file lists and that were not scanned.
    """

    checkpoints: tuple[CheckpointResult, ...]
    errors: tuple[PathError, ...] = ()
    passed_over: int = 0

    @property
    def summary(self) -> Summary:
        """The counts over all checkpoints."""
        severities = Counter(finding.severity for one in self.checkpoints for finding in one.findings)
        return Summary(
            checkpoints=len(self.checkpoints),
            batch_norm_layers=sum(len(one.batch_norm_layers) for one in self.checkpoints),
            error=severities["error"],
            warning=severities["warning"],
            note=severities["note"],
            suppressed=0,
            not_judged=sum(len(one.not_judged) for one in self.checkpoints),
        )
