"""The least and the largest element of vectors of any dtypes, as NumPy tells them of each alone."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ckpt_doctor.heuristics.extremes import extremes


def test_each_vector_gets_its_own_whatever_stands_beside_it():
    random = np.random.default_rng(0)
    dtypes = ("float32", "float16", "float64", ml_dtypes.bfloat16, "int32", "float32")
    vectors = [(random.normal(size=size) * 9).astype(dtype) for size in (1, 3, 2) for dtype in dtypes]
    vectors.append(np.array([[1.0, -5.0], [7.0, 2.0]], np.float32))
    assert extremes(vectors) == [(float(vector.min()), float(vector.max())) for vector in vectors]
    assert extremes([]) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_nan_and_infinity_stay_in_their_vector(dtype):
    found = extremes([np.array(values, dtype) for values in ([1, 2], [np.nan, 3], [-np.inf, 4], [5, np.inf], [6, 6])])
    assert [found[0], *found[2:]] == [(1, 2), (-math.inf, 4), (5, math.inf), (6, 6)]
    assert all(map(math.isnan, found[1]))


@pytest.mark.parametrize("values", [np.array([1j, 2]), np.array([b"1", b"2"], object)])
def test_what_has_no_order_has_no_extremes(values):
    found = extremes([np.ones(2), values])
    assert found[0] == (1, 1)
    assert all(map(math.isnan, found[1]))
