"""Some thousand damaged inputs of every reader; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.__main__ import run, work
from tests.fuzz.targets import TARGETS, Target, make

# Processor time is what the default tests have least of; CI runs 20,000 by the command.
INPUTS = 1000


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_nothing_escapes() -> None:
    found = run(list(TARGETS), INPUTS, 2, seed=0)
    assert {name: outcome.escaped for name, outcome in found.items() if outcome.escaped} == {}
    assert sum(outcome.inputs for outcome in found.values()) > INPUTS * 0.95


def test_the_same_numbers_make_the_same_input() -> None:
    for target in TARGETS:
        assert make(target, 3, 7) == make(target, 3, 7)
        assert len({make(target, seed, 7) for seed in range(20)}) > 5


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_what_escapes_is_blamed_on_its_input() -> None:
    expected = {
        "raise": "ZeroDivisionError",
        "crash": "ends its process with -11",
        "memory": "MemoryError",
        "hang": "does not end within",
    }
    targets = [Target(f"selftest-{what}", lambda: [b""], (), lambda *_: None, 0) for what in expected]
    outcomes = work([(target, 0, 5) for target in targets], 0)
    for outcome, what in zip(outcomes.values(), expected.values(), strict=True):
        assert outcome.inputs == 5
        ((number, said, _),) = outcome.escaped
        assert number == 3
        assert what in said
