"""BN305: the moving statistics are trained by gradient.

A moving mean and variance are measured, not learned. If the optimizer's list contains them, and the layer reads them
while it trains, each step also moves them against the gradient: they drift to whatever lowers the loss, and a variance
may become negative. Optimizer slots on them, or an op that applies a gradient to them, prove it. Being in the
collection of trainable variables alone does no harm: a layer in training mode does not read them, so there is no
gradient.

Usual cause: hand-written layers whose `moving_mean` and `moving_variance` are plain variables.

    mean = tf.get_variable("moving_mean", [channels], trainable=False)

False positives: an optimizer may keep slots for variables that no gradient reached, all zero. Slots alone are therefore
`likely`; a graph that applies a gradient to the statistics proves it.

Repair: estimated from data by `ckpt-doctor fix` if `--unproven` or `--layers` asks for it. A receipt of such a repair
beside the file turns this into a note.

Repair is unsafe when: the layer also ran on these statistics while it trained: they are parameters that the weights are
adapted to, and measured ones change the model. Compare accuracy before and after (`--metric`).

Source: ethereon/caffe-tensorflow, kaffe/tensorflow/network.py (`trainable=True` for all four vectors).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    concerned: list[BatchNormLayer] = []
    proof: list[str] = []
    for layer in subject.inventory.layers:
        if layer.slots or (layer.facts is not None and layer.facts.gradient_trains):
            concerned.append(layer)
            proof += layer.slots
    if not concerned:
        return
    first = concerned[0]
    repaired = all(layer.name in subject.repaired for layer in concerned)
    shown = f"the optimizer keeps slots such as {proof[0]}" if proof else "the graph applies gradients to them"
    advice = "the receipt shows that they were re-estimated" if repaired else "estimate them from data"
    yield rule.finding(
        f"the moving statistics of {len(concerned)} layers (first: {first.name}, {first.channels} channels) are "
        f"trained by gradient: {shown}; make them trainable=False and {advice}",
        layers=tuple(layer.name for layer in concerned),
        variables=tuple(
            layer.variables[role]
            for layer in concerned
            for role in ("moving_mean", "moving_variance")
            if role in layer.variables
        ),
        severity="note" if repaired else None,
        # A slot shows that the optimizer was given the variable, not that a gradient reached it.
        certainty="proven" if all(_graph_trains(layer) for layer in concerned) else "likely",
    )


def _graph_trains(layer: BatchNormLayer) -> bool:
    return layer.evidence == "graph" and layer.facts is not None and layer.facts.gradient_trains


def _with_slots() -> BatchNormLayer:
    return replace(example(), slots=("bn/moving_mean/Momentum", "bn/moving_variance/Momentum"))


RULE = Rule(
    code="BN305",
    name="statistics-trained-by-gradient",
    severity="warning",
    repair="estimate",
    check=_check,
    healthy=(
        lambda: holding(example()),
        # A gradient for gamma and beta only.
        lambda: holding(example(facts=described())),
    ),
    sick=(
        lambda: holding(_with_slots()),
        lambda: holding(example(facts=replace(described(), gradient_trains=True))),
        lambda: replace(holding(_with_slots()), repaired=frozenset({"bn"})),
    ),
)
