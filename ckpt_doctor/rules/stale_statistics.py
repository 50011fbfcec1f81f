"""BN211: the weights are averages, but the statistics belong to other weights.

Averaging weights over training (exponential moving averages, stochastic weight averaging) makes better weights, but the
moving statistics were collected under the weights that were trained, not under their average. The averaged model
normalises with numbers of another network. It shows in the file when the weights equal an averaged copy bit for bit, or
when only the averages of the weights were kept, beside plain statistics.

Usual cause: `use_ema=True` in Keras, whose averages overwrite the weights at the end of `fit`; stochastic weight
    averaging without the pass over the data that its paper asks for.

    for x, _ in data: model(x, training=True)     # after the averages are in place, before saving

False positives: averages that equal the weights for another reason: they were just synchronised, or the learning rate
was 0. Averages whose statistics another tool has already estimated leave no receipt. Always `likely`.

Repair: estimated from data by `ckpt-doctor fix` if `--unproven` or `--layers` asks for it. A receipt of such a repair
beside the file turns this into a note.

Repair is unsafe when: the plain weights are served and the averages are not: the stored statistics belong to the plain
weights. Training that goes on from the repaired file continues with the statistics of the averages.

Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, section 3.2;
    tensorflow/addons issue 816, kristpapadopoulos/keras-stochastic-weight-averaging issue 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.initial_values import at_initial_values
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _average(layer: BatchNormLayer) -> str | None:
    """Return the name of the averaged copy that the layer's gamma or beta equals, or is replaced by; or None."""
    if "moving_mean" not in layer.values or at_initial_values(layer) is not None:
        return None
    if any(key.startswith("moving_") and key.endswith("/shadow") for key in layer.companions):
        return None
    for role in ("gamma", "beta"):
        for kind in ("shadow", "average"):
            name, copy = layer.copies.get(f"{role}/{kind}"), layer.companion_values.get(f"{role}/{kind}")
            if name is None:
                continue
            if role not in layer.variables:
                return name
            value = layer.values.get(role)
            if value is None or copy is None or value.size != copy.size or np.all(value == value.flat[0]):
                continue
            if same_values(value.reshape(-1), copy.reshape(-1)):
                return name
    return None


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        name = _average(layer) if layer.copies else None
        if name is None:
            continue
        repaired = layer.name in subject.repaired
        yield rule.finding(
            f"layer {layer.name} ({layer.channels} channels): its weights are averages ({name}), but its statistics "
            "were collected with the weights before averaging; "
            + ("the receipt shows that they were re-estimated" if repaired else "estimate them from data"),
            layer=layer,
            variables=tuple(
                layer.variables[role] for role in ("moving_mean", "moving_variance") if role in layer.variables
            ),
            severity="note" if repaired else None,
            certainty="likely",
        )


def _averaged(factor: float, *, alone: bool = False, shadowed: bool = False) -> BatchNormLayer:
    gamma = np.array([1.1, 0.9, 1.3], np.float32)
    layer = example(gamma=gamma, missing=("gamma",) if alone else ())
    companions = {"moving_mean/shadow": "bn/moving_mean/ExponentialMovingAverage"} if shadowed else {}
    return replace(
        layer,
        companions=companions,
        copies={"gamma/shadow": "bn/gamma/ExponentialMovingAverage"},
        companion_values={"gamma/shadow": (gamma * np.float32(factor)).astype(np.float32)},
    )


RULE = Rule(
    code="BN211",
    name="stale-statistics",
    severity="warning",
    repair="estimate",
    check=_check,
    healthy=(
        lambda: holding(example()),
        # Averages are kept beside the weights; the statistics are of the weights.
        lambda: holding(_averaged(0.99)),
        # The statistics were averaged too.
        lambda: holding(_averaged(1, shadowed=True)),
    ),
    sick=(
        lambda: holding(_averaged(1)),
        lambda: holding(_averaged(1, alone=True)),
        lambda: replace(holding(_averaged(1)), repaired=frozenset({"bn"})),
    ),
)
