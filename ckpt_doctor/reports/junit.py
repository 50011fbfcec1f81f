"""JUnit XML, what Jenkins, GitLab, Azure and most CI systems show as tests.

A checkpoint is a suite, and a rule a case in it, so that a CI system can say since when it fails. A case fails where a
finding is severe enough to fail the run (`--fail-on`); what is less severe is said in its output. The standard
library writes the XML: it escapes what must be, and a library would add a dependency for four elements.

Source: the schema of Jenkins' xUnit plugin, junit-10.xsd; https://github.com/testmoapp/junitxml.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.finding import Finding
from ckpt_doctor.reports._explanation import Explanation, explanations
from ckpt_doctor.reports._page import count, visible
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import looked_at
from ckpt_doctor.result import AuditResult, CheckpointResult, PathError

_NOT_RUN = {"data": "not run: it compares with data, and --data names none", "every value": "not run: --quick"}


def render(result: AuditResult, style: Style) -> str:
    """Return the document."""
    suites = ET.Element("testsuites", name="ckpt-doctor")
    rules = explanations(result.rules)
    for checkpoint in result.checkpoints:
        _suite(suites, checkpoint, rules, style)
    for error in result.errors:
        _error(suites, error)
    _coverage(suites, result)
    for counted in ("tests", "failures", "errors", "skipped"):
        suites.set(counted, str(sum(int(suite.get(counted, "0")) for suite in suites)))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _suite(suites: ET.Element, checkpoint: CheckpointResult, rules: Sequence[Explanation], style: Style) -> None:
    suite = ET.SubElement(suites, "testsuite", name=visible(checkpoint.path))
    failures = skipped = 0
    for rule in rules:
        case = ET.SubElement(
            suite, "testcase", name=f"{rule.code} {rule.name}", classname=visible(checkpoint.path), time="0"
        )
        findings = [finding for finding in checkpoint.findings if finding.rule == rule.code]
        failing = [finding for finding in findings if finding.severity in style.failing]
        suppressed = [one for one in checkpoint.suppressed if one.finding.rule == rule.code]
        if failing:
            failures += 1
            failure = ET.SubElement(case, "failure", type=failing[0].severity, message=_summary(failing))
            failure.text = _lines(failing)
        elif suppressed and not findings:
            skipped += 1
            ET.SubElement(case, "skipped", message=visible(f"suppressed by {suppressed[0].by}: {suppressed[0].where}"))
        elif rule.code in checkpoint.not_run and not findings:
            skipped += 1
            ET.SubElement(case, "skipped", message=_NOT_RUN[rule.needs])
        quiet = [finding for finding in findings if finding not in failing]
        quiet += [one.finding for one in suppressed]
        if quiet:
            ET.SubElement(case, "system-out").text = _lines(quiet)
    for place in checkpoint.not_judged:
        skipped += 1
        case = ET.SubElement(
            suite, "testcase", name=visible(f"judged: {place.where}"), classname=visible(checkpoint.path), time="0"
        )
        ET.SubElement(case, "skipped", message=visible(f"not judged: {place.reason}"))
    _count(suite, tests=len(suite), failures=failures, errors=0, skipped=skipped)


def _error(suites: ET.Element, error: PathError) -> None:
    suite = ET.SubElement(suites, "testsuite", name=visible(error.path))
    case = ET.SubElement(suite, "testcase", name="verdict", classname=visible(error.path), time="0")
    ET.SubElement(case, "error", type="no-verdict", message=visible(error.message))
    _count(suite, tests=1, failures=0, errors=1, skipped=0)


def _coverage(suites: ET.Element, result: AuditResult) -> None:
    """Add what was passed over; what may hold a model is a case that was skipped."""
    if not result.coverage.files:
        return
    suite = ET.SubElement(suites, "testsuite", name="coverage")
    case = ET.SubElement(suite, "testcase", name="looked at", classname="coverage", time="0")
    ET.SubElement(case, "system-out").text = visible(looked_at(result))
    skipped = 0
    for one in result.coverage.unopened:
        for path in one.paths:
            skipped += 1
            case = ET.SubElement(suite, "testcase", name=visible(f"opened: {path}"), classname="coverage", time="0")
            ET.SubElement(case, "skipped", message=visible(f"{KINDS[one.kind].noun}: {one.reason}"))
    _count(suite, tests=1 + skipped, failures=0, errors=0, skipped=skipped)


def _count(suite: ET.Element, **counts: int) -> None:
    for name, number in counts.items():
        suite.set(name, str(number))
    suite.set("time", "0")


def _summary(findings: Sequence[Finding]) -> str:
    layers = {layer for finding in findings for layer in finding.layers}
    if len(findings) == 1:
        return visible(findings[0].message)
    return f"{count(len(layers), 'layer')}: {visible(findings[0].message)}, and {len(findings) - 1} more"


def _lines(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{finding.severity}: {visible(finding.message)}" for finding in findings)
