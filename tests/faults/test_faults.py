"""A share of the trial: `python -m tests.faults` breaks writing everywhere."""

import re
import subprocess
import sys

import pytest

from tests.faults.cases import FORMATS, MODES

# Formats share what commits: every second one is written in two of the ways, the others in the other two.
KINDS = list(FORMATS)
SHARES = [(KINDS[::2], ("overwrite", "in place")), (KINDS[1::2], ("copy", "in place, no backup"))]


@pytest.fixture(scope="module")
def tried() -> str:
    """The table of a few faults for each format, from one process for several: to start one takes as long as many."""
    table = ""
    for kinds, modes in SHARES:
        command = [sys.executable, "-m", "tests.faults", "--every", "80", "--draws", "1", "--moments", "1"]
        command += [word for kind in kinds for word in ("--kind", kind)] + [
            word for mode in modes for word in ("--mode", mode)
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        table += done.stdout + done.stderr + f"exit {done.returncode}\n"
    return table


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_breaks_a_checkpoint(kind: str, tried: str) -> None:
    line = re.search(rf"^{kind} +(\d+) faults, (\d+) broken states$", tried, re.MULTILINE)
    assert line is not None, tried
    assert int(line[2]) == 0, tried
    assert int(line[1]) > 75


def test_the_trial_ends_well_and_every_way_of_writing_has_its_share(tried: str) -> None:
    assert re.findall(r"^exit .*", tried, re.MULTILINE) == ["exit 0"] * 2, tried
    assert {mode for _, modes in SHARES for mode in modes} == set(MODES)
