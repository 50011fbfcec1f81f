"""BN203: NaN or Inf in the moving mean or the moving variance.

Inference subtracts the mean and divides by the root of the variance: a channel with a NaN returns NaN for every input,
and so do the layers after it. Training does not notice, because it normalises with its own batch; so the loss may look
normal to the end.

Usual cause: one batch with a NaN or an overflow, which a moving average never forgets (`d * NaN + (1 - d) * x` is NaN);
    or the variance of a batch of one value, which the unbiased estimate divides by zero.

False positives: none in the values: they are NaN or infinite. A layer that the served outputs do not use, such as an
auxiliary head of training, does no harm.

Repair: estimate the statistics from data. If an export holds each statistic twice and one copy is finite, that one is
copied over the other (`copy`, no data needed).

Repair is unsafe when: weights in front are NaN too (CK201), or the data produce the NaN again: look for its origin
first. Training that diverged has often spoilt the weights as well.

Source: tensorflow/tensorflow issue 34062 (a batch of one), keras-team/tf-keras issue 379 (NaN at inference only).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.exported_copies import finite_statistics, non_finite_copies, not_finite
from ckpt_doctor.rules.interface import Rule, Subject

_ESTIMATE = "estimate them from data"


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in not_finite(subject.inventory.layers):
        found: list[str] = []
        names: list[str] = []
        for role in STATISTICS:
            counts = non_finite_copies(layer, role)
            if not counts:
                continue
            names += counts
            own = layer.variables.get(role)
            if own in counts:
                found.append(f"{counts[own]} of {layer.values[role].size} channels of {role}")
            else:
                name, count = next(iter(counts.items()))
                found.append(f"{count} of {layer.channels} channels of {name}, the exported twin of {own},")
        copied = finite_statistics(layer) is not None
        advice = "copy the finite exported copy over the others with `fix --method copy`" if copied else _ESTIMATE
        finding = rule.finding(
            f"layer {layer.name}: {' and '.join(found)} are NaN or infinite; {advice}",
            layer=layer,
            variables=tuple(names),
            certainty="proven",
        )
        yield replace(finding, repair="copy") if copied else finding


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


def _exported(twin: list[float]) -> Subject:
    mean, variance = np.array([0.1, 0.2], np.float32), np.array([1, 2], np.float32)
    copies = {"moving_mean/twin": np.array(twin, np.float32), "moving_variance/twin": variance}
    layer = BatchNormLayer(
        "bn",
        {"moving_mean": "variables/4", "moving_variance": "variables/5"},
        companions={"moving_mean/twin": "_all_variables/7", "moving_variance/twin": "_all_variables/8"},
        values={"moving_mean": mean, "moving_variance": variance},
        companion_values=copies,
    )
    return Subject(Inventory((layer,)))


def _finite_twin() -> Subject:
    return _exported([0.1, 0.2])


def _nan_in_a_twin() -> Subject:
    return _exported([0.1, np.nan])


RULE = Rule(
    code="BN203",
    name="non-finite-statistics",
    severity="error",
    repair="estimate",
    check=_check,
    fixed="proven",
    healthy=(_finite, _the_largest_half, _missing_mean, _finite_twin),
    sick=(_one_nan, _infinite_variance, _nan_in_a_twin),
)
