"""Arrays to count, mean and summed squares, per channel: float64, centred, mergeable.

Sees arrays only: no layer, no checkpoint. The variance is the *population* variance (divides by the count), which is
what inference wants of the data it was given; TensorFlow's fused op stores n/(n-1) times the batch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

# Values worked on at a time: 2**16 float64 are 512 KiB, which stays in a core's second-level cache.
_BLOCK_VALUES = 1 << 16


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the values seen so far.

    Attributes:
        count: Values seen per channel: batch times every spatial position.
        mean: Their mean, float64 of shape `(channels,)`.
        m2: Their summed squared distance from the mean, float64 of shape `(channels,)`.
    """

    count: int
    mean: Vector
    m2: Vector

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Return the moments of nothing: merging them changes nothing."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, values: npt.NDArray[Any], axis: int = -1) -> Moments:
        """Return the moments of one array.

        Args:
            values: Any real dtype, of shape `(batch, ..., channels)`, or with the channels at `axis`.
            axis: Which axis holds the channels.

        Raises:
            FloatingPointError: A value is NaN or infinite.
        """
        rows = np.moveaxis(values, axis, -1)
        channels = rows.shape[-1]
        if rows.size == 0:
            return cls.none(channels)
        # Where the channels are not last, this copies once; where they are, it is a view.
        rows = rows.reshape(-1, channels)
        step = max(1, _BLOCK_VALUES // channels)
        merged = cls.none(channels)
        for start in range(0, len(rows), step):
            block = rows[start : start + step].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            merged = merged.merge(cls(len(block), mean, np.einsum("ij,ij->j", block, block)))
        if not (np.isfinite(merged.mean).all() and np.isfinite(merged.m2).all()):
            bad = int(np.count_nonzero(~np.isfinite(merged.m2)))
            raise FloatingPointError(f"{bad} of {channels} channels hold NaN or infinite values")
        return merged

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both streams together, as if seen in one.

        The order of merging changes the result by rounding only.

        Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37(3),
        1983, pp. 242-247.
        """
        count = self.count + other.count
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count),
        )

    @property
    def variance(self) -> Vector:
        """The population variance, float64 of shape `(channels,)`, in squared units of the values.

        Raises:
            ZeroDivisionError: Nothing was seen.
        """
        if self.count == 0:
            raise ZeroDivisionError("no values were seen, so there is no variance")
        variance: Vector = self.m2 / self.count
        return variance
