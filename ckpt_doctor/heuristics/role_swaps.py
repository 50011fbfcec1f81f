"""Layers whose mean, variance, gamma and beta stand in each other's place, by their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.heuristics.extremes import extremes
from ckpt_doctor.heuristics.initial_values import holds_only

# Means of both signs are the rule; so many channels above zero in a row are chance once in 256 times.
_FEWEST_CHANNELS = 8
_FEWEST_LAYERS = 2
# A variance that diverged is negative in a few channels or in all; a vector of means, betas or gammas in between.
_SHARES = (0.1, 0.95)


@dataclass(frozen=True, eq=False)
class RoleSwap:
    """Two roles whose values stand in each other's place.

    Attributes:
        layer: The layer.
        variance_in: The role whose vector looks like the variance.
        found_in_variance: Whether the vector under `moving_variance` cannot be one; else that under `gamma`.
        channels: Number of its channels.
        can_be_undone: Whether the values tell where every vector belongs: in all layers that look so mean and variance
            are in each other's place, and nothing else. Where some have gamma or beta there too, or a gamma looks like
            a mean or a beta like a variance, all vectors may be two places off.
    """

    layer: BatchNormLayer
    variance_in: str
    found_in_variance: bool
    channels: int
    can_be_undone: bool = False


def find_role_swaps(layers: Sequence[BatchNormLayer]) -> dict[str, RoleSwap]:
    """Return the layers of a checkpoint that agree on having roles swapped, by name and in their order.

    Empty where only one layer looks so: that may be chance.
    """
    suspects = [found for layer in _not_plain(layers) if (found := _suspect(layer)) is not None]
    chosen: set[str] = set()
    for role in ("moving_mean", "beta"):
        agreeing = [found for found in suspects if found.variance_in == role]
        shifted = [found for found in suspects if found.variance_in != role] if role == "moving_mean" else []
        # In the nested model of Keras one layer has gamma and beta under its statistics, the next the reverse.
        enough = len(agreeing) >= _FEWEST_LAYERS or (agreeing and shifted)
        if enough and sum(found.channels for found in [*agreeing, *shifted]) >= _FEWEST_CHANNELS:
            chosen |= {found.layer.name for found in [*agreeing, *shifted]}
    swaps = {found.layer.name: found for found in suspects if found.layer.name in chosen}
    plain = all(
        found.variance_in == "moving_mean" and found.found_in_variance and not _others_look_shifted(found.layer)
        for found in swaps.values()
    )
    return {name: replace(found, can_be_undone=plain) for name, found in swaps.items()}


def _not_plain(layers: Sequence[BatchNormLayer]) -> list[BatchNormLayer]:
    """Return all layers but those whose variances are positive and whose gammas are not negative: few of most nets."""
    vectors = [
        (layer, role, value)
        for layer in layers
        for role in ("moving_variance", "gamma")
        if (value := layer.values.get(role)) is not None and value.size
    ]
    least = extremes([value for _, _, value in vectors])
    plain: dict[int, set[str]] = {}
    for (layer, role, _), (low, _) in zip(vectors, least, strict=True):
        if low > 0 or (low == 0 and role == "gamma"):
            plain.setdefault(id(layer), set()).add(role)
    return [
        layer
        for layer in layers
        if not {"moving_variance"} | (layer.values.keys() & {"gamma"}) <= plain.get(id(layer), set())
    ]


def _suspect(layer: BatchNormLayer) -> RoleSwap | None:
    if "moving_mean" not in layer.values or "moving_variance" not in layer.values:
        return None
    if not _is_odd(layer):
        return None
    values = {role: value.astype(np.float64).reshape(-1) for role, value in layer.values.items()}
    if any(np.count_nonzero(np.isfinite(value)) != value.size for value in values.values()):
        return None
    mean, variance = values["moving_mean"], values["moving_variance"]
    size = variance.size
    if holds_only(mean, 1) and holds_only(variance, 0):
        # Initial values, in each other's place.
        return RoleSwap(layer, "moving_mean", True, size)
    if _has_both_signs(variance):
        if _could_be_variance(mean):
            return RoleSwap(layer, "moving_mean", True, size)
        beta = values.get("beta")
        return RoleSwap(layer, "beta", True, size) if beta is not None and _could_be_variance(beta) else None
    gamma, beta = values.get("gamma"), values.get("beta")
    if gamma is not None and beta is not None and _has_both_signs(gamma) and _could_be_variance(beta):
        return RoleSwap(layer, "beta", False, size)
    return None


def _is_odd(layer: BatchNormLayer) -> bool:
    """Return whether a vector looks as that of another role may: the first question, and for most layers the last."""
    mean, variance, gamma = (layer.values.get(role) for role in ("moving_mean", "moving_variance", "gamma"))
    return (
        (variance is not None and _has_both_signs(variance))
        or (gamma is not None and _has_both_signs(gamma))
        or (mean is not None and variance is not None and holds_only(mean, 1) and holds_only(variance, 0))
    )


def _others_look_shifted(layer: BatchNormLayer) -> bool:
    """Return whether gamma looks like a mean, or beta like a variance."""
    gamma, beta = (
        None if value is None else value.astype(np.float64).reshape(-1)
        for value in (layer.values.get("gamma"), layer.values.get("beta"))
    )
    return (gamma is not None and _has_both_signs(gamma)) or (beta is not None and _could_be_variance(beta))


def _could_be_variance(vector: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    return bool(np.all(vector > 0) and np.any(vector != vector[0]))


def _has_both_signs(vector: Array) -> bool:
    share = np.count_nonzero(vector < 0) / vector.size if vector.size else 0.0
    return _SHARES[0] <= share <= _SHARES[1]
