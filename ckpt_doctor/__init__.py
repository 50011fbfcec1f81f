"""ckpt-doctor: the fsck of TensorFlow and Keras checkpoints.

`open_checkpoint`, `scan`, `diff` and `fix` are what the command line calls; their results are frozen dataclasses with
the names of the JSON reports. `errors.CkptDoctorError` is the root of all that a caller may catch. Names load on first
use: importing this package loads neither NumPy nor, ever, TensorFlow. No module has the name of a public function: its
import would take the function's place.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_doctor import errors
    from ckpt_doctor.audit import scan
    from ckpt_doctor.checkpoint import Checkpoint, Variable
    from ckpt_doctor.comparison import Difference, DiffResult, diff
    from ckpt_doctor.finding import Finding
    from ckpt_doctor.formats import open_checkpoint
    from ckpt_doctor.repair import fix
    from ckpt_doctor.repair_result import RepairedLayer, RepairResult
    from ckpt_doctor.result import AuditResult, CheckpointResult, LayerSummary, NotJudged, PathError

__version__ = "0.1.0"

__all__ = [
    "AuditResult",
    "Checkpoint",
    "CheckpointResult",
    "DiffResult",
    "Difference",
    "Finding",
    "LayerSummary",
    "NotJudged",
    "PathError",
    "RepairResult",
    "RepairedLayer",
    "Variable",
    "__version__",
    "diff",
    "errors",
    "fix",
    "open_checkpoint",
    "scan",
]

_HOMES = {
    "AuditResult": "result",
    "Checkpoint": "checkpoint",
    "CheckpointResult": "result",
    "DiffResult": "comparison",
    "Difference": "comparison",
    "Finding": "finding",
    "LayerSummary": "result",
    "NotJudged": "result",
    "PathError": "result",
    "RepairResult": "repair_result",
    "RepairedLayer": "repair_result",
    "Variable": "checkpoint",
    "diff": "comparison",
    "fix": "repair",
    "open_checkpoint": "formats",
    "scan": "audit",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("ckpt_doctor.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ckpt_doctor.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
