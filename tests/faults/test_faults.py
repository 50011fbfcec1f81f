"""A share of the trial: `python -m tests.faults` breaks writing everywhere."""

import subprocess
import sys

import pytest

from tests.faults.cases import FORMATS


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_breaks_a_checkpoint(kind: str) -> None:
    command = [sys.executable, "-m", "tests.faults", "--kind", kind, "--every", "25", "--draws", "1", "--moments", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.splitlines()[-1].split()[1]) > 100
