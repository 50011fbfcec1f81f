"""The least and the largest element of many vectors at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ckpt_doctor.checkpoint import Array


def extremes(vectors: Sequence[Array]) -> list[tuple[float, float]]:
    """Return the least and the largest element of each vector; both are NaN where it holds one, or no real numbers.

    A call of NumPy for each of thousands of short vectors costs more than the elements do, so they are looked at in one
    pass for each dtype.

    Args:
        vectors: Of any dtypes and shapes, with one element at least.
    """
    result: list[tuple[float, float]] = [(math.nan, math.nan)] * len(vectors)
    by_dtype: dict[object, list[int]] = {}
    for position, vector in enumerate(vectors):
        if vector.dtype.kind not in "cO":  # Complex numbers and texts have no order that means anything here.
            by_dtype.setdefault(vector.dtype, []).append(position)
    for positions in by_dtype.values():
        together = np.concatenate([vectors[position].reshape(-1) for position in positions])
        starts = np.cumsum([0, *(vectors[position].size for position in positions[:-1])])
        least = np.minimum.reduceat(together, starts).astype(np.float64).tolist()
        largest = np.maximum.reduceat(together, starts).astype(np.float64).tolist()
        for position, pair in zip(positions, zip(least, largest, strict=True), strict=True):
            result[position] = pair
    return result
