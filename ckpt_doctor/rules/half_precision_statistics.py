"""BN208: half-precision statistics that overflowed, vanished or stalled.

The largest float16 is 65,504, and its steps near 1 are 0.001. A variance above that is stored as infinity; one below
6e-8 as 0; and a moving average stops moving when its change is less than half a step: with a decay of 0.9997 a variance
that starts at 1 never leaves it, and one on its way from 1 to 0.01 stops at 0.0176 with a decay of 0.99. bfloat16 has
the range of float32 and even coarser steps. Frameworks keep these statistics in float32 also when the rest is half
precision.

Usual cause: a model built with `dtype="float16"` instead of a mixed policy, or a file converted to float16 as a whole.

    keras.mixed_precision.set_global_policy("mixed_float16")    # keeps variables in float32

False positives: infinities are certain; variances of exactly 0 or 1 are `likely`: a constant channel has 0, and an
input that was whitened has 1 within half a step of the type.

Repair: estimated from data by `ckpt-doctor fix`, as far as the type of the file can hold it; what is not proven, with
`--unproven` only.

Repair is unsafe when: the type cannot hold the measured values: those above 65,504 are refused, small variances are
rounded to 0 again. Convert the model to float32 first.

Source: keras/src/layers/normalization/batch_normalization.py; matterport/Mask_RCNN issue 753 (variances of 8e4).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.initial_values import at_initial_values
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject

_LARGEST_FLOAT16 = 65504.0
_HALVES = ("float16", "bfloat16")
# Channels of one layer have different variances; a quarter of them at exactly 1 has another reason.
_STALLED_SHARE = 0.25


def _defects(layer: BatchNormLayer) -> Iterator[tuple[str, str]]:
    """Yield the role of a half-precision statistic and what is wrong with its values."""
    for role in ("moving_mean", "moving_variance"):
        stored = layer.values.get(role)
        # NumPy puts the name of a type together whenever it is asked.
        if stored is None or stored.dtype.itemsize != 2 or stored.dtype.name not in _HALVES:
            continue
        values = stored.astype(np.float64).reshape(-1)
        over = int(np.count_nonzero(np.isinf(values) | (np.abs(values) >= _LARGEST_FLOAT16)))
        if over and stored.dtype.name == "float16":
            yield role, f"{over} of {values.size} channels overflowed (the largest float16 is 65,504)"
        if role == "moving_mean" or at_initial_values(layer) is not None:
            continue
        mean = layer.values.get("moving_mean")
        moved = np.ones(values.shape, bool) if mean is None else mean.astype(np.float64).reshape(-1) != 0
        if moved.shape != values.shape:
            continue
        gone = int(np.count_nonzero((values == 0) & moved))
        if gone:
            yield role, f"{gone} of {values.size} channels underflowed to exactly 0"
        stuck = int(np.count_nonzero((values == 1) & moved))
        if stuck >= 2 and stuck >= _STALLED_SHARE * values.size:
            yield role, f"{stuck} of {values.size} channels are still exactly 1, although their means have moved"


def _has_overflowed(layer: BatchNormLayer) -> bool:
    return any(
        values.dtype.name == "float16" and np.isinf(values).any()
        for role in STATISTICS
        if (values := layer.values.get(role)) is not None
    )


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        defects = list(_defects(layer))
        if defects:
            role = defects[0][0]
            said = "; ".join(f"{role}: {what}" for role, what in defects)
            yield rule.finding(
                f"layer {layer.name} stores its statistics in {layer.values[role].dtype.name}: {said}; store them in "
                "float32, and estimate them from data",
                layer=layer,
                variables=tuple(dict.fromkeys(layer.variables[role] for role, _ in defects)),
                # A variance of exactly 0 or 1 may be the true one; an infinity is not.
                certainty="proven" if _has_overflowed(layer) else "likely",
            )


RULE = Rule(
    code="BN208",
    name="half-precision-statistics",
    severity="warning",
    repair="estimate",
    check=_check,
    fixed="proven",
    healthy=(
        lambda: holding(example(dtype=np.float16)),
        lambda: holding(example(dtype=np.float16, moving_variance=[6e4, 0.3, 2])),
        lambda: holding(example(moving_variance=1)),
        # Never updated: BN201.
        lambda: holding(example(dtype=np.float16, moving_mean=0, moving_variance=1)),
        # A dead channel.
        lambda: holding(example(dtype=np.float16, moving_mean=[0, 0.1, 0.1], moving_variance=[0, 0.2, 0.3])),
    ),
    sick=(
        lambda: holding(example(dtype=np.float16, moving_variance=[np.inf, 0.3, 2])),
        lambda: holding(example(dtype=np.float16, moving_variance=[65504, 0.3, 2])),
        lambda: holding(example(dtype=np.float16, moving_variance=1)),
        lambda: holding(example(dtype=np.float16, moving_variance=[0, 0.2, 0.3])),
    ),
)
