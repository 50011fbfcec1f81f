"""BN401: on the given data, the layer's input has other statistics than the stored ones.

One inference pass with the stored statistics shows the real input of every layer. If the median channel is off by more
than a quarter of a standard deviation in its mean, or its variance by more than a factor of two, and by more than four
standard errors of the measurement, the statistics do not describe these data.

This finds what the file alone cannot show: averaged weights (EMA, SWA, soups) with the statistics of other weights,
preprocessing that differs from training, a domain that has shifted. The first layer that is off points to the cause: if
it is the very first, look at the preprocessing.

Usual cause: statistics of other weights. After averaging, run training batches through the model once more:
    ckpt-doctor fix CHECKPOINT --data TRAINING.npz --output PATH --layers '*'

False positives: data that the model was not made for: another scale (0..255 instead of 0..1), channel order,
augmentation or domain, a single class, padding without a mask. The stored statistics are then right, so the finding is
`likely` at most.

Repair: estimated from data by `ckpt-doctor fix --layers '*'`, if the data are what the model will serve.

Repair is unsafe when: the data are wrong and not the statistics: the repaired model fits the wrong data and fails on
the right ones (0.96 to 0.09 for pixels that were not scaled). First check that the stored statistics of the other
layers agree with the data.

Source: fadel/pytorch_ema issue 13, tensorflow/addons issue 2497, keras-team/keras issue 7177.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.agreement import mismatch
from ckpt_doctor.heuristics.stored_in_training import trained_on_stored
from ckpt_doctor.observation import Observation
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        seen = subject.observed.get(layer.name)
        off = None if seen is None else mismatch(layer, seen, subject.tolerance)
        # A layer that training ran on its initial values never had statistics of data (BN304).
        if seen is None or off is None or trained_on_stored(layer):
            continue
        yield rule.finding(
            f"layer {layer.name}: on {seen.samples:,} samples the median of its {layer.channels} channels has a mean "
            f"{off.shift:.2g} standard deviations from the stored one and {off.ratio:.2g} times the stored variance; "
            "check the preprocessing, or re-estimate the statistics from these data with --layers",
            layer=layer,
            variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
            certainty="likely",
        )


def _frozen() -> Subject:
    layer = example(facts=described(mode="stored", trained=False), moving_mean=0, moving_variance=1)
    return replace(_seen(shift=3), inventory=holding(layer).inventory)


def _seen(shift: float = 0.0, factor: float = 1.0, spread: float = 0.01, stored: float = 2.0) -> Subject:
    means = shift * np.sqrt(stored) + spread * np.array([[1.0], [-1.0]]) * np.ones((2, 3))
    variances = np.full((2, 3), stored * factor)
    seen = Observation(100, means.mean(axis=0), variances.mean(axis=0), means, variances)
    return replace(holding(example(moving_mean=0.0, moving_variance=stored)), observed={"bn": seen})


RULE = Rule(
    code="BN401",
    needs="data",
    name="statistics-do-not-match-data",
    severity="error",
    repair="estimate",
    check=_check,
    healthy=(
        lambda: holding(example()),
        _frozen,
        lambda: _seen(shift=0.2),
        lambda: _seen(factor=1.9),
        # So few and so different batches that it may be chance.
        lambda: _seen(shift=0.5, spread=1.0),
    ),
    sick=(lambda: _seen(shift=0.3), lambda: _seen(factor=2.5), lambda: _seen(factor=0.3)),
)
