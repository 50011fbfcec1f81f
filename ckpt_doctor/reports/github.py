"""Annotations of GitHub Actions: one line a rule and checkpoint, shown beside the run and the changed files.

GitHub shows the first ten errors, warnings and notices of a step, so findings of many layers are one annotation. The
command line writes the Markdown report to the summary of the step, which has room for all.

Source: docs.github.com, Workflow commands for GitHub Actions (`::error file=…,title=…::message`, and what to escape).
"""

from __future__ import annotations

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.finding import SEVERITIES
from ckpt_doctor.reports._groups import grouped, message_of
from ckpt_doctor.reports._location import file_of, relative
from ckpt_doctor.reports._page import count, visible
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import looked_at, total
from ckpt_doctor.result import AuditResult

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def render(result: AuditResult, style: Style) -> str:
    """Return the annotations, the worst first, and the count as the last line of the log."""
    lines = [_annotation("error", "no verdict", relative(e.path, style.root), e.message) for e in result.errors]
    groups = [(checkpoint, group) for checkpoint in result.checkpoints for group in grouped(checkpoint.findings)]
    for severity in SEVERITIES:
        for checkpoint, group in groups:
            first = group.kinds[0][0]
            if first.severity != severity:
                continue
            for kind in group.kinds:
                whom = f": {count(len(group.layers), 'layer')}" if len(group.layers) > 1 else ""
                title = f"{kind[0].rule} {kind[0].name}{whom}"
                message = f"{relative(checkpoint.path, style.root)}: {message_of(kind)}"
                lines.append(_annotation(_COMMANDS[severity], title, file_of(checkpoint, style.root), message))
    lines += [
        _annotation("warning", "suppression no longer needed", "", f"{one.by} {one.where}: {one.rule} of {one.path}")
        for one in result.unused_suppressions
    ]
    # One for each kind: a warning where a model may be in it, as GitHub shows ten of a level.
    lines += [
        _annotation(
            "warning",
            "not opened",
            relative(one.paths[0], style.root),
            f"{KINDS[one.kind].counted(len(one.paths))}: {one.reason}",
        )
        for one in result.coverage.unopened
        if one.paths
    ]
    return "".join(
        f"{line}\n"
        for line in [*lines, *([_safe(looked_at(result))] if result.coverage.files else []), _safe(total(result))]
    )


def _annotation(command: str, title: str, file: str, message: str) -> str:
    properties = [("title", title), *([("file", file)] if file and "://" not in file else [])]
    written = ",".join(f"{name}={_property(value)}" for name, value in properties)
    return f"::{command} {written}::{_data(message)}"


def _data(text: str) -> str:
    # The old form of a command, `##[error]`, counts anywhere in a line.
    return visible(text).replace("##[", "# #[").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _safe(text: str) -> str:
    # A line that starts with `::` would be a command.
    return visible(text).lstrip(":")
