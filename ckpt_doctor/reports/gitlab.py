"""GitLab Code Quality, what a merge request shows beside the files it changes.

Suppressed findings are left out: the format has no word for them.

Source: docs.gitlab.com, Code Quality, "Code Quality report format".
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.finding import fingerprint
from ckpt_doctor.reports._location import file_of, relative, unicode_only
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult

_SEVERITIES = {"error": "critical", "warning": "minor", "note": "info"}


def render(result: AuditResult, style: Style) -> str:
    """Return the array of issues."""
    issues: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for checkpoint in result.checkpoints:
        file = file_of(checkpoint, style.root)
        for finding in checkpoint.findings:
            mark = fingerprint(relative(checkpoint.path, style.root), finding)
            seen[mark] = seen.get(mark, 0) + 1
            if seen[mark] > 1:  # GitLab shows one issue a fingerprint, and drops the others.
                mark = hashlib.sha256(f"{mark} {seen[mark]}".encode()).hexdigest()
            issues.append(
                _issue(f"{finding.rule} {finding.name}", finding.message, file, _SEVERITIES[finding.severity], mark)
            )
    for error in result.errors:
        mark = hashlib.sha256(f"no-verdict {error.path}".encode("utf-8", "surrogatepass")).hexdigest()
        issues.append(
            _issue("no-verdict", f"no verdict: {error.message}", relative(error.path, style.root), "blocker", mark)
        )
    for one in result.coverage.unopened:
        for path in one.paths:
            file = relative(path, style.root)
            mark = hashlib.sha256(f"not-opened {file}".encode("utf-8", "surrogatepass")).hexdigest()
            issues.append(_issue("not-opened", f"{KINDS[one.kind].noun} not opened: {one.reason}", file, "info", mark))
    return json.dumps(unicode_only(issues), indent=2) + "\n"


def _issue(check: str, description: str, file: str, severity: str, mark: str) -> dict[str, Any]:
    return {
        "check_name": check,
        "description": description,
        "fingerprint": mark,
        "severity": severity,
        "location": {"path": file, "lines": {"begin": 1}},
    }
