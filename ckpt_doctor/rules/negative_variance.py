"""BN204: a variance that is not positive, even with epsilon.

Inference divides by the root of `moving_variance + epsilon`. If that sum is zero or less, the root is NaN or the
quotient infinite, for every input. A slightly negative variance alone is not a defect: converters that fold one epsilon
into the variance leave values like -9.99e-6 for a layer with an epsilon of 1e-5.

Usual cause: several updates of one shared layer in one step, whose changes add up and overshoot; a variance computed as
    E[x^2] - E[x]^2 in float32; statistics trained by gradient (BN305); or values of another role (BN206). Let a layer
    that is called more than once in a step update once:

    y1 = bn(x1, training=True); y2 = bn(x2, training=True)   # one call on tf.concat([x1, x2], 0) instead

False positives: the epsilon is not known and is larger than the rule assumes: `likely` if the sum is not above zero
even with 1e-3, `unproven` if it is so with 1e-5 only.

Repair: estimated from data by `ckpt-doctor fix`; what is not proven, with `--unproven` only.

Repair is unsafe when: the vectors are swapped (BN206): estimates repair the statistics and leave gamma and beta wrong;
use `--method copy` first. Statistics that were trained by gradient (BN305) are part of what the weights learned.

Source: tensorflow/tensorflow issues 14353 and 3290, shicai/MobileNet-Caffe issue 87 (the harmless case).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject

# Where the model does not say its epsilon: the smallest and the largest that frameworks use (PyTorch, Caffe, slim's
# ResNets: 1e-5; tf.layers, Keras, contrib: 1e-3).
_SMALLEST_EPSILON = 1e-5
_LARGEST_EPSILON = 1e-3
# Nobody adds so much; what lies below it is negative with every epsilon.
_NO_EPSILON = 0.1


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        variance = layer.values.get("moving_variance")
        if variance is None or not variance.size or "moving_variance" not in layer.variables:
            continue
        certain = layer.epsilon if layer.epsilon is not None else _LARGEST_EPSILON
        if certain >= 0 and variance.min() > 0:  # False for a vector with a NaN.
            continue
        values = variance.astype(np.float64).reshape(-1)
        # Zero exactly is a dead channel (BN205) as long as there may be an epsilon.
        proven = values + certain <= 0
        possible = (values < 0) & (values + _SMALLEST_EPSILON <= 0) if layer.epsilon is None else proven
        count = int(np.count_nonzero(possible))
        if not count:
            continue
        sure = bool(np.any(proven))
        epsilon = f"epsilon {layer.epsilon:g}" if layer.epsilon is not None else "any common epsilon"
        if not sure:
            epsilon = "an epsilon of 1e-5 (but not of 1e-3)"
        swap = subject.role_swaps.get(layer.name)
        finding = rule.finding(
            f"layer {layer.name}: {count} of {values.size} channels have a moving_variance that is not positive even "
            f"with {epsilon} (lowest {np.nanmin(values):.3g}): its square root is NaN at inference; estimate it from "
            "data",
            layer=layer,
            variables=(layer.variables["moving_variance"],),
            severity=None if sure else "warning",
            certainty=_certainty(layer, float(np.nanmin(values)), sure=sure),
        )
        # Where gamma, beta and statistics are mixed up for good, those of data would belong to another network.
        yield replace(finding, repair="none") if swap is not None and not swap.can_be_undone else finding


def _certainty(layer: BatchNormLayer, lowest: float, *, sure: bool) -> Certainty:
    """Return how sure it is; if the model does not give its epsilon, the limit rests on what frameworks use."""
    if not sure:
        return "unproven"
    return "likely" if layer.epsilon is None and lowest > -_NO_EPSILON else "proven"


RULE = Rule(
    code="BN204",
    name="negative-variance",
    severity="error",
    repair="estimate",
    check=_check,
    fixed="proven",
    healthy=(
        lambda: holding(example()),
        lambda: holding(example(moving_variance=[0, 1, 1])),
        # An epsilon of 1e-5 was taken out of the variance by a converter.
        lambda: holding(example(moving_variance=[-9.99e-6, 1, 1], epsilon=1e-5)),
        lambda: holding(example(moving_variance=[-9.99e-6, 1, 1], epsilon=None)),
        lambda: holding(example(moving_variance=[np.nan, 1, 1])),
    ),
    sick=(
        lambda: holding(example(moving_variance=[-0.002, 1, 1])),
        lambda: holding(example(moving_variance=[-1.1e-5, 1, 1], epsilon=1e-5)),
        lambda: holding(example(moving_variance=[0, 1, 1], epsilon=0.0)),
        lambda: holding(example(moving_variance=[-1e-4, 1, 1], epsilon=None)),
    ),
)
