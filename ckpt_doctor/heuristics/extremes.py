"""The least and the largest element of many vectors at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckpt_doctor.checkpoint import Array


def extremes(vectors: Sequence[Array]) -> list[tuple[float, float]]:
    """Return the least and the largest element of each vector; both are NaN where it holds one, or no real numbers.

    A call of NumPy for each of thousands of short vectors costs more than the elements do, so they are looked at in one
    pass for each dtype.

    Args:
        vectors: Of any dtypes and shapes, with one element at least.
    """
    dtypes = {vector.dtype for vector in vectors}
    if len(dtypes) == 1:
        return _of_one_dtype(vectors, dtypes.pop())
    result: list[tuple[float, float]] = [(math.nan, math.nan)] * len(vectors)
    for dtype in dtypes:
        positions = [position for position, vector in enumerate(vectors) if vector.dtype == dtype]
        alike = _of_one_dtype([vectors[position] for position in positions], dtype)
        for position, pair in zip(positions, alike, strict=True):
            result[position] = pair
    return result


def _of_one_dtype(vectors: Sequence[Array], dtype: np.dtype[Any]) -> list[tuple[float, float]]:
    if dtype.kind in "cO":  # Complex numbers and texts have no order that means anything here.
        return [(math.nan, math.nan)] * len(vectors)
    together = np.concatenate([vector.reshape(-1) for vector in vectors])
    starts = np.cumsum([0, *(vector.size for vector in vectors[:-1])])
    least, largest = np.minimum.reduceat(together, starts), np.maximum.reduceat(together, starts)
    return list(zip(least.astype(np.float64).tolist(), largest.astype(np.float64).tolist(), strict=True))
