"""The median of a vector."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def median(vector: npt.NDArray[np.float64]) -> float:
    """Return what `np.median` does, NaN for a vector that holds one.

    `np.median` loads `numpy.ma` to ask whether it was given a masked array: a tenth of what loading NumPy takes, for
    every scan.

    Args:
        vector: Of shape `(n,)`, n from 1.
    """
    ordered = np.sort(vector)
    if np.isnan(ordered[-1]):  # NaN is sorted behind everything else.
        return float("nan")
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)
