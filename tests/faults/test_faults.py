"""A share of the trial: `python -m tests.faults` breaks writing everywhere."""

import re
import subprocess
import sys

import pytest

from tests.faults.cases import FORMATS


@pytest.fixture(scope="module")
def tried() -> subprocess.CompletedProcess[str]:
    """All formats in one process: to start one takes as long as a third of the faults of a format."""
    command = [sys.executable, "-m", "tests.faults", "--every", "80", "--draws", "1", "--moments", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_breaks_a_checkpoint(kind: str, tried: subprocess.CompletedProcess[str]) -> None:
    line = re.search(rf"^{kind} +(\d+) faults, (\d+) broken states$", tried.stdout, re.MULTILINE)
    assert line is not None, tried.stdout + tried.stderr
    assert int(line[2]) == 0, tried.stderr
    assert int(line[1]) > 100


def test_the_trial_ends_well(tried: subprocess.CompletedProcess[str]) -> None:
    assert tried.returncode == 0, tried.stdout + tried.stderr
