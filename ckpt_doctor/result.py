"""What a scan comes to: the same names as in the JSON report (`ckpt-doctor/scan/1`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ckpt_doctor.coverage import Coverage
from ckpt_doctor.finding import Finding

if TYPE_CHECKING:
    from ckpt_doctor.checkpoint import FormatName


@dataclass(frozen=True)
class ChannelValues:
    """The statistics of one layer, channel by channel; for plots, and in no JSON.

    Attributes:
        mean: One value a channel, or None where there is none.
        variance: Likewise, in squared units of the layer's input.
    """

    mean: tuple[float, ...] | None
    variance: tuple[float, ...] | None


@dataclass(frozen=True)
class LayerValues:
    """What there is to plot of one layer.

    Attributes:
        stored: The statistics in the file.
        measured: Those of the data that was given to `scan --data`; None without data.
    """

    stored: ChannelValues | None
    measured: ChannelValues | None = None


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
class SuppressedFinding:
    """A finding that the user has said not to hear of.

    Attributes:
        finding: What was found.
        by: What suppresses it: the baseline file, or an entry of `per-path-ignores`.
        where: The baseline file, or the pattern of the entry.
    """

    finding: Finding
    by: Literal["baseline", "per-path-ignores"]
    where: str


@dataclass(frozen=True)
class UnusedSuppression:
    """A suppression that nothing needs any more: the next finding of its kind would pass unheard.

    Attributes:
        by: `baseline` or `per-path-ignores`.
        where: The baseline file, or the pattern of the entry.
        path: The checkpoint that it names.
        rule: The code of the rule.
        layer: The layer, or None for a finding about the checkpoint.
    """

    by: Literal["baseline", "per-path-ignores"]
    where: str
    path: str
    rule: str
    layer: str | None


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
        suppressed: What is wrong too, and was not to be reported.
        values: Layer to its statistics, channel by channel, where they were asked for.
        measured_with: The options of the command line that say on what data it was measured; empty where it was not.
        not_run: Codes of the rules that lacked what they look at: data without `--data`, every value with `--quick`.
    """

    path: str
    format: FormatName
    producer: str | None
    variables: int
    bytes: int
    evidence: tuple[str, ...]
    batch_norm_layers: tuple[LayerSummary, ...]
    not_judged: tuple[NotJudged, ...]
    findings: tuple[Finding, ...]
    suppressed: tuple[SuppressedFinding, ...] = ()
    values: Mapping[str, LayerValues] = field(default_factory=dict)
    measured_with: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()


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
        suppressed: Findings that a baseline or `per-path-ignores` keeps from being reported.
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
        rules: Codes of the rules that were to be reported, in report order; empty where that is not known.
        unused_suppressions: Entries of the baseline and of `per-path-ignores` that suppress nothing any more.
        coverage: What was looked at, and what was passed over and why.
    """

    checkpoints: tuple[CheckpointResult, ...]
    errors: tuple[PathError, ...] = ()
    passed_over: int = 0
    rules: tuple[str, ...] = ()
    unused_suppressions: tuple[UnusedSuppression, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)

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
            suppressed=sum(len(one.suppressed) for one in self.checkpoints),
            not_judged=sum(len(one.not_judged) for one in self.checkpoints),
        )
