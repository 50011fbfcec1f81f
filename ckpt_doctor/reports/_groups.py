"""Findings as people read them: what says the same of many layers is one thing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_doctor.finding import Finding


@dataclass(frozen=True)
class Group:
    """Findings that people want to read as one.

    Attributes:
        kinds: For each rule in it, its findings of one shape.
        layers: The layers that each of them concerns.
    """

    kinds: tuple[tuple[Finding, ...], ...]
    layers: tuple[str, ...]

    @property
    def cause(self) -> str | None:
        """The code of the rule that explains all of it."""
        return self.kinds[0][0].cause


def cause_of(group: Group, findings: Sequence[Finding]) -> str | None:
    """Return where what explains a group is to be found among all `findings` that are reported; None for nothing."""
    if group.cause is None:
        return None
    reported = any(finding.rule == group.cause for finding in findings)
    return f"{group.cause}, below" if reported else f"{group.cause}, which is not reported here"


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Return `findings` in groups, in their order, but what explains a group directly after it."""
    return _causes_near(_groups(findings))


def _groups(findings: Sequence[Finding]) -> list[Group]:
    """Return `findings` in groups, in their order: first by rule and shape of message, then by the layers concerned."""
    kinds: dict[object, list[Finding]] = {}
    for finding in findings:
        key = (finding.rule, finding.severity, finding.certainty, finding.cause, finding.repair, _shape(finding))
        kinds.setdefault(key, []).append(finding)
    groups: dict[object, list[tuple[Finding, ...]]] = {}
    for kind in kinds.values():
        first, layers = kind[0], _layers(kind)
        # Findings on no layer have nothing in common but that.
        together = (layers, first.severity, first.certainty, first.cause) if first.layer else (first.rule, layers)
        groups.setdefault(together, []).append(tuple(kind))
    return [Group(tuple(kinds), _layers(kinds[0])) for kinds in groups.values()]


def _causes_near(groups: Sequence[Group]) -> list[Group]:
    """Return `groups` in their order, but what explains a group directly after the last one that it explains."""
    ordered = [group for group in groups if not _explains(group, groups)]
    for group in groups:
        explained = [i for i, other in enumerate(ordered) if other.cause == group.kinds[0][0].rule]
        if group not in ordered:
            ordered.insert(explained[-1] + 1 if explained else len(ordered), group)
    return ordered


def _explains(group: Group, groups: Sequence[Group]) -> bool:
    return any(other.cause == group.kinds[0][0].rule for other in groups)


def _shape(finding: Finding) -> str:
    """Return the message with what differs from layer to layer taken out."""
    message = finding.message
    for name in sorted({*finding.layers, *finding.variables}, key=len, reverse=True):
        message = message.replace(name, "*")
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", message)


def _layers(kind: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for finding in kind for layer in finding.layers))


def message_of(kind: Sequence[Finding]) -> str:
    """Return what findings of one shape say: once, with the layer left open, or the first as an example."""
    if len(kind) == 1:
        return kind[0].message
    general = {finding.message.replace(finding.layer or "\0", "…") for finding in kind}
    return general.pop() if len(general) == 1 else f"e.g. {kind[0].message}"
