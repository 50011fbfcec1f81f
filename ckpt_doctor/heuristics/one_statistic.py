"""Models in which one of the two statistics was never updated, and the other was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.heuristics.initial_values import at_initial_values

_START = {"moving_mean": 0.0, "moving_variance": 1.0}
# Averages in these may stop at their start by rounding: BN208.
_COARSE = frozenset({"float16", "bfloat16"})


def one_at_its_start(layers: Sequence[BatchNormLayer]) -> dict[str, str]:
    """Return the layers that hold one statistic exactly as it started beside another that moved, each with its role.

    Only where it is the same one in every layer of the file, as it is if code forgets it: a layer alone may have a
    reason of its own. A mean may be 0 for good where nothing comes in; then all variances are equal.

    Args:
        layers: All layers of a checkpoint.
    """
    for role, other in (STATISTICS, STATISTICS[::-1]):
        found: dict[str, str] = {}
        for layer in layers:
            if at_initial_values(layer) is not None:
                continue
            started, moved = layer.values.get(role), layer.values.get(other)
            if started is None or moved is None or not _is_at_start(layer, role, started):
                break
            if not np.isfinite(moved).all() or _is_uniform(moved):
                break
            found[layer.name] = role
        else:
            if found:
                return found
    return {}


def _is_at_start(layer: BatchNormLayer, role: str, value: Array) -> bool:
    return (
        layer.initial == "0/1"
        and value.size > 0
        and value.dtype.name not in _COARSE
        and bool(np.all(value == _START[role]))
        and (layer.facts is None or layer.facts.trained is not False)
    )


def _is_uniform(value: Array) -> bool:
    """Return whether a vector holds one number only: nothing was averaged into it, channel by channel."""
    return not value.size or bool(np.all(value == value.reshape(-1)[0]))
