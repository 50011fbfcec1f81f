"""The reports of a scan: result in, string out. To add one, write its file and its line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ckpt_doctor.reports.interface import Report, Style
from ckpt_doctor.result import AuditResult


def _report(module: str) -> Report:
    """Return the report of a module, which loads when it is first wanted: `--help` names all and needs none."""

    def render(result: AuditResult, style: Style) -> str:
        loaded: Report = importlib.import_module(f"ckpt_doctor.reports.{module}").render
        return loaded(result, style)

    return render


REPORTS: Mapping[str, Report] = {
    "text": _report("text"),
    "json": _report("json"),
    "sarif": _report("sarif"),
    "junit": _report("junit"),
    "github": _report("github"),
    "gitlab": _report("gitlab"),
    "markdown": _report("markdown"),
    "html": _report("html"),
}
