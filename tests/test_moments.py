"""Count, mean and variance against two passes in float64, where the textbook formula fails."""

import math

import numpy as np
import pytest

from ckpt_doctor.moments import Moments

# What a repair may be off by: relative for the variance, in standard deviations for the mean.
TOLERANCE = 1e-5
# What float64 leaves of it: neighbours of 1e7 are 2e-9 apart.
EXACT = 1e-7
CHANNELS = 5


def activations(mean, dtype=np.float32, count=4000, seed=0):
    """Values of standard deviation 0.5 to 2.5 around `mean`, of shape (count, channels)."""
    spread = np.linspace(0.5, 2.5, CHANNELS)
    values = np.random.default_rng(seed).normal(size=(count, CHANNELS)) * spread + mean
    return values.astype(dtype)


def truth(values):
    """Return mean and population variance of the stored values, in two passes with exactly rounded sums."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    means = [math.fsum(column) / len(column) for column in rows.T]
    variances = [math.fsum((x - m) ** 2 for x in column) / len(column) for column, m in zip(rows.T, means, strict=True)]
    return np.array(means), np.array(variances)


def errors(mean, variance, values):
    """Return the worst error of the mean in standard deviations, and the worst relative error of the variance."""
    true_mean, true_variance = truth(values)
    return (
        np.max(np.abs(mean - true_mean) / np.sqrt(true_variance)),
        np.max(np.abs(variance - true_variance) / true_variance),
    )


def naive(values):
    """E[x²] - E[x]² in float32, as `tf.nn.moments` of old and many scripts have it."""
    rows = values.astype(np.float32)
    count = np.float32(len(rows))
    mean = rows.sum(axis=0, dtype=np.float32) / count
    return mean, np.square(rows).sum(axis=0, dtype=np.float32) / count - np.square(mean)


@pytest.mark.parametrize("mean", [1e3, 1e7])
def test_the_naive_formula_exceeds_the_tolerance(mean):
    values = activations(mean)
    assert errors(*naive(values), values)[1] > 10 * TOLERANCE


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [0, 1e3, -1e3, 1e7])
def test_ours_does_not(mean, dtype):
    values = activations(mean, dtype)
    moments = Moments.of(values)
    assert moments.count == len(values)
    assert max(errors(moments.mean, moments.variance, values)) < EXACT


@pytest.mark.parametrize("mean", [0, 1e3])
def test_half_precision_is_measured_as_stored(mean):
    """Sums of float16 would overflow at 65504; what was rounded away when it was stored is nobody's error."""
    values = activations(mean, np.float16)
    moments = Moments.of(values)
    assert np.isfinite(moments.m2).all()
    assert moments.mean.dtype == moments.m2.dtype == np.float64
    assert max(errors(moments.mean, moments.variance, values)) < EXACT


@pytest.mark.parametrize("mean", [0, 1e3, 1e7])
@pytest.mark.parametrize(
    "sizes", [[4000], [1] * 10 + [3990], [3999, 1], [64] * 62 + [32], [0, 2000, 0, 2000], [7, 3993]]
)
def test_any_split_gives_the_same(mean, sizes):
    assert sum(sizes) == 4000
    values = activations(mean)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    forward = Moments.none(CHANNELS)
    for part in parts:
        forward = forward.merge(Moments.of(part))
    backward = Moments.none(CHANNELS)
    for part in reversed(parts):
        backward = Moments.of(part).merge(backward)
    for moments in (forward, backward):
        assert moments.count == 4000
        assert max(errors(moments.mean, moments.variance, values)) < EXACT


def test_streams_of_unlike_means_keep_the_spread_between_them():
    """The mean of the batches' variances would be 1 here; all values together have 1 + 10²."""
    rows = np.array([-1.0, 1.0])[:, None]
    merged = Moments.of(rows - 10).merge(Moments.of(rows + 10))
    assert (merged.count, merged.mean.tolist(), merged.variance.tolist()) == (4, [0.0], [101.0])


def test_it_is_the_population_variance():
    assert Moments.of(np.array([[1.0], [2.0], [3.0], [4.0]])).variance.tolist() == [1.25]  # the sample's is 5/3


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 5), -1), ((6, 5, 4, 3), 1), ((6, 5), 1), ((2, 6, 4, 3, 5), 4)])
def test_every_axis_but_that_of_the_channels_is_counted(shape, axis):
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    moments = Moments.of(values, axis)
    last = np.moveaxis(values, axis, -1)
    assert moments.count == last.size // 5
    assert moments.mean.shape == (5,)
    assert max(errors(moments.mean, moments.variance, last)) < 1e-12


def test_arrays_larger_than_a_block_are_measured_in_blocks():
    values = np.random.default_rng(1).normal(1e3, 1, size=(1 << 15, CHANNELS)).astype(np.float32)
    assert values.size > 1 << 16
    moments = Moments.of(values)
    assert max(errors(moments.mean, moments.variance, values)) < EXACT


def test_one_value_has_no_spread():
    moments = Moments.of(np.full((1, 2), 1e7, np.float32))
    assert moments.variance.tolist() == [0.0, 0.0]


def test_one_value_of_one_channel_is_seen():
    moments = Moments.of(np.array([[3.0]]))
    assert (moments.count, moments.mean.tolist(), moments.m2.tolist()) == (1, [3.0], [0.0])


def test_more_channels_than_a_block_has_values_are_measured_row_by_row():
    values = np.arange(3)[:, None] * np.ones(70_000)
    moments = Moments.of(values)
    assert moments.count == 3
    assert np.all(moments.mean == 1)
    assert np.all(moments.m2 == 2)


def test_nothing_seen_changes_nothing_and_has_no_variance():
    nothing = Moments.of(np.zeros((0, 3), np.float32))
    assert (nothing.count, nothing.mean.tolist(), nothing.m2.tolist()) == (0, [0.0] * 3, [0.0] * 3)
    with pytest.raises(ZeroDivisionError, match="no values were seen"):
        _ = nothing.variance
    some = Moments.of(np.ones((2, 3)))
    assert nothing.merge(some).count == some.merge(nothing).count == 2
    assert nothing.merge(nothing).count == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 20000])
def test_values_that_are_no_numbers_are_refused(bad, row):
    values = activations(0, count=30000)
    values[row, 2] = bad
    # Infinity less infinity is NaN, which NumPy warns of before we refuse it.
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="1 of 5 channels hold NaN or infinite"):
        Moments.of(values)


def test_a_spread_beyond_float64_is_refused_too():
    """The mean is 0, and the squares are 1e400."""
    values = np.array([[1e200, 1.0], [-1e200, 1.0]])
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match="1 of 2 channels hold NaN or infinite"):
        Moments.of(values)
