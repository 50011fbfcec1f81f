"""Where the published checkpoints are, and the rewriting of assertions in the shared suites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.formats.contract")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of published checkpoints; tests that need it skip where it is not."""
    folder = Path(os.environ.get("CKPT_DOCTOR_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
    if not folder.is_dir():
        pytest.skip("the published checkpoints are not here (CKPT_DOCTOR_CORPUS)")
    return folder
