"""Vectors that still hold exactly what they were initialised to, and signs that their layer was trained."""

from __future__ import annotations

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.checkpoint import Array

# Five standard deviations of the widest random start in use, N(1, 0.02) (Radford et al., DCGAN, 2015).
_RANDOM_START = 0.1
# What the averages of batch renormalisation start at (tensorflow/python/keras/layers/normalization.py, 1.15:
# `_add_renorm_weight`). Up to TensorFlow 1.13 they start at 0, with a weight that makes the first batch count in full.
_RENORM_STARTS = {"renorm_mean": 0.0, "renorm_stddev": 1.0}


def initial_values(mean: Array, variance: Array, start: str | None) -> str | None:
    """Return the pair of initial values that every channel has, `0/1` or `0/0`, or None.

    Args:
        mean: The moving mean, of shape `(channels,)`.
        variance: The moving variance, likewise.
        start: What the averages are known to start at; None: either.
    """
    if not mean.size or not variance.size or not holds_only(mean, 0):
        return None
    for pair, of_variance in (("0/1", 1), ("0/0", 0)):
        if start in (pair, None) and holds_only(variance, of_variance):
            return pair
    return None


def holds_only(vector: Array, number: float) -> bool:
    """Return whether every element is `number`, which it is where there is none.

    The first element nearly always tells, at a tenth of the cost of a pass over a short vector.
    """
    return not vector.size or (bool(vector.flat[0] == number) and bool(np.all(vector == number)))


def at_initial_values(layer: BatchNormLayer) -> str | None:
    """Return the pair of initial values that every channel of the layer's statistics has, `0/1` or `0/0`, or None.

    A variance of 0 is an initial value only for averages that start there; elsewhere it is a dead layer's.
    """
    known = layer.__dict__
    if "_at_initial_values" not in known:
        # Every second rule asks; a frozen layer may remember what follows from it.
        mean, variance = layer.values.get("moving_mean"), layer.values.get("moving_variance")
        held = None if mean is None or variance is None else initial_values(mean, variance, layer.initial)
        object.__setattr__(layer, "_at_initial_values", held)
    found: str | None = known["_at_initial_values"]
    return found


def copy_at_initial_values(layer: BatchNormLayer, kind: str) -> bool | None:
    """Return whether a copy of the layer's statistics (`shadow`, `twin`, `tower_1` …) holds the initial values.

    None where the file does not hold both vectors of the copy. What a copy starts at is not known, so both pairs count.
    """
    mean, variance = (layer.companion_values.get(f"{role}/{kind}") for role in STATISTICS)
    return None if mean is None or variance is None else initial_values(mean, variance, None) is not None


def affine_is_trained(layer: BatchNormLayer) -> bool | None:
    """Return whether gamma or beta has left its initial value; None for a layer with neither.

    Beta starts at 0 everywhere. Gamma starts at 1, in the last layer of a residual block at 0, and in TFLearn,
    TensorLayer and DCGAN at random within a few hundredths of 1, so beside a beta it is believed only further away.
    """
    gamma, beta = layer.values.get("gamma"), layer.values.get("beta")
    if beta is not None and np.any(beta != 0):
        return True
    if gamma is None or not gamma.size:
        return None if beta is None else False
    if np.all(gamma == 0) or np.all(gamma == 1):
        return False
    return bool(beta is None or np.any(np.abs(gamma - 1) > _RANDOM_START))


def renorm_uses_initial_values(layer: BatchNormLayer) -> bool:
    """Return whether training normalised with 0 and 1 because the averages of batch renormalisation never moved.

    Renormalisation corrects the batch's moments to its averages: `(x - batch_mean) / batch_stddev * r + d` with
    `r = batch_stddev / renorm_stddev` and `d = (batch_mean - renorm_mean) / renorm_stddev` is
    `(x - renorm_mean) / renorm_stddev` unless r or d is clipped (Ioffe, Batch Renormalization, 2017, algorithm 1).
    """
    facts = layer.facts
    if facts is None or facts.renorm_clipped is not False or "layer/renorm_mean_weight" in layer.companions:
        return False
    averages = {role: layer.companion_values.get(f"layer/{role}") for role in _RENORM_STARTS}
    return all(value is not None and bool(np.all(value == _RENORM_STARTS[role])) for role, value in averages.items())
