"""SARIF 2.1.0, what GitHub's code scanning and many viewers read.

Every rule with its help; every finding with its severity as the user has set it, suppressed ones with their
justification; what gave no verdict or was not judged as a notification of the run. No library is used: those for
Python hold the same fields as dictionaries do, and none checks them; the tests check against the published schema.

Source: OASIS, Static Analysis Results Interchange Format 2.1.0, sections 3.19 (tool component), 3.20 (invocation),
3.27 (result), 3.35 (suppression), 3.49 (reporting descriptor).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ckpt_doctor
from ckpt_doctor.coverage import KINDS
from ckpt_doctor.finding import Finding, fingerprint
from ckpt_doctor.reports._explanation import Explanation, explanations, markdown, plain
from ckpt_doctor.reports._location import file_of, relative, unicode_only, uri
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import looked_at
from ckpt_doctor.result import AuditResult, CheckpointResult, PathError, SuppressedFinding

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "%SRCROOT%"
# The names of certainty that code scanning knows.
_PRECISION = {"proven": "very-high", "likely": "high", "unproven": "medium"}


def render(result: AuditResult, style: Style) -> str:
    """Return the log: one run."""
    rules = explanations(result.rules)
    index = {rule.code: number for number, rule in enumerate(rules)}
    run = {
        "tool": {
            "driver": {
                "name": "ckpt-doctor",
                "semanticVersion": ckpt_doctor.__version__,
                "informationUri": "https://github.com/ckpt-doctor/ckpt-doctor",
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not result.errors,
                "toolExecutionNotifications": list(_notifications(result, style.root)),
                "properties": {"coverage": _coverage(result)},
            }
        ],
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The folder that the scan was started in."}}},
        "columnKind": "unicodeCodePoints",
        "results": [one for checkpoint in result.checkpoints for one in _results(checkpoint, index, style.root)],
    }
    return json.dumps(unicode_only({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}), indent=2) + "\n"


def _rule(rule: Explanation) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": next((b.text for b in rule.blocks if not b.code), rule.summary)},
        "help": {"text": plain(rule) or rule.summary, "markdown": markdown(rule) or rule.summary},
        "helpUri": rule.link,
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"tags": ["batch-norm" if rule.code.startswith("BN") else "container"], "repair": rule.repair},
    }


def _results(checkpoint: CheckpointResult, index: dict[str, int], root: str) -> Iterator[dict[str, Any]]:
    for finding in checkpoint.findings:
        yield _result(checkpoint, finding, index, root)
    for one in checkpoint.suppressed:
        yield _result(checkpoint, one.finding, index, root) | {"suppressions": [_suppression(one)]}


def _result(checkpoint: CheckpointResult, finding: Finding, index: dict[str, int], root: str) -> dict[str, Any]:
    file = file_of(checkpoint, root)
    where = {
        "physicalLocation": _place(file),
        "logicalLocations": [
            {"name": name.rpartition("/")[2] or name, "fullyQualifiedName": name, "kind": "resource"}
            for name in finding.layers
        ],
    }
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "level": finding.severity,
        "message": {"text": finding.message},
        "locations": [where],
        "partialFingerprints": {"finding/v1": fingerprint(relative(checkpoint.path, root), finding)},
        "properties": {
            "checkpoint": relative(checkpoint.path, root),
            "certainty": finding.certainty,
            "precision": _PRECISION[finding.certainty],
            "repair": finding.repair,
            "cause": finding.cause,
            "variables": list(finding.variables),
        },
    }
    if finding.rule in index:
        result["ruleIndex"] = index[finding.rule]
    return result


def _suppression(one: SuppressedFinding) -> dict[str, Any]:
    return {"kind": "external", "status": "accepted", "justification": f"{one.by}: {one.where}"}


def _notifications(result: AuditResult, root: str) -> Iterator[dict[str, Any]]:
    for error in result.errors:
        yield _notification("error", error, root)
    for checkpoint in result.checkpoints:
        for place in checkpoint.not_judged:
            message = f"not judged: {place.where}: {place.reason}"
            yield _notification("note", PathError(file_of(checkpoint, root), message), root)
    if result.coverage.files:
        yield {"level": "note", "message": {"text": looked_at(result)}}
    for one in result.coverage.unopened:
        for path in one.paths:
            message = f"not opened: {KINDS[one.kind].noun}: {one.reason}"
            yield _notification("warning", PathError(path, message), root)
    for unused in result.unused_suppressions:
        whom = f"{unused.path} {unused.layer}" if unused.layer else unused.path
        yield _notification(
            "warning",
            PathError(unused.where if unused.by == "baseline" else "", f"no longer needed: {unused.rule} of {whom}"),
            root,
        )


def _coverage(result: AuditResult) -> dict[str, Any]:
    """Return the books of the scan; the paths of what may hold a model are notifications."""
    books = result.coverage
    numbers = {"files": books.files, "judged": books.judged, "parts": books.parts, "folders": books.folders}
    passed = [
        {"kind": one.kind, "reason": one.reason, "unopened": one.unopened, "files": one.files, "folders": one.folders}
        for one in books.passed_over
    ]
    return {**numbers, "linksOut": books.links_out, "passedOver": passed}


def _notification(level: str, error: PathError, root: str) -> dict[str, Any]:
    found: dict[str, Any] = {"level": level, "message": {"text": error.message}}
    if error.path:
        found["locations"] = [{"physicalLocation": _place(relative(error.path, root))}]
    return found


def _place(file: str) -> dict[str, Any]:
    location = {"uri": uri(file)}
    if "://" not in location["uri"]:
        location["uriBaseId"] = _ROOT
    # Code scanning shows only results with a line, and a checkpoint has none.
    return {"artifactLocation": location, "region": {"startLine": 1}}
