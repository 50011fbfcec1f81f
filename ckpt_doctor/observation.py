"""What was seen to go into a batch-norm layer at inference, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

# Fewer batches than this say nothing about their order.
_FEWEST_BATCHES = 8
# The von Neumann ratio of independent values is 2 on average (Annals of Mathematical Statistics 12, 1941, p. 367);
# averaged over channels and eight batches or more, half of that is far outside what chance gives.
_UNLIKE_BELOW = 1.0


@dataclass(frozen=True, eq=False)
class Observation:
    """The moments of a layer's input on some data.

    Attributes:
        samples: Number of samples of the data.
        mean: Per channel, float64 of shape `(channels,)`.
        variance: The population variance per channel, likewise, in squared units.
        batch_means: The mean of each batch, of shape `(batches, channels)`.
        batch_variances: The population variance within each batch, likewise.
    """

    samples: int
    mean: Vector
    variance: Vector
    batch_means: Vector
    batch_variances: Vector

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self.batch_means)

    @property
    def mean_error(self) -> Vector | None:
        """Standard error of `mean`, from the spread of the batches; None for fewer than two."""
        return _error(self.batch_means)

    @property
    def variance_error(self) -> Vector | None:
        """Standard error of `variance`, from the spread of each batch's squares around the common mean."""
        return _error(self.batch_variances + np.square(self.batch_means - self.mean))

    def largest_error(self, epsilon: float) -> float | None:
        """Return the largest standard error of a channel's mean, in standard deviations of that channel."""
        error = self.mean_error
        return None if error is None else float(np.max(error / np.sqrt(self.variance + epsilon)))

    def distance(self, mean: npt.NDArray[Any], variance: npt.NDArray[Any], epsilon: float) -> float:
        """Return how far statistics, each of shape `(channels,)`, are from what was seen, in the worst channel.

        The mean's difference counts in standard deviations, the variance's relative to `variance + epsilon`.
        """
        off_mean = np.abs(np.asarray(mean, np.float64) - self.mean) / np.sqrt(self.variance + epsilon)
        off_variance = np.abs(np.asarray(variance, np.float64) - self.variance) / (self.variance + epsilon)
        return float(max(off_mean.max(), off_variance.max()))

    def are_batches_unlike(self) -> bool:
        """Return whether neighbouring batches resemble each other more than chance allows: the data look sorted."""
        if self.batches < _FEWEST_BATCHES:
            return False
        centred = self.batch_means - self.batch_means.mean(axis=0)
        total = np.square(centred).sum(axis=0)
        steps = np.square(np.diff(self.batch_means, axis=0)).sum(axis=0)
        moving = total > 0
        return bool(moving.any() and np.mean(steps[moving] / total[moving]) < _UNLIKE_BELOW)


def _error(values: Vector) -> Vector | None:
    if len(values) < 2:
        return None
    result: Vector = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return result
