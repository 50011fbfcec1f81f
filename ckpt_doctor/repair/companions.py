"""Everything that belongs to a statistic: what must be written with it.

A stale companion undoes a repair at the next training step: a zero-debiased average recomputes the statistic from
`biased` and `local_step`, batch renormalisation recomputes the variance from `moving_stddev`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import Array

# Where the decay is not known, so many updates are warm for every decay up to 0.99998.
_MANY_STEPS = 1 << 20
# Counters of updates: TensorFlow's zero-debiasing, and Sonnet 2's.
_STEPS = ("local_step", "counter")
# Copies of a statistic that must be what it is: exported twins, towers.
COPIES = ("twin", "tower")
# Below this share of the initial value, float32 no longer sees it.
_COLD_SHARE = 2.0**-24


def warm_steps(decay: float | None, stored: float = 0.0) -> float:
    """Return a number of updates after which nothing of the initial value is left in float32.

    Args:
        decay: d of `new = d * old + (1 - d) * batch`; None where it is not known.
        stored: The number of updates so far; the result is never less.
    """
    if decay is None or not 0 < decay < 1:
        return max(stored, float(_MANY_STEPS))
    return max(stored, float(math.ceil(math.log(_COLD_SHARE) / math.log(decay))))


def companion_values(
    layer: BatchNormLayer, statistics: Mapping[str, Array], stored_steps: Mapping[str, float]
) -> Iterator[tuple[str, str, Array]]:
    """Yield role, name and new value of every variable that must agree with the new statistics.

    Args:
        layer: The layer; its companions are those in the file and those that its model names.
        statistics: The new `moving_mean` and `moving_variance`, float64 of shape `(channels,)`.
        stored_steps: Name of a step counter to its stored value.
    """
    named = dict(layer.companions) | dict(layer.absent_companions)
    if layer.facts is not None:
        named |= {f"{companion.of}/{companion.role}": companion.name for companion in layer.facts.companions}
    epsilon = layer.epsilon or 0.0
    spread = np.sqrt(statistics["moving_variance"] + epsilon)
    for key, name in named.items():
        of, _, role = key.rpartition("/")
        counted = next((named[f"{of}/{word}"] for word in _STEPS if f"{of}/{word}" in named), "")
        steps = warm_steps(layer.momentum, stored_steps.get(counted, 0.0))
        if role in _STEPS:
            yield role, name, np.array(steps)
        elif role in ("biased", "hidden"):
            # tensorflow/python/training/moving_averages.py, `_zero_debias`: statistic = biased / (1 - d ** local_step);
            # sonnet/src/moving_averages.py does the same with `hidden` and `counter`.
            share = 1.0 if layer.momentum is None else 1.0 - layer.momentum**steps
            yield role, name, statistics[of] * share
        elif role == "shadow" or role.startswith(COPIES):
            yield role, name, statistics[of]
        elif role == "renorm_mean":
            yield role, name, statistics["moving_mean"]
        elif role in ("moving_stddev", "renorm_stddev"):
            yield role, name, spread
        elif role in ("accu_mean", "accu_variance"):
            # compare_gan keeps sums and their number (google/compare_gan, arch_ops.py): one of each says the same.
            yield role, name, statistics[f"moving_{role.removeprefix('accu_')}"]
        elif role == "accu_counter":
            yield role, name, np.array(1.0)
