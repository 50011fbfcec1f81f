"""The copies of a statistic that an export has written: `variables/4` and `_all_variables/17` of Keras 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.checkpoint import Array, same_values
from ckpt_doctor.heuristics.extremes import extremes

_TWIN = "twin"


def twins_of(layer: BatchNormLayer, role: str) -> dict[str, str]:
    """Return the exported twins of one of a layer's statistics: kind (`twin`, `twin_2` …) to name."""
    found = {}
    for key, name in layer.companions.items():
        of, _, kind = key.rpartition("/")
        if of == role and kind.startswith(_TWIN):
            found[kind] = name
    return found


def non_finite_copies(layer: BatchNormLayer, role: str) -> dict[str, int]:
    """Return the name of every copy of a statistic with NaN or infinite values, the layer's own first, to how many."""
    counts = {name: int(np.count_nonzero(~np.isfinite(value))) for name, value in _copies(layer, role).items()}
    return {name: count for name, count in counts.items() if count}


def not_finite(layers: Sequence[BatchNormLayer]) -> list[BatchNormLayer]:
    """Return the layers of which a copy of a statistic holds NaN or infinite values, in their order."""
    owners: list[int] = []
    copies: list[Array] = []
    for layer in layers:
        own = [layer.values[role] for role in STATISTICS if role in layer.values]
        twins = [value for role in STATISTICS for value in _copies(layer, role).values()] if layer.companions else own
        for value in twins:
            if value.size:
                owners.append(id(layer))
                copies.append(value)
    # Of complex numbers nothing is known here; they are looked at one by one.
    suspects = {
        owner
        for owner, (least, largest) in zip(owners, extremes(copies), strict=True)
        if not (math.isfinite(least) and math.isfinite(largest))
    }
    return [
        layer
        for layer in layers
        if id(layer) in suspects and any(non_finite_copies(layer, role) for role in STATISTICS)
    ]


def finite_statistics(layer: BatchNormLayer) -> dict[str, Array] | None:
    """Return the statistics of a layer that holds NaN in one exported copy and not in another.

    Returns:
        Role to value, float64 of shape `(channels,)`; None where no copy holds NaN, where every copy of a statistic
        does, or where copies without differ.
    """
    if not any(non_finite_copies(layer, role) for role in STATISTICS):
        return None
    found: dict[str, Array] = {}
    for role in STATISTICS:
        finite = [value for value in _copies(layer, role).values() if np.isfinite(value).all()]
        if not finite or any(not same_values(value, finite[0]) for value in finite):
            return None
        found[role] = np.asarray(finite[0], np.float64)
    return found


def _copies(layer: BatchNormLayer, role: str) -> dict[str, Array]:
    """Return name to value, flat, of every copy of a statistic that can be read."""
    values = {layer.variables[role]: layer.values[role]} if role in layer.values else {}
    for kind, name in twins_of(layer, role).items():
        if f"{role}/{kind}" in layer.companion_values:
            values[name] = layer.companion_values[f"{role}/{kind}"]
    return {name: value.reshape(-1) for name, value in values.items()}
