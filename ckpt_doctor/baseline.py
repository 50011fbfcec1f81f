"""The baseline: the findings that a team has seen and lives with, so that only new ones fail the gate.

A JSON file (`ckpt-doctor/baseline/1`) to be kept beside the code. It holds the fingerprint of each finding; path, rule
and message stand beside it for whoever reviews the file. Paths are relative to the file's folder, so that it holds in
every clone. A checkpoint of another name is another checkpoint: what is wrong with it is new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import Finding, fingerprint
from ckpt_doctor.result import AuditResult

_SCHEMA = "ckpt-doctor/baseline/1"


@dataclass(frozen=True)
class Entry:
    """One finding of the baseline.

    Attributes:
        path: The checkpoint, relative to the baseline's folder; a URL as it is.
        rule: The code of the rule.
        layer: The layer, or None for a finding about the checkpoint.
        fingerprint: What identifies the finding.
    """

    path: str
    rule: str
    layer: str | None
    fingerprint: str


@dataclass(frozen=True)
class Baseline:
    """A baseline file.

    Attributes:
        file: Its path, as given.
        entries: Its findings.
    """

    file: str
    entries: tuple[Entry, ...]

    def fingerprint(self, path: str, finding: Finding) -> str:
        """Return the fingerprint that an entry of this file for `finding` of the checkpoint at `path` would have."""
        return fingerprint(relative(path, self.file), finding)

    def path_of(self, entry: Entry) -> str:
        """Return the path of an entry as it is to be opened from the working folder."""
        return entry.path if "://" in entry.path else str(Path(self.file).parent / entry.path)


def read(file: str | Path) -> Baseline:
    """Return the baseline in `file`.

    Raises:
        BadRequest: It is not there, or is no baseline.
    """

    def refuse(reason: str) -> BadRequest:
        return BadRequest(f"{file}: is not a baseline of ckpt-doctor ({reason})")

    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"{file}: does not exist; `scan … --write-baseline {file}` creates it") from None
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError.
        raise refuse(f"{type(error).__name__}: {error}") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise refuse("expected a JSON object with a schema")
    if document["schema"] != _SCHEMA:
        raise BadRequest(f"{file}: is a {document['schema']}, not a {_SCHEMA}")
    rows = document.get("findings")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise refuse("expected a list of findings")
    absent = next((key for row in rows for key in ("path", "rule", "layer", "fingerprint") if key not in row), None)
    if absent is not None:
        raise refuse(f"a finding without {absent!r}")
    return Baseline(str(file), tuple(map(_entry, rows)))


def render(result: AuditResult, file: str | Path) -> str:
    """Return the text of a baseline at `file` that holds every finding of `result`, in a steady order."""
    rows = sorted(_rows(result, str(file)), key=lambda row: (row["path"], row["rule"], row["layer"] or ""))
    return json.dumps({"schema": _SCHEMA, "findings": rows}, indent=2) + "\n"


def relative(path: str, file: str) -> str:
    """Return `path` relative to the folder of `file`, with forward slashes; a URL as it is."""
    if "://" in path:
        return path
    return Path(os.path.relpath(path, Path(file).parent)).as_posix()


def _rows(result: AuditResult, file: str) -> Iterator[dict[str, Any]]:
    for checkpoint in result.checkpoints:
        path = relative(checkpoint.path, file)
        for finding in (*checkpoint.findings, *(one.finding for one in checkpoint.suppressed if one.by == "baseline")):
            yield {
                "path": path,
                "rule": finding.rule,
                "layer": finding.layer,
                "message": finding.message,
                "fingerprint": fingerprint(path, finding),
            }


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(str(row["path"]), str(row["rule"]), row["layer"], str(row["fingerprint"]))
