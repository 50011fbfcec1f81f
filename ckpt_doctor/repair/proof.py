"""What the repaired checkpoint shows: residuals on the data, findings that are left, doubts about the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import STATISTICS, Inventory
from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.errors import VerificationFailed
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.agreement import DEFAULT_EPSILON
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.targets import ESTIMATES
from ckpt_doctor.repair_result import RepairedLayer
from ckpt_doctor.rules import too_little_data
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.verdict import Policy, Verdict, judge, uncounted

# What layerwise statistics may be off from a plain pass over the same data: float32 leaves 1e-7 to 1e-5, and a network
# that computes in float16 up to 5e-3; a mistake of the estimate is far above.
LARGEST_RESIDUAL = 1e-2
# The statistics come from one draw of a graph's random numbers and the proof from another, so a residual is distributed
# as the difference of two passes. The largest of three of these stands for it, and three times that is beyond chance.
_REDRAWS = 3.0
# Findings about missing statistics, about values, and about the data: none of them may be left on a repaired layer.
_OF_STATISTICS = ("BN1", "BN2", "BN4")
# They judge the data that were given, not what was made of them.
_OF_DATA = ("BN402",)
_NOT_OF_DATA = "BN401"
_NOTHING = np.zeros(0)


@dataclass(frozen=True)
class Proof:
    """What was proven of a repair.

    Attributes:
        layers: The repaired layers, with their residuals.
        remaining: Why the repair is not complete, a sentence each; empty where it is.
        notes: What else the user should know.
        clean: Whether a scan with the same options finds nothing but notes.
        needs_receipt: Whether it does so only beside a receipt of the repair.
    """

    layers: tuple[RepairedLayer, ...]
    remaining: tuple[str, ...]
    notes: tuple[str, ...]
    clean: bool
    needs_receipt: bool


def prove(
    repaired: Sequence[RepairedLayer],
    after: Analysis,
    seen: Mapping[str, Observation],
    noise: Mapping[str, float] = MappingProxyType({}),
) -> Proof:
    """Return what a repaired checkpoint shows of its layers.

    No finding about statistics may be left on a repaired layer, BN401 on the data of the repair among them; what
    `layerwise` estimated must differ from what is measured by no more than rounding.

    Args:
        repaired: The layers, as planned.
        after: What is, or will be, written.
        seen: What goes into its layers at inference; empty where no data were used.
        noise: Layer to how far two passes over the same data differ, in a graph that draws random numbers.
    """
    # Rules that judge history cannot see in the values that these are new.
    renewed = frozenset(entry.name for entry in repaired if entry.method != "copy")
    findings = _told(judge(after, Policy(observed=seen, repaired=renewed)))
    unaware = judge(after, Policy(observed=seen, repaired=frozenset()))
    alone = _told(unaware) if renewed else findings
    # Under --strict, a scan says that nothing tells whether averages are cold; of these it is known.
    open_question = any(layer.name in renewed for layer in uncounted(after, unaware.subject))
    only_history = {finding.rule for finding in alone} - {finding.rule for finding in findings}
    entries, remaining = _compared(repaired, after.inventory, seen, noise)
    changed = {entry.name for entry in repaired}
    elsewhere = []
    for finding in findings:
        if finding.rule.startswith(_OF_STATISTICS) and changed.intersection(finding.layers):
            remaining.append(f"{finding.rule} remains: {finding.message}")
        elif finding.rule == _NOT_OF_DATA:
            # Healthy layers contradict the data; which of the two is right only the user knows.
            remaining.append(f"{finding.rule}: {finding.message}")
        else:
            elsewhere.append(finding)
    notes = list(_others(elsewhere))
    if only_history:
        notes.append(
            f"the file does not show that its statistics are new: scan reports {', '.join(sorted(only_history))} "
            "unless the receipt of this repair is next to the file"
        )
    return Proof(
        entries, tuple(remaining), tuple(notes), not findings and not remaining, bool(only_history) or open_question
    )


def confirm(repaired: Sequence[RepairedLayer], proven: Analysis, written: Analysis) -> None:
    """Check that what is in place is what was proven before it was put there.

    Args:
        repaired: The repaired layers.
        proven: What was staged.
        written: What was opened again after the commit.

    Raises:
        VerificationFailed: The verdict or the statistics differ.
    """
    renewed = frozenset(entry.name for entry in repaired)
    found, expected = (
        {
            (finding.rule, finding.layers)
            for finding in judge(replace(one, defects=()), Policy(repaired=renewed)).findings
        }
        for one in (written, proven)
    )
    values, planned = ({layer.name: layer.values for layer in one.inventory.layers} for one in (written, proven))
    differing = [
        name
        for name in renewed
        for role in STATISTICS
        if not same_values(values.get(name, {}).get(role, _NOTHING), planned[name].get(role, _NOTHING))
    ]
    if found != expected or differing:
        what = f"layer {differing[0]}" if differing else f"the verdict ({sorted(found ^ expected)[0][0]})"
        raise VerificationFailed(
            f"{written.checkpoint.path}: was written, but {what} differs from what was verified before: another "
            "program changed the file; scan it again"
        )


def _told(verdict: Verdict) -> list[Finding]:
    """Return the findings that count against a checkpoint, and not against the data that were given."""
    return [finding for finding in verdict.findings if finding.severity != "note" and finding.rule not in _OF_DATA]


def _compared(
    repaired: Sequence[RepairedLayer], after: Inventory, seen: Mapping[str, Observation], noise: Mapping[str, float]
) -> tuple[tuple[RepairedLayer, ...], list[str]]:
    """Return the layers with their residuals, and which of them are not what the data show."""
    by_name = {layer.name: layer for layer in after.layers}
    entries: list[RepairedLayer] = []
    wrong: list[str] = []
    for entry in repaired:
        layer, observation = by_name.get(entry.name), seen.get(entry.name)
        if layer is None or not set(STATISTICS) <= set(layer.values):
            wrong.append(f"layer {entry.name} is not in the written file")
        elif observation is not None:
            mean, variance = (layer.values[role] for role in STATISTICS)
            residual = observation.distance(mean, variance, layer.epsilon or DEFAULT_EPSILON)
            # Initial values are right by how the layer was trained; how far they are from the data says nothing.
            entry = replace(entry, residual=None if entry.method == "initial" else residual)
            limit = max(LARGEST_RESIDUAL, _REDRAWS * noise.get(entry.name, 0.0))
            if entry.method == "layerwise" and not residual <= limit:
                wrong.append(
                    f"layer {entry.name}: its statistics differ by {residual:.2g} from those that the model shows; up "
                    "to "
                    f"{limit:.2g} is {'rounding' if limit == LARGEST_RESIDUAL else 'the noise of the graph'}"
                )
        elif entry.method in ESTIMATES and seen:
            # What was estimated must also be seen afterwards, or nothing is proven.
            wrong.append(f"layer {entry.name}: the model does not use its new statistics")
        entries.append(entry)
    return tuple(entries), wrong


def _others(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield what a scan goes on reporting of what was not repaired, a sentence for each rule."""
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.rule, finding)
    for finding in first.values():
        yield f"{finding.rule} {finding.name} is still reported: {finding.message}"


def doubts(inventory: Inventory, seen: Mapping[str, Observation]) -> Iterator[str]:
    """Yield what BN402 says of the data, once for the first layer that it concerns."""
    subject = Subject(inventory, observed=seen)
    findings = list(too_little_data.RULE.check(too_little_data.RULE, subject))
    if findings:
        more = f" (and {len(findings) - 1} more layers)" if len(findings) > 1 else ""
        yield f"BN402 too-little-data: {findings[0].message}{more}"
