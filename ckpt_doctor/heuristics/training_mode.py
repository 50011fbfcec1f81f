"""How a layer ran while it was trained, told by gradients that it cannot have had otherwise.

*The bias in front.* Behind the moments of a batch, a constant that is added to a channel changes nothing: the gradient
of a bias whose linear layer feeds the batch norm is exactly zero. Behind stored statistics it is
`gamma / sqrt(variance + epsilon)` times beta's. So bias and beta, which start at constants, either move alike or not.

*The scale.* Behind stored 0 and 1 the output depends on `gamma * kernel` and `gamma * bias` only. So for each channel
`<kernel, d kernel> + bias * d bias = gamma * d gamma`. Behind the moments of a batch the output does not depend on the
scale of the kernel, and the left side is zero.

The limits, and what they rest on, are in `docs/evidence.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ckpt_doctor.batchnorm import GradientTrace, TrainingMode
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.heuristics.median import median

_RanOn = Literal["batch", "stored"]

# Size of the bias's gradients over that of beta's, medians over channels. Measured: at most 3.2e-5 on batch moments, at
# least 0.17 on stored statistics.
_SLOTS_OF_BATCH = 1e-3
_SLOTS_OF_STORED = 5e-2
# Size of beta's gradients over that of gamma's, or of the elements of the kernel in front. Rounding leaves 1e-7 of it
# in float32, 4e-3 where activations are bfloat16.
_LEAST_OF_BETA = 0.03
# Spread of the bias over that of beta, by values alone. Measured: at most 0.30, and at least 0.35.
_SPREAD_OF_BATCH = 0.3
_SPREAD_OF_STORED = 0.35
# What rounding alone moves a bias by, over what gradients move beta by.
_SPREAD_OF_ROUNDING = 0.03
# Correlation of bias and beta over channels. Measured: at most 0.73 in size, and 1.00.
_CORRELATED = 0.9
_UNCORRELATED = 0.8
# Bias and beta that moved together from the start on.
_ONE_COURSE = 0.98
# So many standard deviations from 0, by Fisher's transformation: few channels correlate by chance.
_FAR_FROM_CHANCE = 4.3
_FEWEST_FOR_CORRELATION = 8
# A gamma that is nearly 0 lets no gradient through to the bias on stored statistics either.
_SMALLEST_SCALE = 0.05
# Slope of `<kernel, d kernel>` over `gamma * d gamma`, and their correlation. Measured: -0.31 to 0.44 on batch moments,
# 0.88 to 1.32 on stored 0 and 1, there with a correlation of at least 0.97; a slope must also be this many of its
# standard errors away from those of the other kind.
_SLOPE_OF_BATCH = 0.5
_SLOPES_OF_STORED = (0.8, 1.4)
_ERRORS = 3.0
_SLOPE_CORRELATED = 0.95
_SLOPE_UNCORRELATED = 0.7
_SLOPE_OF_EPSILON = 0.1
_FEWEST_FOR_SLOPE = 8


def by_bias(name: str, traces: Mapping[str, GradientTrace], epsilon: float | None) -> TrainingMode | None:
    """Return how a layer ran, as the bias in front of it tells; None where it does not.

    Args:
        name: The layer.
        traces: Those of `bias` and `beta`, and of `gamma` where there is one, each of `channels` numbers; else of the
            `kernel` in front.
        epsilon: What is added to its variance, where known.
    """
    bias, beta = traces.get("bias"), traces.get("beta")
    if bias is None or beta is None or bias.value.size != beta.value.size or not beta.value.size:
        return None
    gamma = traces.get("gamma")
    scale = np.ones(beta.value.size) if gamma is None else gamma.value.reshape(-1)
    if scale.size != beta.value.size or median(np.abs(scale).astype(np.float64)) < _SMALLEST_SCALE:
        return None
    if (beta.first is not None or beta.size is not None) and bias.first is None and bias.size is None:
        return None  # It was not trained.
    slots = _by_slots(name, bias, beta, traces.get("gamma") or traces.get("kernel"), scale, epsilon)
    values = _by_values(name, bias.value.reshape(-1), beta.value.reshape(-1), scale)
    if slots is None:
        return values
    if values is None:
        return slots
    # Slots speak of the last steps, values of all. Where they differ, both kinds of training happened.
    if values.ran_on != slots.ran_on:
        return None
    return replace(slots, from_the_start=slots.from_the_start or values.from_the_start)


def _by_slots(
    name: str,
    bias: GradientTrace,
    beta: GradientTrace,
    beside: GradientTrace | None,
    scale: Array,
    epsilon: float | None,
) -> TrainingMode | None:
    sizes = (bias.size, beta.size)
    what, by_first = "root of the second moment", False
    if sizes[0] is None or sizes[1] is None:
        sizes = (None if bias.first is None else np.abs(bias.first), None if beta.first is None else np.abs(beta.first))
        what, by_first = "momentum", True
    if sizes[0] is None or sizes[1] is None:
        return None
    of_bias, of_beta = (median(np.asarray(size, np.float64).reshape(-1)) for size in sizes)
    # What is exactly zero although rounding leaves something everywhere had no gradient for another reason.
    if not of_beta > 0 or (bias.first is not None and not bias.first.any()):
        return None
    ratio = of_bias / of_beta
    shown = f"the {what} of the gradients of the bias in front of it is {ratio:.2g} times that of beta's"
    if ratio <= _SLOTS_OF_BATCH:
        return TrainingMode("batch", "slots", shown, name)
    # Where another batch norm follows with nothing but linear layers between, beta has no gradient either: what is left
    # of both is rounding.
    usual = None if beside is None else (np.abs(beside.first) if by_first and beside.first is not None else beside.size)
    if ratio < _SLOTS_OF_STORED or usual is None or not of_beta >= _LEAST_OF_BETA * median(usual.reshape(-1)):
        return None
    return TrainingMode("stored", "slots", shown, name, _ran_on_one(sizes[0], sizes[1], scale, epsilon))


def _ran_on_one(of_bias: Array, of_beta: Array, scale: Array, epsilon: float | None) -> bool:
    """Return whether the variance that the gradients were divided by was 1, in nearly all channels that have any.

    `d bias = gamma / sqrt(variance + epsilon) * d beta`, with the gammas of the last steps.
    """
    alive = (of_beta > 0) & (np.abs(scale) >= _SMALLEST_SCALE)
    if not alive.any():
        return False
    root = np.sqrt(1.0 + (epsilon if epsilon is not None else 1e-3))
    implied = of_bias[alive] / of_beta[alive] * root / np.abs(scale[alive])
    return bool(np.mean((implied > 0.8) & (implied < 1.25)) >= 0.75)


def _by_values(name: str, bias: Array, beta: Array, scale: Array) -> TrainingMode | None:
    of_bias, of_beta = float(np.std(bias)), float(np.std(beta))
    # A bias that is the same everywhere to the last bit may never have been trained.
    if not np.ptp(bias) > 0 or not np.ptp(beta) > 0:
        return None
    spread = of_bias / of_beta
    # Behind a negative gamma they move against each other.
    correlation = float(np.corrcoef(bias, beta * np.sign(scale))[0, 1]) if np.std(beta * np.sign(scale)) > 0 else 0.0
    shown = (
        f"the bias in front of it varies {spread:.2g} times as much over channels as beta, with a correlation of "
        f"{correlation:.2f}"
    )
    unlike = beta.size >= _FEWEST_FOR_CORRELATION and abs(correlation) <= _UNCORRELATED
    if spread <= _SPREAD_OF_ROUNDING or (spread <= _SPREAD_OF_BATCH and unlike):
        return TrainingMode("batch", "weights", shown, name)
    if spread >= _SPREAD_OF_STORED and correlation >= _CORRELATED and _is_no_chance(correlation, beta.size):
        together = correlation >= _ONE_COURSE and 0.5 <= spread <= 2.0
        return TrainingMode("stored", "weights", shown, name, together)
    return None


def _is_no_chance(correlation: float, count: int) -> bool:
    """Return whether a correlation over so many channels is more than chance (Fisher, Biometrika 10, 1915).

    The inverse hyperbolic tangent of a correlation of independent numbers has the deviation `1 / sqrt(count - 3)`.
    """
    far = np.arctanh(min(correlation, 1.0 - 1e-9)) * np.sqrt(max(count - 3, 0))
    return bool(count >= _FEWEST_FOR_CORRELATION and far >= _FAR_FROM_CHANCE)


def by_scale(
    layers: Mapping[str, tuple[Mapping[str, GradientTrace], Sequence[int], float]],
) -> TrainingMode | None:
    """Return how layers that trained alike ran, as the scales of their kernels tell; None where they do not.

    Args:
        layers: Name to the traces of `kernel` and `gamma`, and of `bias` where there is one; the axes of the kernel
            that are its channels, counted from the end; and the factor of an L2 penalty on the kernel. Layers that lack
            something tell nothing.
    """
    lefts, rights, used = [], [], []
    for name, (traces, axes, l2) in layers.items():
        pair = _scales(traces, axes, l2)
        if pair is not None:
            lefts.append(pair[0])
            rights.append(pair[1])
            used.append(name)
    if not used:
        return None
    left, right = np.concatenate(lefts), np.concatenate(rights)
    if right.size < _FEWEST_FOR_SLOPE:
        return None
    slope = float(left @ right / (right @ right))
    length = float(np.sqrt((left @ left) * (right @ right)))
    correlation = float(left @ right) / length if length > 0 else 0.0
    shown = (
        f"the gradients of kernel and gamma, over {right.size} channels, answer to each other with a slope of "
        f"{slope:.2f} and a correlation of {correlation:.2f}"
    )
    rest = left - slope * right
    error = float(np.sqrt((rest @ rest) / (right @ right) / (right.size - 1)))
    small = abs(slope) <= _SLOPE_OF_BATCH and slope + _ERRORS * error <= _SLOPES_OF_STORED[0]
    # Epsilon alone leaves a slope of epsilon / (variance + epsilon), in all channels.
    if small and (abs(correlation) <= _SLOPE_UNCORRELATED or abs(slope) <= _SLOPE_OF_EPSILON):
        return TrainingMode("batch", "scale", shown, used[0])
    if _SLOPES_OF_STORED[0] <= slope <= _SLOPES_OF_STORED[1] and correlation >= _SLOPE_CORRELATED:
        # The stored means are near 0, or the two sides would differ by what they add. Variances it does not tell of.
        return TrainingMode("stored", "scale", shown, used[0])
    return None


def _scales(traces: Mapping[str, GradientTrace], axes: Sequence[int], l2: float) -> tuple[Array, Array] | None:
    """Return `<kernel, d kernel> + bias * d bias` and `gamma * d gamma` of each channel, in units of the latter."""
    kernel, gamma = traces.get("kernel"), traces.get("gamma")
    if kernel is None or gamma is None or kernel.first is None or gamma.first is None or not axes:
        return None
    if kernel.value.ndim < len(axes) + 1 - (len(axes) > 1):
        return None
    channels = [axis % kernel.value.ndim for axis in axes]
    summed = tuple(axis for axis in range(kernel.value.ndim) if axis not in channels)
    # A penalty f * sum(kernel ** 2) adds 2 * f * kernel to the gradient.
    left = (kernel.value * (kernel.first - 2.0 * l2 * kernel.value)).sum(axis=summed).reshape(-1)
    bias = traces.get("bias")
    if bias is not None and bias.first is not None and bias.value.size == left.size:
        left = left + (bias.value * bias.first).reshape(-1)
    right = (gamma.value * gamma.first).reshape(-1)
    if left.size != right.size:
        return None
    unit = float(np.sqrt(np.mean(right**2)))
    return (left / unit, right / unit) if unit > 0 else None
