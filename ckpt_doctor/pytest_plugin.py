"""The fixture `ckpt_doctor` for pytest: a checkpoint is healthy, or the test fails with the report.

    def test_model(ckpt_doctor):
        ckpt_doctor("export/model.keras")

Options are those of `scan`, by their Python names; what `pyproject.toml`, `.ckpt-doctor.toml` and the environment say
holds here as it does on the command line. pytest loads this module wherever ckpt-doctor is installed, so it imports
nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ckpt_doctor.options import GateOptions, takes

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult


class Checker:
    """What the fixture gives to a test."""

    @takes(GateOptions)
    def __call__(self, *paths: str | Path, **options: Any) -> AuditResult:
        """Scan checkpoints, and fail the test where the command line would fail.

        Options that are not given come from the environment and from configuration files, as on the command line.

        Args:
            *paths: As for `scan`.
            **options: The options of the command line, see `ckpt_doctor.options.GateOptions`.

        Returns:
            The result, to look further into.
        """
        __tracebackhide__ = True
        from ckpt_doctor.cli.policy import Policy
        from ckpt_doctor.errors import CkptDoctorError
        from ckpt_doctor.reports import REPORTS
        from ckpt_doctor.reports.interface import Style

        try:
            result, code = Policy.of(options).judge([str(path) for path in paths])
        except CkptDoctorError as error:
            pytest.fail(f"ckpt-doctor: {error}", pytrace=False)
        if code:
            errors = "".join(f"no verdict: {error.path}: {error.message}\n" for error in result.errors)
            report = REPORTS["text"](result, Style(detail="less")) + errors
            pytest.fail(report or "ckpt-doctor: no checkpoint found; nothing was scanned", pytrace=False)
        return result


@pytest.fixture(name="ckpt_doctor", scope="session")
def ckpt_doctor_fixture() -> Checker:
    """Scan checkpoints and fail the test where they are sick: `ckpt_doctor(path, fail_on="warning")`."""
    return Checker()
