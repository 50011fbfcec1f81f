"""NaN and infinite values are found whichever variables are looked at in one pass."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckpt_doctor import analysis
from ckpt_doctor.checkpoint import Checkpoint, Variable


def found_in(values):
    variables = [
        Variable(name, value.shape, value.dtype.name, value.nbytes, lambda value=value: value)
        for name, value in values.items()
    ]
    checkpoint = Checkpoint("model", "tensor-bundle", tuple(variables), (), 0)
    return list(analysis.analyse(checkpoint, verify=False).non_finite.items())


def broken(count, size, dtype=np.float32, what=np.nan):
    value = np.ones(size, dtype)
    value[:count] = what
    return value


def test_they_are_counted_in_the_order_of_the_file():
    values = {
        "a": np.ones(3, np.float32),
        "b": broken(2, 5),
        "c": np.zeros((0, 4), np.float32),
        "d": broken(1, 2, np.float64, -np.inf),
        "e": np.array(7, np.int64),
        "f": np.array(np.inf, np.float32),
        "g": broken(3, 4, ml_dtypes.bfloat16),
        "h": broken(1, 6, np.float16, np.inf),
        "i": broken(4, 8, np.complex64),
        "j": np.full((2, 3), 3e38, np.float32),
    }
    assert found_in(values) == [("b", 2), ("d", 1), ("f", 1), ("g", 3), ("h", 1), ("i", 4)]


@pytest.mark.parametrize("place", [0, 1, 99, 100, 299])
def test_one_among_many_is_found(monkeypatch, place):
    monkeypatch.setattr(analysis, "_AT_ONCE", 100 * 16)
    values = {f"v{number}": np.ones(16, np.float32) for number in range(300)}
    values[f"v{place}"] = broken(1, 16)
    assert found_in(values) == [(f"v{place}", 1)]


def test_a_large_one_is_looked_at_alone():
    values = {"small": broken(1, 3), "large": broken(2, analysis._AT_ONCE + 1), "last": broken(3, 4)}
    assert found_in(values) == [("small", 1), ("large", 2), ("last", 3)]
