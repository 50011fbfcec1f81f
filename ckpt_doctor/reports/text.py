"""The report of a scan for people.

Findings are grouped: rules that concern the same layers for the same reason stand together, whatever the number of
layers, and the exact command that repairs them stands below.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ckpt_doctor.finding import Finding
from ckpt_doctor.reports._page import Page, count, names, size
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, CheckpointResult, Summary

_COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_INDENT = 4
_REASONS_SHOWN = 5


def render(result: AuditResult, style: Style) -> str:
    """Return the report; empty where nothing was scanned."""
    page = Page(style)
    for checkpoint in result.checkpoints:
        if style.detail != "less" or checkpoint.findings or checkpoint.not_judged:
            _checkpoint(page, checkpoint, style)
    if not result.checkpoints:
        return ""
    page.blank()
    if result.passed_over:
        page.paragraph(f"{count(result.passed_over, 'older checkpoint')} passed over; --all scans them too")
    page.paragraph(_total(result.summary, len(result.errors)), color="bold")
    return str(page)


def _checkpoint(page: Page, checkpoint: CheckpointResult, style: Style) -> None:
    facts = [checkpoint.format, *([checkpoint.producer] if checkpoint.producer else [])]
    if checkpoint.evidence:
        layers = checkpoint.batch_norm_layers
        facts += [count(checkpoint.variables, "variable"), size(checkpoint.bytes)]
        facts.append(count(len(layers), "batch-norm layer") if layers else "no batch-norm layers")
    else:
        facts += [size(checkpoint.bytes), "not readable"]
    healthy = not checkpoint.findings and not checkpoint.not_judged
    if not healthy:
        page.blank()
    verdict, color = ("ok  ", "green") if healthy else ("", "bold")
    page.paragraph(f"{verdict}{checkpoint.path}", hanging=_INDENT, color=color)
    page.paragraph(", ".join(facts), indent=_INDENT, hanging=2)
    listed: set[tuple[str, ...]] = set()
    for group in _causes_near(_groups(checkpoint.findings)):
        _group(page, group, style, again=group.layers in listed)
        listed.add(group.layers)
    if checkpoint.not_judged:
        _not_judged(page, checkpoint, style)
    _next_step(page, checkpoint)
    if checkpoint.findings or checkpoint.not_judged:
        page.blank()


@dataclass(frozen=True)
class _Group:
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


def _groups(findings: Sequence[Finding]) -> list[_Group]:
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
    return [_Group(tuple(kinds), _layers(kinds[0])) for kinds in groups.values()]


def _causes_near(groups: Sequence[_Group]) -> list[_Group]:
    """Return `groups` in their order, but what explains a group directly after the last one that it explains."""
    ordered = [group for group in groups if not _explains(group, groups)]
    for group in groups:
        explained = [i for i, other in enumerate(ordered) if other.cause == group.kinds[0][0].rule]
        if group not in ordered:
            ordered.insert(explained[-1] + 1 if explained else len(ordered), group)
    return ordered


def _explains(group: _Group, groups: Sequence[_Group]) -> bool:
    return any(other.cause == group.kinds[0][0].rule for other in groups)


def _shape(finding: Finding) -> str:
    """Return the message with what differs from layer to layer taken out."""
    message = finding.message
    for name in sorted({*finding.layers, *finding.variables}, key=len, reverse=True):
        message = message.replace(name, "*")
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", message)


def _layers(kind: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for finding in kind for layer in finding.layers))


def _group(page: Page, group: _Group, style: Style, *, again: bool) -> None:
    first = group.kinds[0][0]
    sure = "" if first.certainty == "proven" else f" ({first.certainty})"
    rules = ", ".join(f"{kind[0].rule} {kind[0].name}" for kind in group.kinds)
    whom = f": {count(len(group.layers), 'layer')}" if group.layers else ""
    page.blank()
    page.paragraph(f"{first.severity}{sure}  {rules}{whom}", indent=2, hanging=2, color=_COLORS[first.severity])
    for kind in group.kinds:
        page.paragraph(_message(kind), indent=_INDENT)
    if group.layers:
        listed = "the same" if again else names(group.layers, style)
        page.paragraph(f"layers: {listed}", indent=_INDENT, hanging=2)
    if group.cause:
        page.paragraph(f"cause: {group.cause}, below", indent=_INDENT)


def _message(kind: Sequence[Finding]) -> str:
    """Return what findings of one shape say: once, with the layer left open, or the first as an example."""
    if len(kind) == 1:
        return kind[0].message
    general = {finding.message.replace(finding.layer or "\0", "…") for finding in kind}
    return general.pop() if len(general) == 1 else f"for example: {kind[0].message}"


def _not_judged(page: Page, checkpoint: CheckpointResult, style: Style) -> None:
    page.blank()
    page.paragraph(f"not judged: {count(len(checkpoint.not_judged), 'place')}", indent=2, color="magenta")
    reasons: dict[str, list[str]] = {}
    for place in checkpoint.not_judged:
        reasons.setdefault(place.reason, []).append(place.where)
    shown = list(reasons) if style.detail == "more" else list(reasons)[:_REASONS_SHOWN]
    for reason in shown:
        page.paragraph(f"{names(reasons[reason], style)}: {reason}", indent=_INDENT, hanging=2)
    if len(shown) < len(reasons):
        page.paragraph(f"and {count(len(reasons) - len(shown), 'more reason')}; -v shows all", indent=_INDENT)


def _next_step(page: Page, checkpoint: CheckpointResult) -> None:
    """Add the command that repairs what can be repaired."""
    repairable = [finding for finding in checkpoint.findings if finding.repair != "none"]
    damaged = any(finding.rule.startswith("CK") and finding.severity == "error" for finding in checkpoint.findings)
    if not repairable or damaged:  # A repair reads every byte: what is damaged must be whole again first.
        return
    options = []
    if any(finding.repair == "estimate" for finding in repairable):
        if not {"graph", "config"} & set(checkpoint.evidence):
            options.append("--model MODEL")
        options.append("--data DATA.npz")
    if all(finding.certainty == "unproven" for finding in repairable):
        options.append("--unproven")
    options.append(f"--output {shlex.quote(repaired_name(checkpoint))}")
    page.blank()
    page.paragraph("what to do", indent=2, color="bold")
    page.line(f"    ckpt-doctor fix {shlex.quote(checkpoint.path)} \\")
    page.line("        " + " \\\n        ".join(options))
    if "--data DATA.npz" in options:
        page.paragraph("DATA.npz: inputs like those it was trained on, as arrays; no labels needed", indent=_INDENT)
    if "--model MODEL" in options:
        page.paragraph(
            "MODEL: its .meta, SavedModel or Keras config, or FILE.py:FUNCTION that builds it", indent=_INDENT
        )


def repaired_name(checkpoint: CheckpointResult) -> str:
    """Return a name for the repaired checkpoint beside the broken one; a file keeps its extension."""
    path = PurePosixPath(checkpoint.path)
    if checkpoint.format.startswith("keras-"):
        extension = "".join(path.suffixes[-2:]) if path.name.endswith((".weights.h5", ".weights.json")) else path.suffix
        return f"{checkpoint.path.removesuffix(extension)}-repaired{extension}"
    return f"{checkpoint.path.rstrip('/')}-repaired"


def _total(summary: Summary, failed: int) -> str:
    found = ", ".join(
        count(number, noun)
        for number, noun in ((summary.error, "error"), (summary.warning, "warning"), (summary.note, "note"))
        if number
    )
    text = f"{count(summary.checkpoints, 'checkpoint')}, {count(summary.batch_norm_layers, 'batch-norm layer')}: "
    text += found or "nothing found"
    if summary.not_judged:
        text += f"; {count(summary.not_judged, 'place')} not judged"
    if failed:
        text += f"; no verdict on {count(failed, 'path')}"
    return text
