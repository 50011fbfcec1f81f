"""The report of a scan for people.

Findings are grouped: rules that concern the same layers for the same reason stand together, whatever the number of
layers, and the exact command that repairs them stands below.
"""

from __future__ import annotations

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.reports._groups import Group, cause_of, grouped, message_of
from ckpt_doctor.reports._next_step import next_step
from ckpt_doctor.reports._page import Page, count, names, size
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, CheckpointResult

_COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_INDENT = 4
_REASONS_SHOWN = 5


def render(result: AuditResult, style: Style) -> str:
    """Return the report; where nothing was scanned, only what was passed over."""
    page = Page(style)
    for checkpoint in result.checkpoints:
        if style.detail != "less" or checkpoint.findings or checkpoint.not_judged:
            _checkpoint(page, checkpoint, style)
    if not result.checkpoints:
        _coverage(page, result, style)
        return str(page)
    page.blank()
    if result.passed_over:
        page.paragraph(f"{count(result.passed_over, 'older checkpoint')} passed over; --all scans them too")
    _unused(page, result, style)
    _coverage(page, result, style)
    page.paragraph(total(result), color="bold")
    return str(page)


def _checkpoint(page: Page, checkpoint: CheckpointResult, style: Style) -> None:
    healthy = not checkpoint.findings and not checkpoint.not_judged
    if not healthy:
        page.blank()
    verdict, color = ("ok  ", "green") if healthy else ("", "bold")
    page.paragraph(f"{verdict}{checkpoint.path}", hanging=_INDENT, color=color)
    page.items(facts(checkpoint), indent=_INDENT)
    listed: set[tuple[str, ...]] = set()
    for group in grouped(checkpoint.findings):
        _group(page, group, style, cause_of(group, checkpoint.findings), again=group.layers in listed)
        listed.add(group.layers)
    if checkpoint.not_judged:
        _not_judged(page, checkpoint, style)
    if checkpoint.suppressed and style.detail == "more":
        _suppressed(page, checkpoint)
    _next_step(page, checkpoint)
    if checkpoint.findings or checkpoint.not_judged:
        page.blank()


def _group(page: Page, group: Group, style: Style, cause: str | None, *, again: bool) -> None:
    first = group.kinds[0][0]
    sure = "" if first.certainty == "proven" else f" ({first.certainty})"
    rules = ", ".join(f"{kind[0].rule} {kind[0].name}" for kind in group.kinds)
    whom = f": {count(len(group.layers), 'layer')}" if group.layers else ""
    page.blank()
    page.paragraph(f"{first.severity}{sure}  {rules}{whom}", indent=2, hanging=2, color=_COLORS[first.severity])
    for kind in group.kinds:
        page.paragraph(message_of(kind), indent=_INDENT)
    if len(group.layers) > 1 or (group.layers and group.layers[0] not in first.message):
        listed = "same as above" if again else names(group.layers, style)
        page.paragraph(f"layers: {listed}", indent=_INDENT, hanging=2)
    if cause:
        page.paragraph(f"cause: {cause}", indent=_INDENT)


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


def facts(checkpoint: CheckpointResult) -> list[str]:
    """Return what kind of checkpoint it is, in a few words each."""
    known = [checkpoint.format, *([checkpoint.producer] if checkpoint.producer else [])]
    if not checkpoint.evidence:
        return [*known, size(checkpoint.bytes), "not readable"]
    layers = checkpoint.batch_norm_layers
    known += [count(checkpoint.variables, "variable"), size(checkpoint.bytes)]
    known.append(count(len(layers), "batch-norm layer") if layers else "no batch-norm layers")
    return known


def _suppressed(page: Page, checkpoint: CheckpointResult) -> None:
    page.blank()
    page.paragraph(f"suppressed: {count(len(checkpoint.suppressed), 'finding')}", indent=2, color="dim")
    for one in checkpoint.suppressed:
        whom = f" {one.finding.layer}" if one.finding.layer else ""
        page.paragraph(
            f"{one.finding.rule} {one.finding.name}{whom} ({one.by}: {one.where})", indent=_INDENT, hanging=2
        )


def _unused(page: Page, result: AuditResult, style: Style) -> None:
    """Add the suppressions that would only hide what comes next."""
    places: dict[tuple[str, str], list[str]] = {}
    for unused in result.unused_suppressions:
        what = unused.rule if unused.by == "per-path-ignores" else f"{unused.path}: {unused.rule}"
        places.setdefault((unused.by, unused.where), []).append(what + (f" {unused.layer}" if unused.layer else ""))
    for (by, where), all_whats in places.items():
        whats = all_whats if style.detail == "more" else all_whats[:_REASONS_SHOWN]
        rest = f" and {len(all_whats) - len(whats)} more" if len(whats) < len(all_whats) else ""
        page.paragraph(
            f"no longer needed in {by} {where}: {'; '.join(whats)}{rest}", hanging=2, color=_COLORS["warning"]
        )


def _coverage(page: Page, result: AuditResult, style: Style) -> None:
    """Add what was looked at and passed over; in detail each path with its reason."""
    coverage = result.coverage
    if not coverage.files and not coverage.passed_over:
        return
    if style.detail == "more":
        for one in coverage.passed_over:
            if one.paths:
                page.paragraph(f"passed over: {', '.join(one.paths)}: {one.reason}", hanging=2)
    if style.detail == "usual" and any(one.paths and one.kind != "older" for one in coverage.passed_over):
        page.paragraph(f"{looked_at(result)} (-v lists them)", hanging=2)
    elif style.detail != "less" or coverage.unopened or not result.checkpoints:
        page.paragraph(looked_at(result), hanging=2)


def _next_step(page: Page, checkpoint: CheckpointResult) -> None:
    """Add the command that repairs what can be repaired."""
    step = next_step(checkpoint)
    if step is None:
        return
    page.blank()
    page.paragraph("what to do", indent=2, color="bold")
    for line in step.lines:
        page.line(f"    {line}")
    for remark in step.remarks:
        page.paragraph(remark, indent=_INDENT)


def looked_at(result: AuditResult) -> str:
    """Return how many files were looked at and what was passed over, in one line."""
    coverage = result.coverage
    text = f"looked at {count(coverage.judged + coverage.parts, 'file')}"
    if coverage.links_out:
        text += f", {coverage.links_out:,} of them through links that lead out of the folder"
    numbers: dict[str, int] = {}
    for one in coverage.passed_over:
        numbers[one.kind] = numbers.get(one.kind, 0) + one.files + one.folders
    passed = [KINDS[kind].counted(number) for kind, number in numbers.items()]
    return f"{text}; passed over: {', '.join(passed)}" if passed else f"{text}; passed over nothing"


def total(result: AuditResult) -> str:
    """Return how much was scanned and what was found, in one line."""
    summary = result.summary
    found = ", ".join(
        count(number, noun)
        for number, noun in ((summary.error, "error"), (summary.warning, "warning"), (summary.note, "note"))
        if number
    )
    text = f"{count(summary.checkpoints, 'checkpoint')}, {count(summary.batch_norm_layers, 'batch-norm layer')}: "
    unchecked = f"{count(len(result.errors), 'path')} could not be checked" if result.errors else ""
    elsewhere = f"{unchecked}; no findings elsewhere" if result.checkpoints else unchecked
    text += found or (elsewhere if unchecked else "nothing found")
    if summary.suppressed:
        text += f"; {summary.suppressed:,} suppressed"
    if summary.not_judged:
        text += f"; {count(summary.not_judged, 'place')} not judged"
    if found and unchecked:
        text += f"; {unchecked}"
    return text
