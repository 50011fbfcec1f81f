"""How many updates the averages of a layer have seen, by the counters of its file, and which need no such count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer

# Batch renormalisation averages the standard deviation and squares it: what is left of the start is another number
# (tensorflow/python/keras/layers/normalization.py of 1.15, keras/src/layers/normalization/batch_normalization.py).
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
# Companions of averages that are divided by what they have seen: TensorFlow's zero-debiasing, Sonnet 2, compare_gan.
_DEBIASED = ("local_step", "biased", "counter", "hidden", "accu_counter")


@dataclass(frozen=True)
class UpdateCount:
    """How many updates an average has seen.

    Attributes:
        updates: The number.
        own: Whether the layer counts them itself (`local_step`); else it is the file's counter of training steps, times
            the updates in a step.
    """

    updates: int
    own: bool


def is_averaged_otherwise(layer: BatchNormLayer) -> bool:
    """Return whether the variance of a layer is not the average of variances, as under batch renormalisation."""
    if layer.facts is not None and layer.facts.renorm_clipped is not None:
        return True
    named = {*layer.companions, *layer.absent_companions}
    return bool(named) and any(f"layer/{role}" in named for role in _RENORM)


def debiased_roles(layer: BatchNormLayer) -> frozenset[str]:
    """Return the statistics of a layer whose averages correct for their start, so that they are never cold.

    slim's `zero_debias_moving_mean` corrects the mean and leaves the variance alone
    (tensorflow/contrib/layers/python/layers/layers.py: `batch_norm`).
    """
    if layer.facts is not None and layer.facts.zero_debiased:
        return frozenset(STATISTICS)
    if not layer.companions and not layer.absent_companions:
        return frozenset()
    named = {key for key in (*layer.companions, *layer.absent_companions) if key.rpartition("/")[2] in _DEBIASED}
    owners = {key.partition("/")[0] for key in named}
    return frozenset(STATISTICS) if "layer" in owners else frozenset(owners & set(STATISTICS))


def count_updates(layer: BatchNormLayer, steps: int | None) -> UpdateCount | None:
    """Return how many updates the averages of a layer have seen; None where nothing tells.

    Args:
        layer: The layer.
        steps: Training steps by the file's own counter, where it has one.
    """
    for role in STATISTICS:
        counted = layer.companion_values.get(f"{role}/local_step")
        if counted is not None and counted.size == 1 and np.isfinite(counted).all() and counted.reshape(-1)[0] > 0:
            return UpdateCount(round(float(counted.reshape(-1)[0])), own=True)
    each = 1 if layer.facts is None else layer.facts.updates
    return UpdateCount(steps * each, own=False) if steps and each is not None else None
