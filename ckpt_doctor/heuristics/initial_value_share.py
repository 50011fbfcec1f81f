"""How much of its initial value a moving average still holds.

A moving average starts at a made-up value, a mean of 0 and a variance of 1, and forgets it at the rate of its decay d:
after N updates the share d^N is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.finding import Certainty
from ckpt_doctor.heuristics.initial_values import at_initial_values

# At 5 % a variance of 0.1 is stored as 0.145: the smallest share that is worth a word (ckpt-doctor's own choice).
LARGEST_SHARE = 0.05
# float32 rounding over some thousand updates.
_ROUNDING = 1e-3
# Two channels agree to this part of their variance if both are d^N: rounding differs by the order of operations only.
_AGREEMENT = 1e-5
# Means of activations are within a few standard deviations of zero; ten times that is no activation's.
_LARGEST_DISTANCE = 30.0
# So many variances above what is left of the 1 are no chance.
_MANY_CHANNELS = 16
# A sibling's variance below this part of d^N contradicts the counter: more than rounding.
_BELOW = 0.99
# The variance of a channel that hardly varies; keeps dead channels out of the measure.
_SMALL_VARIANCE = 1e-3
_ZERO_DEBIASED = ("local_step", "biased", "counter", "hidden")


@dataclass(frozen=True)
class InitialValueShare:
    """How cold a layer's averages are.

    Attributes:
        share: What is left of the initial value, 0 to 1.
        steps: Number of updates, where it is known.
        decay: Decay of the averages, where it is known.
        certainty: How sure that is. A step counter says how long an optimizer ran, not how often these averages were
            updated since they started, so it proves nothing: with the graph that updates them it is `likely`, alone
            `unproven`.
    """

    share: float
    steps: int | None
    decay: float | None
    certainty: Certainty


class InitialValueShares:
    """What is left of the initial values in the layers of one checkpoint.

    What layers are compared by is computed once, so that the cost grows linearly with their number.

    Args:
        inventory: All layers of the checkpoint.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._found: dict[int, InitialValueShare | None] = {}
        self._steps = inventory.steps
        self._smallest = _smallest_variances(inventory)
        self._fingerprint = _fingerprint(inventory)

    def of(self, layer: BatchNormLayer) -> InitialValueShare | None:
        """Return how cold a layer of the checkpoint is, or None where it is warm or nothing tells."""
        if id(layer) not in self._found:
            self._found[id(layer)] = self._measured(layer)
        return self._found[id(layer)]

    def _measured(self, layer: BatchNormLayer) -> InitialValueShare | None:
        mean, variance = layer.values.get("moving_mean"), layer.values.get("moving_variance")
        if mean is None or variance is None or not variance.size or not np.all(np.isfinite(variance)):
            return None
        if layer.initial is None or any(key.endswith(_ZERO_DEBIASED) for key in layer.companions):
            return None
        if at_initial_values(layer) is not None or (layer.facts is not None and layer.facts.trained is False):
            return None
        found = self._by_counter(layer, variance) or self._by_fingerprint(layer)
        if found is None or not LARGEST_SHARE < found.share < 1:
            return None
        return found if layer.initial == "0/0" or _fits(mean, variance, found.share) else None

    def _by_counter(self, layer: BatchNormLayer, variance: Array) -> InitialValueShare | None:
        if layer.momentum is None or not self._steps or not 0 < layer.momentum < 1:
            return None
        # Several devices, or calls of one layer, update it several times in a step.
        steps = self._steps * (layer.facts.updates if layer.facts is not None else 1)
        share = layer.momentum**steps
        # Statistics elsewhere that were not averaged from the start make it a fine-tuned model; few channels may be
        # above the share by chance.
        smallest = self._smallest.get((layer.momentum, layer.initial), np.inf)
        contradicted = smallest < share * _BELOW
        if contradicted and variance.size < _MANY_CHANNELS:
            return None
        likely = layer.initial == "0/1" and layer.evidence == "graph" and not contradicted
        return InitialValueShare(share, steps, layer.momentum, "likely" if likely else "unproven")

    def _by_fingerprint(self, layer: BatchNormLayer) -> InitialValueShare | None:
        if layer.initial != "0/1" or self._fingerprint is None:
            return None
        lowest, decay = self._fingerprint, layer.momentum
        steps = round(np.log(lowest) / np.log(decay)) if decay and 0 < decay < 1 else None
        return InitialValueShare(lowest, steps, decay, "likely")


def _smallest_variances(inventory: Inventory) -> dict[tuple[float | None, str | None], float]:
    """Return the smallest variance of all layers that are averaged the same way: by decay, from 0 and 1."""
    smallest: dict[tuple[float | None, str | None], float] = {}
    for layer in inventory.layers:
        variance = layer.values.get("moving_variance")
        if layer.initial == "0/1" and variance is not None and variance.size and np.isfinite(variance).all():
            kind = (layer.momentum, layer.initial)
            smallest[kind] = min(smallest.get(kind, np.inf), float(variance.min()))
    return smallest


def _fingerprint(inventory: Inventory) -> float | None:
    """Return the share that channels which never vary show: the smallest variance, the same in several layers."""
    smallest: list[tuple[float, int, int]] = []
    # Layers that are copies of each other agree in everything.
    seen: set[bytes] = set()
    for layer in inventory.layers:
        variance = layer.values.get("moving_variance")
        if layer.initial != "0/1" or variance is None or not variance.size or at_initial_values(layer) is not None:
            continue
        content = variance.tobytes()
        if content not in seen:
            seen.add(content)
            low = float(variance.min())
            smallest.append((low, int(np.count_nonzero(variance <= low * (1 + _AGREEMENT))), variance.size))
    lowest = min((low for low, _, _ in smallest), default=0.0)
    sharing = [
        count for low, count, size in smallest if lowest > 0 and low <= lowest * (1 + _AGREEMENT) and count < size
    ]
    return lowest if sum(sharing) >= 2 and len(sharing) >= 2 else None


def _fits(mean: Array, variance: Array, share: float) -> bool:
    """Return whether statistics can be averages that started at 0 and 1 and still have so much of it.

    The average of variances cannot be below what is left of the 1, and what the batches brought in must look like
    activations: statistics that were loaded, and not averaged from the start, fail one or the other.
    """
    mean, variance = mean.astype(np.float64).reshape(-1), variance.astype(np.float64).reshape(-1)
    if mean.shape != variance.shape or variance.min() < share * (1 - _ROUNDING):
        return False
    batch_mean = mean / (1 - share)
    batch_variance = np.maximum(variance - share, 0) / (1 - share)
    return bool(np.median(np.abs(batch_mean) / np.sqrt(batch_variance + _SMALL_VARIANCE)) < _LARGEST_DISTANCE)
