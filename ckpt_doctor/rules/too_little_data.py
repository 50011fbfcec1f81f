"""BN402: the data are not enough to measure a layer's statistics well.

Either the standard error of a channel's mean, from the spread over the batches, is large against the channel's standard
deviation, or neighbouring batches resemble each other, as those of sorted data do. What is measured on such data is
uncertain, and batches of one class normalise each other away in `--method training`.

Usual cause: a few dozen samples, or a loader that goes through the classes one after the other.

False positives: the worst channel decides, so one channel that is rarely active is enough. Neighbouring samples of time
series and video resemble each other by nature.

Repair: more samples; the message names a sufficient number. For sorted data, a shuffled loader.

Repair is unsafe when: statistics are estimated from these data all the same, above all with `--method training` on
sorted ones. The finding itself repairs nothing.

Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3: 10**3 to 10**4 samples suffice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.heuristics.agreement import DEFAULT_EPSILON
from ckpt_doctor.observation import Observation
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject

# BN401 calls a mean wrong that is off by a quarter of a standard deviation; an error of half of that could be it.
LARGEST_ERROR = 0.125


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    unlike = []
    for layer in subject.inventory.layers:
        seen = subject.observed.get(layer.name)
        if seen is None:
            continue
        error = seen.largest_error(layer.epsilon or DEFAULT_EPSILON)
        names = tuple(layer.variables[role] for role in ("moving_mean", "moving_variance") if role in layer.variables)
        if error is None:
            message = f"{seen.samples:,} samples in one batch are not enough for an error estimate; use several batches"
            certainty: Certainty = "proven"
        elif error > LARGEST_ERROR:
            enough = math.ceil(seen.samples * (error / LARGEST_ERROR) ** 2)
            message = (
                f"with {seen.samples:,} samples the standard error of a channel's mean is {error:.2g} standard "
                f"deviations; use about {enough:,} samples"
            )
            # The error is estimated from a few batches itself.
            certainty = "likely"
        else:
            if seen.are_batches_unlike():
                unlike.append(layer)
            continue
        yield rule.finding(f"layer {layer.name}: {message}", layer=layer, variables=names, certainty=certainty)
    for layer in unlike:
        yield rule.finding(
            f"layer {layer.name}: neighbouring batches are alike, so the data seem to be sorted; shuffle them",
            layer=layer,
            certainty="likely",
        )


def _seen(means: list[float]) -> Subject:
    batch_means = np.array(means)[:, None] * np.ones((len(means), 3))
    variances = np.ones_like(batch_means)
    seen = Observation(64 * len(means), batch_means.mean(axis=0), variances.mean(axis=0), batch_means, variances)
    return replace(holding(example()), observed={"bn": seen})


RULE = Rule(
    code="BN402",
    needs="data",
    name="too-little-data",
    severity="warning",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example()),
        lambda: _seen([0.1, -0.1, 0.12, -0.11, 0.09, -0.1, 0.1, -0.1, 0.11, -0.1]),
        # In order, but too few to say so.
        lambda: _seen([-0.1, 0.0, 0.1]),
    ),
    sick=(
        lambda: _seen([0.5, -0.5]),
        lambda: _seen([0.0]),
        lambda: _seen([-0.1, -0.08, -0.05, -0.02, 0.02, 0.05, 0.08, 0.1]),
    ),
)
