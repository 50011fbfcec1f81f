"""One thing that is wrong with a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
Certainty = Literal["proven", "likely", "unproven"]
Repair = Literal["estimate", "copy", "debias", "initial", "none"]

# The order in which people want to read them.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What a rule found; the same fields as in the JSON report.

    Attributes:
        rule: The rule's code, `BN101`.
        name: The rule's name, `missing-moving-mean`.
        severity: How bad it is.
        certainty: Whether it is proven, or only looks so.
        layer: The batch-norm layer that it is about; None for a finding about the checkpoint.
        layers: Every layer that it concerns.
        variables: The names of the variables that it concerns, as they are or would be in the file.
        message: What was seen, in numbers, and what to do next.
        cause: The code of the rule whose finding explains this one, or None.
        repair: What `fix` can do about it.
    """

    rule: str
    name: str
    severity: Severity
    certainty: Certainty
    layer: str | None
    layers: tuple[str, ...]
    variables: tuple[str, ...]
    message: str
    cause: str | None
    repair: Repair


def fingerprint(path: str, finding: Finding) -> str:
    """Return what stays the same of a finding from scan to scan, as 64 hexadecimal digits.

    It is made of the checkpoint's path, the rule, and whom it concerns; not of the message, whose numbers and words
    may change, nor of the severity, which is the user's to set.

    Args:
        path: The checkpoint, relative to what does not change between two scans: the repository, the baseline's folder.
        finding: One of its findings.
    """
    import hashlib  # Loads OpenSSL, which most scans do not need.

    identity = [path, finding.rule, finding.layer, sorted(finding.layers), sorted(finding.variables)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
