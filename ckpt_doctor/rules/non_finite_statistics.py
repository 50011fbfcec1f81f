"""BN203: NaN or Inf in the moving mean or the moving variance.

Inference subtracts the mean and divides by the root of the variance: a channel with a NaN among them answers NaN for
every input, and what lies behind it too. Training does not notice, because it normalises with its own batch; so the
loss may look healthy to the end.

Usual cause: one batch with a NaN or an overflow, which a moving average never forgets (`d * NaN + (1 - d) * x` is NaN);
    or the variance of a batch of one value, which the unbiased estimate divides by zero.

False positives: none in the values: they are NaN or infinite. A layer that the served outputs do not use, such as an
auxiliary head of training, does no harm.

Repair: estimate the statistics from data.

Repair is unsafe when: weights in front are NaN too (CK201), or the data produce the NaN again: look for its origin
first. Training that diverged has often spoilt the weights as well.

Source: tensorflow/tensorflow issue 34062 (a batch of one), keras-team/tf-keras issue 379 (NaN at inference only).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        found, names = [], []
        for role in ("moving_mean", "moving_variance"):
            values = layer.values.get(role)
            if values is None:
                continue
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
            if bad:
                found.append(f"{bad} of {values.size} channels of {role}")
                names.append(layer.variables[role])
        if found:
            yield rule.finding(
                f"layer {layer.name}: {' and '.join(found)} are NaN or infinite; estimate them from data",
                layer=layer,
                variables=tuple(names),
                certainty="proven",
            )


def _subject(mean: Array | None, variance: Array) -> Subject:
    values = {"moving_variance": variance} | ({} if mean is None else {"moving_mean": mean})
    return Subject(Inventory((BatchNormLayer("bn", {role: f"bn/{role}" for role in values}, values=values),)))


def _finite() -> Subject:
    return _subject(np.array([0.1, -3e38], np.float32), np.array([1, 3e38], np.float32))


def _the_largest_half() -> Subject:
    return _subject(np.array([65504.0], np.float16), np.array([65504.0], np.float16))


def _missing_mean() -> Subject:
    return _subject(None, np.array([1.0], np.float32))


def _one_nan() -> Subject:
    return _subject(np.array([0.1, np.nan], np.float32), np.array([1, 2], np.float32))


def _infinite_variance() -> Subject:
    return _subject(None, np.array([np.inf], np.float16))


RULE = Rule(
    code="BN203",
    name="non-finite-statistics",
    severity="error",
    repair="estimate",
    check=_check,
    fixed="proven",
    healthy=(_finite, _the_largest_half, _missing_mean),
    sick=(_one_nan, _infinite_variance),
)
