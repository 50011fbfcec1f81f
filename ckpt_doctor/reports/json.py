"""The reports for programs: one document a command, each with a JSON Schema in `ckpt_doctor/schemas`.

The fields are those of the result's dataclasses, in their order; what differs is written out here. Numbers that JSON
does not have (NaN, infinity) are null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import ckpt_doctor
from ckpt_doctor.repair_result import RepairResult
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, CheckpointResult

if TYPE_CHECKING:  # They load NumPy and the formats, which a report does not need.
    from ckpt_doctor.comparison import DiffResult
    from ckpt_doctor.listing import Listing


_ANY = Style()


def render(result: AuditResult, style: Style) -> str:
    """Return the document of a scan, `ckpt-doctor/scan/1`."""
    del style
    return _document(
        "scan",
        version=ckpt_doctor.__version__,
        checkpoints=[_checkpoint(checkpoint) for checkpoint in result.checkpoints],
        errors=[_fields(error) for error in result.errors],
        passed_over=result.passed_over,
        coverage=_fields(result.coverage),
        unused_suppressions=[_fields(unused) for unused in result.unused_suppressions],
        summary=_fields(result.summary),
    )


def render_listing(listing: Listing) -> str:
    """Return the document of `ls`, `ckpt-doctor/ls/1`."""
    variables = []
    for variable in listing.variables:
        row = _fields(variable)
        statistics = row.pop("statistics")
        unreadable = row.pop("unreadable")
        if listing.stats:
            row |= statistics or dict.fromkeys(("min", "max", "mean", "std", "nonfinite", "zeros"))
            row["unreadable"] = unreadable
        variables.append(row)
    return _document("ls", path=listing.path, format=listing.format, variables=variables)


def render_diff(result: DiffResult) -> str:
    """Return the document of `diff`, `ckpt-doctor/diff/1`."""
    return _document("diff", **_fields(result), equal=result.equal)


def render_repair(result: RepairResult, style: Style = _ANY) -> str:
    """Return the document of `fix` and of its receipt, `ckpt-doctor/fix/1`."""
    del style
    return _document("fix", version=ckpt_doctor.__version__, **_repair(result))


def _repair(result: RepairResult) -> dict[str, Any]:
    fields = _fields(result)
    for layer in fields["layers"]:  # As below: for plots.
        del layer["before_values"], layer["after_values"]
    del fields["clean"], fields["needs_receipt"]
    return fields


def _checkpoint(checkpoint: CheckpointResult) -> dict[str, Any]:
    # Values of channels are for plots; here they would be most of the document. The options are the caller's own.
    fields = _fields(dataclasses.replace(checkpoint, values={}))
    del fields["values"], fields["measured_with"], fields["not_run"]
    return fields


def _document(kind: str, **fields: Any) -> str:
    document = {"schema": f"ckpt-doctor/{kind}/1", **fields}
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _fields(result: Any) -> dict[str, Any]:
    return dataclasses.asdict(result)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
