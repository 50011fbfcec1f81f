"""The median, against NumPy's."""

import numpy as np
import pytest

from ckpt_doctor.heuristics.median import median


@pytest.mark.parametrize("size", [1, 2, 3, 4, 101, 256])
def test_it_is_that_of_numpy(size):
    vector = np.random.default_rng(size).normal(size=size)
    assert median(vector) == np.median(vector)


@pytest.mark.parametrize("size", [3, 4])
def test_infinite_values_are_sorted_as_others(size):
    vector = np.array([np.inf, -np.inf, 1.0, 2.0][:size])
    assert median(vector) == np.median(vector)


def test_one_nan_makes_it_nan():
    assert np.isnan(median(np.array([1.0, np.nan, 2.0])))


def test_the_vector_stays_as_it_is():
    vector = np.array([3.0, 1.0, 2.0])
    median(vector)
    np.testing.assert_array_equal(vector, [3.0, 1.0, 2.0])
