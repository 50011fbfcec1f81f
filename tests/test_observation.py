"""How sure an estimate is, how far statistics are from it, and whether its batches look sorted: by hand arithmetic."""

import math

import numpy as np
import pytest

from ckpt_doctor.observation import Observation


def observation(batch_means, batch_variances=None, *, mean=None, variance=None):
    """Return what was seen in batches, each a row of channels; mean and variance are 0 and 1 if not given."""
    means = np.asarray(batch_means, np.float64)
    variances = np.ones_like(means) if batch_variances is None else np.asarray(batch_variances, np.float64)
    channels = means.shape[1]
    mean, variance = (
        np.resize(0.0 if mean is None else mean, channels),
        np.resize(1.0 if variance is None else variance, channels),
    )
    return Observation(10, mean, variance, means, variances)


def test_the_error_of_the_mean_is_that_of_independent_batches():
    """Batch means 1, 3 and 8 are 3, 1 and 4 from theirs: a sample variance of (9 + 1 + 16) / 2, over three batches."""
    seen = observation([[1, 5], [3, 5], [8, 5]])
    assert seen.batches == 3
    np.testing.assert_allclose(seen.mean_error, [math.sqrt(13 / 3), 0], rtol=1e-12)


def test_the_error_of_the_variance_counts_the_spread_around_the_common_mean():
    """Around a common mean of 2 the batches' squares are 1 + 1, 2 + 1 and 3 + 36."""
    seen = observation([[1], [3], [8]], [[1], [2], [3]], mean=2.0)
    squares = [2, 3, 39]
    middle = sum(squares) / 3
    sample_variance = sum((square - middle) ** 2 for square in squares) / 2
    np.testing.assert_allclose(seen.variance_error, [math.sqrt(sample_variance / 3)], rtol=1e-12)


def test_two_batches_have_an_error_and_one_has_none():
    two, one = observation([[1.0], [3.0]]), observation([[1.0]])
    assert two.mean_error.tolist() == [1.0]
    assert two.variance_error is not None
    assert (one.mean_error, one.variance_error, one.largest_error(1e-3)) == (None, None, None)


def test_the_largest_error_is_in_standard_deviations_of_its_channel():
    """Both means are off by 1: with an epsilon of 1 that is a half of sqrt(3 + 1), and a third of sqrt(8 + 1)."""
    seen = observation([[1, 1], [3, 3]], variance=[3.0, 8.0])
    assert seen.largest_error(1.0) == pytest.approx(0.5)
    assert seen.largest_error(6.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [
        # With an epsilon of 1 the standard deviations are 2, 3 and 5.
        ([0, 0, 0], [3, 8, 24], 0.0),
        ([0, 1.5, 0], [3, 8, 24], 0.5),
        ([0, 0, -2], [3, 8, 24], 0.4),
        ([0, 0, 0], [3, 8, 54], 30 / 25),
        ([0, 0, 0], [1, 8, 24], 2 / 4),
        ([0, 0, 0], [3, 2, 24], 6 / 9),
        # The worse of both, whichever channel it is in.
        ([1, 0, 0], [3, 17, 24], 1.0),
        ([6, 0, 0], [3, 17, 24], 3.0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distance_is_that_of_the_worst_channel_in_mean_or_variance(mean, variance, expected, dtype):
    seen = observation([[0, 0, 0]], mean=0.0, variance=[3.0, 8.0, 24.0])
    assert seen.distance(np.array(mean, dtype), np.array(variance, dtype), 1.0) == pytest.approx(expected)


def test_distance_loses_nothing_to_half_precision():
    """4096 and 4097 are one number in float16, and their difference counts."""
    seen = observation([[0.0]], mean=4097.0, variance=1.0)
    assert seen.distance(np.array([4096.0], np.float16), np.array([1.0], np.float16), 0.0) == 1.0


# The von Neumann ratio of eight values is the sum of their squared steps over that of their squared deviations.
ONE_STEP = [1, 1, 1, 1, -1, -1, -1, -1]  # 4 / 8
TWO_STEPS = [1, 1, -1, -1, -1, -1, 1, 1]  # 8 / 8
ALTERNATING = [1, -1, 1, -1, 1, -1, 1, -1]  # 28 / 8


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ([ONE_STEP], True),
        ([TWO_STEPS], False),  # Exactly at the limit.
        ([ALTERNATING], False),
        ([ONE_STEP[1:]], False),  # Seven batches say nothing.
        ([[*ONE_STEP, -1]], True),
        ([ONE_STEP, ONE_STEP, TWO_STEPS], True),  # 2 / 3 on average.
        ([ONE_STEP, ALTERNATING], False),  # 2.
        ([ALTERNATING, TWO_STEPS], False),  # Each channel counts by its own spread.
        ([[0] * 8, ONE_STEP], True),  # A channel that never moves does not count.
        ([[0] * 8, [3] * 8], False),
    ],
)
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 100), (0.5, -3)])
def test_batches_are_unlike_where_neighbours_resemble_each_other(channels, expected, scale, offset):
    means = np.array(channels, np.float64).T
    # Neither unit nor origin of a channel matters.
    means = means * np.geomspace(scale, scale * 1000, means.shape[1]) + offset
    assert observation(means).are_batches_unlike() is expected
