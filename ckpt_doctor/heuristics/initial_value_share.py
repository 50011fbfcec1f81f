"""How much of its initial value a moving average still holds.

A moving average starts at a made-up value, a mean of 0 and a variance of 1, and forgets it at the rate of its decay d:
after N updates the share d^N is left. No variance can lie below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.finding import Certainty
from ckpt_doctor.heuristics.counted_updates import UpdateCount, count_updates, debiased_roles, is_averaged_otherwise
from ckpt_doctor.heuristics.extremes import extremes
from ckpt_doctor.heuristics.initial_values import at_initial_values
from ckpt_doctor.heuristics.median import median
from ckpt_doctor.heuristics.stored_in_training import ran_on

# At 5 % a variance of 0.1 is stored as 0.145: the smallest share that is worth a word (ckpt-doctor's own choice).
LARGEST_SHARE = 0.05
# float32 rounding over some thousand updates.
_ROUNDING = 1e-3
# Two channels agree to this part of their variance if both are d^N: rounding differs by the order of operations only.
_AGREEMENT = 1e-5
# The same against d^N itself, computed exactly: float32 rounding of some hundred updates adds up.
_EXACT = 1e-4
# Means of activations are within a few standard deviations of zero; ten times that is no activation's.
_LARGEST_DISTANCE = 30.0
# A sibling's variance below this part of d^N contradicts the counter: more than rounding.
_BELOW = 0.99
# Below this share float32 holds nothing of the initial value, and a variance of 0 contradicts nothing.
_SMALLEST_SHARE = 1e-6
# The least variance of a layer whose averages hold the share s is s + (1 - s) times that of a quiet channel. It is at
# most 1.5 times s in two layers and half of all in two thirds of the files of small nets that hold more than half, in
# one layer in half of the others, and in no layer of those that were fine-tuned, by the counters of their fine-tuning
# (benchmarks/cold_averages.py).
_TOUCHES = 1.5
# Inputs of one to three channels, standardised before, have variances of 1 for good.
_FEW_CHANNELS = 4
# The slowest decay in use, with what float32 can tell of it (slim's Inception: 0.9997).
_SLOWEST_DECAY = 0.9999
# A floor under all variances is a remainder only if it is most of them: in each layer the middle one is at most 1.5
# times the floor. So it is in half of the same files that hold more than half, and in none of the warm ones.
_NEAR_THE_FLOOR = 1.5
_LEAST_FLOOR = 0.5
# The variance of a channel that hardly varies; keeps dead channels out of the measure.
_SMALL_VARIANCE = 1e-3


@dataclass(frozen=True)
class InitialValueShare:
    """How cold a layer's averages are.

    Attributes:
        share: What is left of the initial value, 0 to 1.
        steps: Number of updates, where it is known.
        decay: Decay of the averages, where it is known.
        certainty: How sure that is. A step counter says how long an optimizer ran, not how often these averages were
            updated since they started: it proves something only together with a graph that counts the updates with the
            steps, or with channels that hold exactly d^N, and if no value contradicts it.
        roles: The statistics that are cold: both, or the one whose average does not correct for its start.
        exact: Whether the share is known, so that it can be taken out; else it is at most that.
    """

    share: float
    steps: int | None
    decay: float | None
    certainty: Certainty
    roles: tuple[str, ...] = STATISTICS
    exact: bool = True


class InitialValueShares:
    """What is left of the initial values in the layers of one checkpoint.

    What layers are compared by is computed once, so that the cost grows linearly with their number.

    Args:
        inventory: All layers of the checkpoint.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._found: dict[int, InitialValueShare | None] = {}
        self._steps = inventory.steps
        self._layers = {id(layer): layer for layer in inventory.layers}
        self._moved = _moved(inventory.layers)
        averaged = [found for found in self._moved.values() if found.layer.initial == "0/1"]
        self._counter = _Counter(averaged, inventory.steps)
        self._fingerprint = _fingerprint(averaged)
        self._floor = _floor(averaged)
        self._least = min((found.least for found in averaged), default=0.0)

    def of(self, layer: BatchNormLayer) -> InitialValueShare | None:
        """Return how cold a layer of the checkpoint is, or None where it is warm or nothing tells."""
        if id(layer) not in self._found:
            self._found[id(layer)] = self._measured(layer)
        return self._found[id(layer)]

    def is_open(self, layer: BatchNormLayer) -> bool:
        """Return whether a layer may be cold and nothing tells: no counter or decay, and no variance that rules it out.

        A variance below the smallest share that is worth a word does, in any layer: all of a file are updated alike.
        """
        return (
            self._may_be_cold(layer)
            and layer.initial == "0/1"
            and self._is_uncounted(layer)
            and self._least >= LARGEST_SHARE
            and self.of(layer) is None
        )

    def _may_be_cold(self, layer: BatchNormLayer) -> bool:
        """Return whether a layer has averages that started at a known value, moved, and do not correct for it."""
        moved = self._moved if self._layers.get(id(layer)) is layer else _moved([layer])
        return not (
            id(layer) not in moved
            or "moving_mean" not in layer.values
            or layer.initial is None
            or at_initial_values(layer) is not None
            or ran_on(layer) == "stored"
        )

    def _is_uncounted(self, layer: BatchNormLayer) -> bool:
        """Return whether no counter tells how cold a layer is at most."""
        count = count_updates(layer, self._steps)
        decay = layer.momentum if layer.momentum is not None else _SLOWEST_DECAY
        return count is None or (layer.momentum is None and decay**count.updates > LARGEST_SHARE)

    def _measured(self, layer: BatchNormLayer) -> InitialValueShare | None:
        if layer.momentum is None and self._fingerprint is None and self._floor is None:
            return None
        if not self._may_be_cold(layer):
            return None
        mean, variance = (layer.values[role] for role in STATISTICS)
        debiased = debiased_roles(layer)
        found = self._by_counter(layer, variance, debiased) or self._by_fingerprint(layer) or self._by_floor(layer)
        if found is None or not LARGEST_SHARE < found.share < 1:
            return None
        if layer.initial == "0/0":
            return found
        return found if _fits(None if debiased else mean, variance, found.share) else None

    def _by_counter(self, layer: BatchNormLayer, variance: Array, debiased: frozenset[str]) -> InitialValueShare | None:
        count = count_updates(layer, self._steps)
        if count is None or layer.momentum is None or not 0 < layer.momentum < 1:
            return None
        share = layer.momentum**count.updates
        if self._counter.contradicts(count):
            return None
        roles = tuple(role for role in STATISTICS if role not in debiased)
        return InitialValueShare(share, count.updates, layer.momentum, self._certainty(layer, share, count), roles)

    def _certainty(self, layer: BatchNormLayer, share: float, count: UpdateCount) -> Certainty:
        if layer.initial != "0/1":
            return "unproven"
        if self._fingerprint is not None and abs(self._fingerprint / share - 1) <= _EXACT:
            return "proven"
        facts = layer.facts
        if layer.evidence != "graph" or facts is None or not facts.updates_run:
            # A script that runs the updates by hand may run them as often as it likes.
            return "unproven"
        agreement = self._counter.agreement(count)
        if agreement == "proven" and not (facts.counted and facts.updates == 1):
            return "likely"
        return agreement

    def _by_fingerprint(self, layer: BatchNormLayer) -> InitialValueShare | None:
        if layer.initial != "0/1" or self._fingerprint is None or debiased_roles(layer):
            return None
        lowest, decay = self._fingerprint, layer.momentum
        steps = round(np.log(lowest) / np.log(decay)) if decay and 0 < decay < 1 else None
        return InitialValueShare(lowest, steps, decay, "likely")

    def _by_floor(self, layer: BatchNormLayer) -> InitialValueShare | None:
        if layer.initial != "0/1" or self._floor is None or not self._is_uncounted(layer):
            return None
        roles = tuple(role for role in STATISTICS if role not in debiased_roles(layer))
        return InitialValueShare(self._floor, None, None, "unproven", roles, exact=False)


class _Counter:
    """What the values of all layers say of the counters of a file.

    Statistics that were loaded before a counter began, or that are updated more often than it counts, lie below what it
    says is left of the initial value: one such layer contradicts it for all.

    Args:
        averaged: The layers of the checkpoint whose variances started at 1.
        steps: Training steps by the file's own counter, where it has one.
    """

    def __init__(self, averaged: Sequence[_Moved], steps: int | None) -> None:
        self._contradicted: dict[bool, bool] = {}
        self._touching: dict[bool, list[bool]] = {}
        for layer, variance, least in averaged:
            count = count_updates(layer, steps)
            facts = layer.facts
            if count is None or layer.momentum is None or not 0 < layer.momentum < 1:
                continue
            if ran_on(layer) == "stored" or (facts is not None and not facts.has_update_ops):
                continue
            share = layer.momentum**count.updates
            if share < _SMALLEST_SHARE:
                continue
            self._contradicted[count.own] = self._contradicted.get(count.own, False) or least < share * _BELOW
            if variance.size >= _FEW_CHANNELS:
                self._touching.setdefault(count.own, []).append(least <= share * _TOUCHES)

    def contradicts(self, count: UpdateCount) -> bool:
        """Return whether the statistics of any layer cannot have started at 0 and 1 when the counter began."""
        return self._contradicted.get(count.own, False)

    def agreement(self, count: UpdateCount) -> Certainty:
        """Return how sure the variances make a counter that counts updates: they begin at what is left of the 1."""
        touching = self._touching.get(count.own, [])
        if sum(touching) > 1 and 2 * sum(touching) >= len(touching):
            return "proven"
        return "likely" if any(touching) else "unproven"


class _Moved(NamedTuple):
    """A layer whose variance is an average that left 1 and does not correct for its start.

    Attributes:
        layer: The layer.
        variance: Its moving variance, finite.
        least: The least element.
    """

    layer: BatchNormLayer
    variance: Array
    least: float


def _moved(layers: Sequence[BatchNormLayer]) -> dict[int, _Moved]:
    """Return those of the layers whose variance is an average that left 1, by their `id`."""
    found = [
        (layer, variance)
        for layer in layers
        if (variance := layer.values.get("moving_variance")) is not None
        and variance.size
        and "moving_variance" not in debiased_roles(layer)
        and not is_averaged_otherwise(layer)
    ]
    return {
        id(layer): _Moved(layer, variance, least)
        for (layer, variance), (least, largest) in zip(found, extremes([each for _, each in found]), strict=True)
        if math.isfinite(least) and math.isfinite(largest) and not least == largest == 1
    }


def _fingerprint(averaged: Sequence[_Moved]) -> float | None:
    """Return the share that channels which never vary show: the smallest variance, the same in several layers."""
    lowest = min((found.least for found in averaged), default=0.0)
    if lowest <= 0:
        return None
    counts: list[int] = []
    # Layers that are copies of each other agree in everything.
    seen: set[bytes] = set()
    for _, variance, least in averaged:
        if least > lowest * (1 + _AGREEMENT) or (content := variance.tobytes()) in seen:
            continue
        seen.add(content)
        count = int(np.count_nonzero(variance <= least * (1 + _AGREEMENT)))
        if count < variance.size:
            counts.append(count)
    return lowest if sum(counts) >= 2 and len(counts) >= 2 else None


def _floor(averaged: Sequence[_Moved]) -> float | None:
    """Return the number that all variances of a file lie on, as what is left of the 1 is a floor under all of them."""
    floor = min((found.least for found in averaged), default=0.0)
    if len(averaged) < 2 or not _LEAST_FLOOR <= floor < 1:
        return None
    # The first layer that is above it ends the search: in most files that is the first of all.
    return floor if all(median(found.variance) <= _NEAR_THE_FLOOR * floor for found in averaged) else None


def _fits(mean: Array | None, variance: Array, share: float) -> bool:
    """Return whether statistics can be averages that started at 0 and 1 and still have so much of it.

    The average of variances cannot be below what is left of the 1, and what the batches brought in must look like
    activations: statistics that were loaded, and not averaged from the start, fail one or the other.

    Args:
        mean: The moving mean; None where it corrects for its start and so says nothing.
        variance: The moving variance.
        share: What may be left of the initial value.
    """
    variance = variance.astype(np.float64).reshape(-1)
    if variance.min() < share * (1 - _ROUNDING):
        return False
    if mean is None:
        return True
    mean = mean.astype(np.float64).reshape(-1)
    if mean.shape != variance.shape:
        return False
    batch_mean = mean / (1 - share)
    batch_variance = np.maximum(variance - share, 0) / (1 - share)
    return median(np.abs(batch_mean) / np.sqrt(batch_variance + _SMALL_VARIANCE)) < _LARGEST_DISTANCE
