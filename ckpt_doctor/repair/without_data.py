"""Repairs that need no data: what is in the file under another name, and averages that are merely cold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.heuristics.exported_copies import finite_statistics
from ckpt_doctor.heuristics.initial_value_share import InitialValueShare
from ckpt_doctor.heuristics.initial_values import at_initial_values, copy_at_initial_values
from ckpt_doctor.heuristics.role_swaps import RoleSwap

_STATISTICS = ("moving_mean", "moving_variance")
_COPIES = ("twin", "tower")


def copied_statistics(
    layer: BatchNormLayer, swap: RoleSwap | None, source: BatchNormLayer | None = None
) -> tuple[dict[str, Array], str]:
    """Return the roles of a layer with the values that they should have, and where these come from.

    Args:
        layer: A layer with a finding whose repair is `copy` (BN103 to BN106, BN201, BN203 of an export, BN206).
        swap: Which of its roles are swapped, if any.
        source: The layer that its weights follow, if it is that of a teacher or target network.

    Returns:
        Role to value, float64 of shape `(channels,)`; at least both statistics.

    Raises:
        RepairRefused: Nothing tells which of two copies is right.
    """
    if swap is not None:
        return _swapped_back(layer, swap), "swapped roles corrected"
    finite = finite_statistics(layer)
    if finite is not None:
        return finite, "from the exported copy that is finite"
    if source is not None:
        return {role: np.asarray(source.values[role], np.float64) for role in _STATISTICS}, f"from {source.name}"
    values: dict[str, Array] = {}
    sources = []
    for role in _STATISTICS:
        if role in layer.values:
            values[role] = np.asarray(layer.values[role], np.float64)
            continue
        key, value = _from_companion(layer, role)
        values[role] = value
        sources.append(layer.companions[key])
    trained = _trained_copy(layer)
    if trained:
        values |= trained
        sources.append("the copy that was trained")
    return values, f"from {' and '.join(sources)}" if sources else "companions computed from the statistics"


def _from_companion(layer: BatchNormLayer, role: str) -> tuple[str, Array]:
    """Return the key of the companion that holds a missing statistic, and the value of the statistic."""
    for kind in ("shadow", "drifted"):
        key = f"{role}/{kind}"
        if key in layer.companion_values:
            return key, np.asarray(layer.companion_values[key], np.float64).reshape(-1)
    biased, steps = layer.companion_values.get(f"{role}/biased"), layer.companion_values.get(f"{role}/local_step")
    if biased is None or steps is None or layer.momentum is None:
        raise RepairRefused(f"layer {layer.name}: the file has no copy of its {role}; estimate it from data")
    share = 1.0 - layer.momentum ** float(np.asarray(steps).reshape(-1)[0])
    if share <= 0:
        raise RepairRefused(f"layer {layer.name}: its biased {role} was never updated; estimate it from data")
    # tensorflow/python/training/moving_averages.py, `_zero_debias`.
    return f"{role}/biased", np.asarray(biased, np.float64).reshape(-1) / share


def _trained_copy(layer: BatchNormLayer) -> dict[str, Array]:
    """Return the statistics of a tower or twin that was trained, where the layer's own are untouched.

    Raises:
        RepairRefused: Two trained copies differ, and nothing tells which one is right.
    """
    kinds = {key.rpartition("/")[2] for key in layer.companion_values if key.rpartition("/")[2].startswith(_COPIES)}
    own_is_untouched = at_initial_values(layer) is not None
    for kind in sorted(kinds):
        copy = {role: layer.companion_values.get(f"{role}/{kind}") for role in _STATISTICS}
        found = {role: np.asarray(value, np.float64).reshape(-1) for role, value in copy.items() if value is not None}
        if set(found) != set(_STATISTICS):
            continue
        copy_is_untouched = bool(copy_at_initial_values(layer, kind))
        if own_is_untouched and not copy_is_untouched:
            return found
        if kind.startswith("twin") and not own_is_untouched and not copy_is_untouched and not _alike(layer, found):
            raise RepairRefused(
                f"layer {layer.name}: its two exported copies differ and both were trained; nothing shows which is "
                "right; estimate the statistics from data with --layers"
            )
    return {}


def _alike(layer: BatchNormLayer, copy: Mapping[str, Array]) -> bool:
    return all(np.array_equal(np.asarray(layer.values[role], np.float64), copy[role]) for role in copy)


def _swapped_back(layer: BatchNormLayer, swap: RoleSwap) -> dict[str, Array]:
    """Return the roles of a layer, put back.

    Only mean and variance in each other's place can be: in a nested Keras model that was saved frozen and loaded
    unfrozen, gamma and beta stand in the place of mean and variance, and converters exchange gamma and beta. A gamma
    looks like a variance there, and a beta like a mean.
    """
    values = {role: np.asarray(value, np.float64) for role, value in layer.values.items()}
    if swap.can_be_undone:
        values["moving_mean"], values["moving_variance"] = values["moving_variance"], values["moving_mean"]
        return values
    raise RepairRefused(
        f"layer {layer.name}: some of its gamma, beta, mean and variance are swapped, and the values do not show "
        "which is which; load the file in the order in which it was saved"
    )


def initial_statistics(layer: BatchNormLayer) -> dict[str, Array]:
    """Return what the statistics of a layer start at.

    Args:
        layer: A layer that was trained with them and lacks them.

    Returns:
        Role to value, float64 of shape `(channels,)`.

    Raises:
        RepairRefused: Nothing tells how many channels it has, or what its averages start at.
    """
    if layer.channels is None or layer.initial is None:
        what = "how many channels it has" if layer.channels is None else "what its averages start at"
        raise RepairRefused(f"layer {layer.name}: nothing shows {what}; pass the model with --model")
    return {
        "moving_mean": np.zeros(layer.channels),
        "moving_variance": np.full(layer.channels, 0.0 if layer.initial == "0/0" else 1.0),
    }


def debiased_statistics(layer: BatchNormLayer, cold: InitialValueShare | None) -> dict[str, Array]:
    """Return the statistics of a cold average with the initial value taken out.

    After N updates at a decay d, what is stored is `d**N * initial + (1 - d**N) * average`, with initial values 0 and 1
    (or 0 and 0). What stays is an average over training, not the statistics of the final weights.

    Args:
        layer: The layer.
        cold: What is left of its initial values.

    Returns:
        Role to value, float64 of shape `(channels,)`.

    Raises:
        RepairRefused: How much of the initial value is left is not known, or does not fit the values: a variance would
            come out negative.
    """
    if cold is None:
        raise RepairRefused(f"layer {layer.name}: nothing shows how many updates its averages had")
    if not cold.exact:
        raise RepairRefused(
            f"layer {layer.name}: at most {100 * cold.share:.0f} % of its initial value is left, and nothing shows how "
            "much; estimate its statistics from data"
        )
    kept = 1.0 - cold.share
    start = 1.0 if layer.initial == "0/1" else 0.0
    mean = np.asarray(layer.values["moving_mean"], np.float64)
    # An average that corrects for its start has nothing to be taken out.
    mean = mean / kept if "moving_mean" in cold.roles else mean
    variance = (np.asarray(layer.values["moving_variance"], np.float64) - cold.share * start) / kept
    # A channel that never varied has exactly the share of the initial value left: rounding may put it below zero.
    variance = np.where(np.abs(variance) <= 1e-5 * start, np.maximum(variance, 0.0), variance)
    if (variance < 0).any():
        raise RepairRefused(
            f"layer {layer.name}: with {100 * cold.share:.1f} % of the initial value left, {int((variance < 0).sum())} "
            "variances would be negative: the step count and the decay do not fit these values; estimate them from data"
        )
    return {"moving_mean": mean, "moving_variance": variance}
