"""Markdown for merge requests, wikis and the summary of a GitHub step: a table of checkpoints, then what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.reports._explanation import DOCUMENTATION
from ckpt_doctor.reports._groups import Group, cause_of, grouped, message_of
from ckpt_doctor.reports._next_step import next_step
from ckpt_doctor.reports._page import count, visible
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import looked_at, total
from ckpt_doctor.result import AuditResult, CheckpointResult

_LAYERS_SHOWN = 8
_ROWS_SHOWN = 50
_SIGNS = {"error": "❌", "warning": "⚠️", "note": "🛈"}


def render(result: AuditResult, style: Style) -> str:
    """Return the report."""
    lines = ["## ckpt-doctor", "", _escape(total(result)), ""]
    if result.coverage.files:
        lines += [_escape(looked_at(result)), ""]
    if result.checkpoints:
        lines += _overview(result.checkpoints, style)
    for checkpoint in result.checkpoints:
        if checkpoint.findings or checkpoint.not_judged:
            lines += _checkpoint(checkpoint, style)
    if result.errors:
        lines += ["### No verdict", ""]
        lines += [f"- {_code(error.path)}: {_escape(error.message)}" for error in result.errors] + [""]
    lines += _not_opened(result, style)
    if result.unused_suppressions:
        lines += ["### Suppressions that are no longer needed", ""]
        for unused in result.unused_suppressions:
            whom = f" {_code(unused.layer)}" if unused.layer else ""
            lines.append(f"- {unused.by} {_code(unused.where)}: {unused.rule} of {_code(unused.path)}{whom}")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _not_opened(result: AuditResult, style: Style) -> Iterator[str]:
    """Yield what may hold a model and was not opened."""
    if result.coverage.unopened:
        yield "### Not opened"
        yield ""
    for one in result.coverage.unopened:
        shown = one.paths if style.detail == "more" else one.paths[:_LAYERS_SHOWN]
        more = f" and {len(one.paths) - len(shown)} more" if len(shown) < len(one.paths) else ""
        number = KINDS[one.kind].counted(one.files + one.folders)
        yield f"- {number}: {', '.join(_code(path) for path in shown)}{more}: {_escape(one.reason)}"
    if result.coverage.unopened:
        yield ""


def _overview(checkpoints: Sequence[CheckpointResult], style: Style) -> Iterator[str]:
    # The sick ones first: a summary is cut off at its end.
    ordered = sorted(checkpoints, key=lambda one: _rank(one))
    shown = ordered if style.detail == "more" else ordered[:_ROWS_SHOWN]
    yield "| | checkpoint | batch-norm layers | errors | warnings | notes | suppressed | not judged |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for one in shown:
        counts = [sum(f.severity == severity for f in one.findings) for severity in ("error", "warning", "note")]
        worst = one.findings[0].severity if one.findings else None
        sign = _SIGNS[worst] if worst else "❔" if one.not_judged else "✅"
        cells = [len(one.batch_norm_layers), *counts, len(one.suppressed), len(one.not_judged)]
        yield f"| {sign} | {_code(one.path)} | {' | '.join(str(cell) for cell in cells)} |"
    if len(shown) < len(ordered):
        yield f"| | and {len(ordered) - len(shown)} more | | | | | | |"
    yield ""


def _rank(checkpoint: CheckpointResult) -> int:
    worst = checkpoint.findings[0].severity if checkpoint.findings else "none"
    return ["error", "warning", "note", "none"].index(worst)


def _checkpoint(checkpoint: CheckpointResult, style: Style) -> Iterator[str]:
    yield f"### {_code(checkpoint.path)}"
    yield ""
    for group in grouped(checkpoint.findings):
        yield from _group(group, style, cause_of(group, checkpoint.findings))
    for place in checkpoint.not_judged[: None if style.detail == "more" else _LAYERS_SHOWN]:
        yield f"- not judged: {_code(place.where)}: {_escape(place.reason)}"
    hidden = len(checkpoint.not_judged) - _LAYERS_SHOWN
    if style.detail != "more" and hidden > 0:
        yield f"- and {count(hidden, 'place')} more"
    yield ""
    step = next_step(checkpoint)
    if step is not None:
        yield "```sh"
        yield from step.lines
        yield "```"
        yield ""
        for remark in step.remarks:
            yield _escape(remark)
            yield ""


def _group(group: Group, style: Style, cause: str | None) -> Iterator[str]:
    first = group.kinds[0][0]
    rules = ", ".join(
        f"[{kind[0].rule}]({DOCUMENTATION}#{kind[0].rule.lower()}) {kind[0].name}" for kind in group.kinds
    )
    sure = "" if first.certainty == "proven" else f" ({first.certainty})"
    yield f"- {_SIGNS[first.severity]} **{first.severity}**{sure} {rules}"
    for kind in group.kinds:
        yield f"  <br>{_escape(message_of(kind))}"
    if len(group.layers) > 1:
        listed = group.layers if style.detail == "more" else group.layers[:_LAYERS_SHOWN]
        more = f" and {len(group.layers) - len(listed)} more" if len(listed) < len(group.layers) else ""
        yield f"  <br>{count(len(group.layers), 'layer')}: {', '.join(_code(name) for name in listed)}{more}"
    if cause:
        yield f"  <br>cause: {cause}"


def _code(text: str) -> str:
    """Return `text` as code: with a fence longer than any in it, and nothing that ends a cell of a table."""
    text = visible(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _escape(text: str) -> str:
    """Return `text` with what Markdown, HTML and mentions would make something of taken literally."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", visible(text)).replace("\\<", "&lt;")
    return escaped.replace("@", "`@`")  # Mentions are looked for in what is rendered; there only code is safe.
