"""What every report offers: a result in, a string out. Nothing here opens, prints or judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ckpt_doctor.result import AuditResult


@dataclass(frozen=True)
class Style:
    """How a report for people is to look; reports for programs ignore it.

    Attributes:
        width: Columns to fit into.
        color: Whether to use ANSI colours.
        detail: `less` leaves out what is healthy, `more` names everything that would be shortened.
        root: The folder that reports for programs name checkpoints relative to, with forward slashes; empty for paths
            as they were given.
        failing: The severities that fail the run; only reports that know pass and fail heed it.
    """

    width: int = 80
    color: bool = False
    detail: Literal["less", "usual", "more"] = "usual"
    root: str = ""
    failing: tuple[str, ...] = ("error",)


Report = Callable[[AuditResult, Style], str]
