"""When statistics are those of other data: limits, chance, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.heuristics.agreement import is_beyond, mismatch
from ckpt_doctor.observation import Observation
from ckpt_doctor.rules._examples import example


@pytest.mark.parametrize(
    ("shift", "ratio", "tolerance", "expected"),
    [
        (0.25, 1.0, 1.0, (False, False)),
        (0.2501, 1.0, 1.0, (True, False)),
        (0.0, 2.0, 1.0, (False, False)),
        (0.0, 2.001, 1.0, (False, True)),
        (0.0, 0.5, 1.0, (False, False)),
        (0.0, 0.499, 1.0, (False, True)),
        (0.3, 3.0, 1.0, (True, True)),
        # Twice the tolerance: half a standard deviation, and a factor of three.
        (0.5, 3.0, 2.0, (False, False)),
        (0.501, 3.001, 2.0, (True, True)),
        (0.0, 0.33, 2.0, (False, True)),
        (0.0, 0.334, 2.0, (False, False)),
        # Half of it: an eighth, and a factor of one and a half.
        (0.125, 1.5, 0.5, (False, False)),
        (0.126, 1.501, 0.5, (True, True)),
        (0.0, float("nan"), 1.0, (False, True)),
    ],
)
def test_the_limits_are_a_quarter_of_a_standard_deviation_and_a_factor_of_two(shift, ratio, tolerance, expected):
    assert is_beyond(shift, ratio, tolerance) == expected


def test_the_tolerance_is_1_unless_given():
    assert is_beyond(0.26, 1.9) == (True, False)
    assert is_beyond(0.24, 2.1) == (False, True)


def seen(mean, variance, mean_error=0.0, variance_error=0.0):
    """Return three channels in two batches, whose means and variances differ by so much as gives the errors."""
    mean, variance = np.resize(mean, 3).astype(float), np.resize(variance, 3).astype(float)
    signs = np.array([[1.0], [-1.0]])
    # The error of two values is half their distance; the squares around the common mean add the same to both.
    means, variances = mean + signs * mean_error, variance + signs * variance_error
    return Observation(100, mean, variance, means, variances)


# Variance 3 and epsilon 1: the standard deviation is 2.
LAYER = replace(example(moving_mean=0.0, moving_variance=3.0), epsilon=1.0)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (seen(0, 3), None),
        (seen(0.5, 3), None),
        (seen(0.6, 3), (0.3, 1.0)),
        (seen(-0.6, 3), (0.3, 1.0)),
        (seen(0, 8), (0.0, 9 / 4)),
        (seen(0, 0.9), (0.0, 1.9 / 4)),
        # The median channel decides.
        (seen([0, 0.6, 0.6], 3), (0.3, 1.0)),
        (seen([0, 0, 5], 3), None),
        (seen(0, [3, 3, 99]), None),
        # Four standard errors, and not less, are no chance.
        (seen(0.6, 3, mean_error=0.16), None),
        (seen(0.6, 3, mean_error=0.14), (0.3, 1.0)),
        (seen(0, 8, variance_error=1.3), None),
        (seen(0, 8, variance_error=1.2), (0.0, 9 / 4)),
        # What is beyond the limits must itself be sure: an uncertain shift does not become sure by its variance.
        (seen(0.6, 3.4, mean_error=0.16, variance_error=0.0001), None),
        (seen(0.1, 8, mean_error=0.0001, variance_error=1.3), None),
        (seen(0.6, 8, mean_error=0.16, variance_error=1.2), (0.3, 9 / 4)),
        (seen(0.6, 8, mean_error=0.14, variance_error=1.3), (0.3, 9 / 4)),
    ],
)
def test_a_mismatch_is_beyond_the_limits_and_beyond_chance(observed, expected):
    found = mismatch(LAYER, observed)
    if expected is None:
        assert found is None
    else:
        assert (found.shift, found.ratio) == pytest.approx(expected)


def test_it_is_the_difference_to_what_is_stored_that_counts():
    layer = replace(example(moving_mean=[1.0, -2.0, 3.0], moving_variance=3.0), epsilon=1.0)
    assert mismatch(layer, seen([1.0, -2.0, 3.0], 3)) is None
    assert mismatch(layer, seen([1.6, -2.6, 3.6], 3)).shift == pytest.approx(0.3)


def test_exactly_four_standard_errors_may_be_chance():
    layer = replace(example(moving_mean=0.0, moving_variance=1.0), epsilon=0.0)
    layer = replace(layer, epsilon=2.0**-40)  # 0 would be taken for unknown.
    assert mismatch(layer, seen(1.0, 1.0, mean_error=0.25)) is None
    assert mismatch(layer, seen(1.0, 1.0, mean_error=0.2499)) is not None


def test_one_batch_has_no_error_and_is_believed():
    one = Observation(10, np.full(3, 0.6), np.full(3, 3.0), np.full((1, 3), 0.6), np.full((1, 3), 3.0))
    assert mismatch(LAYER, one) is not None


def test_the_tolerance_moves_the_limits():
    assert mismatch(LAYER, seen(0.6, 3), tolerance=1.3) is None
    assert mismatch(LAYER, seen(0.4, 3), tolerance=0.7) is not None


@pytest.mark.parametrize("epsilon", [None, 1e-3])
def test_without_an_epsilon_it_is_that_of_keras(epsilon):
    layer = replace(example(moving_mean=0.0, moving_variance=0.003), epsilon=epsilon)
    found = mismatch(layer, seen(0, 0.019))
    assert found.ratio == pytest.approx(0.020 / 0.004)


@pytest.mark.parametrize(
    "layer",
    [
        example(missing=["moving_mean"]),
        example(missing=["moving_variance"]),
        example(channels=4),
        replace(example(moving_variance=[1, 1, -2]), epsilon=1.0),
        replace(example(moving_variance=[1, 1, -1]), epsilon=1.0),
        example(moving_variance=[1, 1, np.nan]),
    ],
)
def test_what_cannot_be_compared_does_not_differ(layer):
    assert mismatch(layer, seen(50, 3)) is None
