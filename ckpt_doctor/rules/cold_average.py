"""BN202: the averages are cold: too few updates for their decay.

A moving average starts at a made-up value, a mean of 0 and a variance of 1, and forgets it at the rate of its decay d:
after N updates the share d^N of the initial value is left. With d = 0.999 and 200 updates that is 82 %, and the stored
variance is 0.82 + 0.18 times the true one. Training does not notice; inference is off by that much.

The number of updates is taken from the file's step counter, and believed only if every stored variance is at least d^N,
as it must be. Where a file has neither counter nor decay, channels that never vary give it away: their variance is
exactly d^N, the same number in several layers. Averages that correct for their start (zero debiasing) are never cold.

Usual cause: a decay for long training in a short one, or an evaluation after the first few hundred steps.

    tf.layers.batch_normalization(x, momentum=0.9, training=is_training)     # 0.99 is the default, slim's is 0.999

Repair: estimated from data by `ckpt-doctor fix`. Without data, `--method debias` takes the initial value out exactly;
what is left is an average over training, not the statistics of the final weights. A receipt of such a repair beside the
file turns this into a note.
Source: tensorflow/tensorflow issue 1122, keras-team/keras issue 7177, tensorflow/models issue 4367.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject
from ckpt_doctor.rules.never_updated import untouched

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
# The variance of a channel that hardly varies; keeps dead channels out of the measure.
_SMALL_VARIANCE = 1e-3
_ZERO_DEBIASED = ("local_step", "biased", "counter", "hidden")


@dataclass(frozen=True)
class Coldness:
    """How cold a layer's averages are.

    Attributes:
        share: What is left of the initial value, 0 to 1.
        steps: Number of updates, where it is known.
        decay: Decay of the averages, where it is known.
        certainty: How sure that is.
    """

    share: float
    steps: int | None
    decay: float | None
    certainty: Certainty


def coldness(layer: BatchNormLayer, inventory: Inventory) -> Coldness | None:
    """Return how cold a layer is, or None where it is warm or nothing tells."""
    mean, variance = layer.values.get("moving_mean"), layer.values.get("moving_variance")
    if mean is None or variance is None or not variance.size or not np.all(np.isfinite(variance)):
        return None
    if layer.initial is None or any(key.endswith(_ZERO_DEBIASED) for key in layer.companions):
        return None
    if untouched(layer) is not None or (layer.facts is not None and layer.facts.trained is False):
        return None
    found = _by_counter(layer, inventory) or _by_fingerprint(layer, inventory)
    if found is None or not LARGEST_SHARE < found.share < 1:
        return None
    return found if layer.initial == "0/0" or _fits(mean, variance, found.share) else None


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


def _by_counter(layer: BatchNormLayer, inventory: Inventory) -> Coldness | None:
    if layer.momentum is None or not inventory.steps or not 0 < layer.momentum < 1:
        return None
    # Several devices, or calls of one layer, update it several times in a step.
    steps = inventory.steps * (layer.facts.updates if layer.facts is not None else 1)
    share = layer.momentum**steps
    others = [other.values["moving_variance"] for other in inventory.layers if _is_like(layer, other)]
    # Statistics elsewhere that were not averaged from the start make it a fine-tuned model: few channels are chance.
    contradicted = any(variance.min() < share * 0.99 for variance in others)
    if contradicted and layer.values["moving_variance"].size < _MANY_CHANNELS:
        return None
    # An optimizer's counter in a Keras file says nothing of statistics that were loaded before it started.
    sure = layer.initial == "0/1" and layer.evidence == "graph" and not contradicted
    return Coldness(share, steps, layer.momentum, "proven" if sure else "likely")


def _is_like(layer: BatchNormLayer, other: BatchNormLayer) -> bool:
    """Return whether another layer is averaged the same way, so that the same would hold for it."""
    variance = other.values.get("moving_variance")
    same = other.momentum == layer.momentum and other.initial == layer.initial == "0/1"
    return same and variance is not None and variance.size > 0 and bool(np.isfinite(variance).all())


def _by_fingerprint(layer: BatchNormLayer, inventory: Inventory) -> Coldness | None:
    """Return the coldness that channels which never vary show: the smallest variance, the same in several places."""
    smallest: list[tuple[float, int, int]] = []
    # Layers that are copies of each other agree in everything.
    seen: set[bytes] = set()
    for other in inventory.layers:
        variance = other.values.get("moving_variance")
        fits = other.initial == "0/1" and variance is not None and variance.size > 0 and untouched(other) is None
        if fits and variance is not None and variance.tobytes() not in seen:
            seen.add(variance.tobytes())
            low = float(variance.min())
            count = int(np.count_nonzero(variance <= low * (1 + _AGREEMENT)))
            smallest.append((low, count, variance.size))
    lowest = min((low for low, _, _ in smallest), default=0.0)
    sharing = [
        (count, size)
        for low, count, size in smallest
        if lowest > 0 and low <= lowest * (1 + _AGREEMENT) and count < size
    ]
    if layer.initial != "0/1" or sum(count for count, _ in sharing) < 2 or len(sharing) < 2:
        return None
    steps = round(np.log(lowest) / np.log(layer.momentum)) if layer.momentum and 0 < layer.momentum < 1 else None
    return Coldness(lowest, steps, layer.momentum, "likely")


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        cold = coldness(layer, subject.inventory)
        if cold is None:
            continue
        how = (
            f"{cold.steps} updates at a decay of {cold.decay:g}"
            if cold.steps is not None and cold.decay is not None
            else "channels that never vary have exactly this variance"
        )
        start = "0 and 1" if layer.initial == "0/1" else "0"
        repaired = layer.name in subject.repaired
        advice = (
            "a receipt says that they were estimated anew"
            if repaired
            else "train longer, lower the decay, or estimate them from data"
        )
        yield rule.finding(
            f"layer {layer.name}: {cold.share:.0%} of the statistics of its {layer.channels} channels is "
            f"{'by its counter' if repaired else 'still'} their initial value {start} ({how}); {advice}",
            layer=layer,
            variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
            severity="note" if repaired else None,
            certainty=cold.certainty,
        )


def _after(steps: int | None, momentum: float | None = 0.99, **values: Any) -> Subject:
    layer = replace(example(facts=described(), **values), momentum=momentum)
    subject = holding(layer)
    return Subject(replace(subject.inventory, steps=steps))


def _dead_channels(share: float) -> Subject:
    first = example("bn1", moving_mean=[0, 0.2, 0.1], moving_variance=[share, share + 0.4, share + 2])
    second = example("bn2", moving_mean=[0, 0.1, 0], moving_variance=[share, share + 1, share])
    return holding(first, second)


def _debiased() -> Subject:
    layer = replace(example(facts=described()), momentum=0.99, companions={"moving_mean/local_step": "bn/local_step"})
    return Subject(replace(holding(layer).inventory, steps=100))


RULE = Rule(
    code="BN202",
    name="cold-average",
    severity="warning",
    repair="estimate",
    check=_check,
    healthy=(
        lambda: _after(400, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _after(None, moving_variance=[1.7, 0.9, 4.0]),
        # 0.99^100 is 0.37: a variance below it cannot come from an average that started at 1 a hundred updates ago.
        lambda: _after(100, moving_variance=[1.7, 0.3, 4.0]),
        _debiased,
        lambda: _dead_channels(0.04),
    ),
    sick=(
        lambda: _after(100, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _after(290, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _dead_channels(0.145),
        lambda: replace(_after(100, moving_variance=[1.7, 0.9, 4.0]), repaired=frozenset({"bn"})),
    ),
)
