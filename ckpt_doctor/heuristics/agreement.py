"""When two pairs of statistics are those of different data: the limits of BN401, for every comparison that is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.observation import Observation

# Of the contract: a quarter of a standard deviation, a factor of two, four standard errors of the measurement.
LARGEST_SHIFT = 0.25
LARGEST_RATIO = 2.0
STANDARD_ERRORS = 4.0
# Where nothing says what a layer adds to its variance: Keras' and tf.layers' default.
DEFAULT_EPSILON = 1e-3


@dataclass(frozen=True)
class Mismatch:
    """How far statistics are apart: medians over the channels.

    Attributes:
        shift: Of the difference of the means, in standard deviations of the stored statistics.
        ratio: Of the other variance by the stored one.
    """

    shift: float
    ratio: float


def is_beyond(shift: float, ratio: float, tolerance: float = 1.0) -> tuple[bool, bool]:
    """Return whether a shift, and whether a ratio of variances, is beyond the limits.

    Args:
        shift: A difference of means in standard deviations.
        ratio: One variance by the other.
        tolerance: Multiplies both limits: the shift's, and what the ratio's is above 1.
    """
    largest = 1 + (LARGEST_RATIO - 1) * tolerance
    return shift > LARGEST_SHIFT * tolerance, not 1 / largest <= ratio <= largest


def mismatch(layer: BatchNormLayer, seen: Observation, tolerance: float = 1.0) -> Mismatch | None:
    """Return how far a layer's stored statistics are from what was seen, where that is beyond the limits and chance.

    Args:
        layer: The layer.
        seen: What went into it on the data.
        tolerance: Multiplies the limits.
    """
    mean, variance = (layer.values.get(role) for role in STATISTICS)
    if mean is None or variance is None or mean.size != seen.mean.size:
        return None
    epsilon = layer.epsilon or DEFAULT_EPSILON
    stored = np.asarray(variance, np.float64) + epsilon
    if not np.all(stored > 0):
        return None
    difference = np.abs(seen.mean - np.asarray(mean, np.float64))
    apart = np.abs(seen.variance + epsilon - stored)
    shift, ratio = float(np.median(difference / np.sqrt(stored))), float(np.median((seen.variance + epsilon) / stored))
    shifted, scaled = is_beyond(shift, ratio, tolerance)
    if (shifted and _is_certain(difference, seen.mean_error)) or (scaled and _is_certain(apart, seen.variance_error)):
        return Mismatch(shift, ratio)
    return None


def _is_certain(difference: Array, error: Array | None) -> bool:
    """Return whether the median channel differs by more than chance; True for a single batch, which has no error."""
    return error is None or bool(np.median(difference / np.maximum(error, 1e-30)) > STANDARD_ERRORS)
