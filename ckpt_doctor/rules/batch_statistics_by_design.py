"""BN306: the model uses the statistics of its batch at inference, by design.

The graph reads no stored statistics, and has neither a variable for them nor an op that updates one (`likely` for a
graph that trains: another may serve). Some models do this on purpose: pix2pix and other generators treat batch norm of
a batch of one as instance norm, and meta-learners adapt to each task's batch. The answer for a sample then depends on
its batch, which a server that batches requests should know.

Usual cause: intent; `training=True` for generators, as in the pix2pix paper.

    net = tf.layers.batch_normalization(net, training=True)

False positives: statistics that are kept outside the layer, under names and in ops that the graph reader does not
connect with it.

Repair: none, nothing is broken.

Repair is unsafe when: the layer is switched to inference mode by hand: it has no statistics, and would run on 0 and 1.
`fix` repairs nothing here.

Source: ImagingLab/Colorizing-with-GANs issue 5, cbfinn/maml issue 9; Isola et al., 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    model = subject.inventory.model
    if model is None or model.evidence != "graph":
        return
    if model.trains and _may_be_kept_elsewhere(subject):
        return
    concerned = [
        layer
        for layer in subject.inventory.layers
        if layer.facts is not None
        and layer.facts.mode == "batch"
        and layer.facts.moving_mean is None
        and layer.facts.moving_variance is None
        and not layer.facts.has_update_ops
    ]
    if concerned:
        yield rule.finding(
            f"{len(concerned)} layers (first: {concerned[0].name}, {concerned[0].channels} channels) normalise with "
            "batch statistics and store none: the output for a sample depends on the rest of its batch; serve the "
            "model with the batch size it was designed for",
            layers=tuple(layer.name for layer in concerned),
            variables=tuple(name for layer in concerned for name in layer.variables.values()),
            # Another graph may serve.
            certainty="likely" if model.trains else "proven",
        )


def _may_be_kept_elsewhere(subject: Subject) -> bool:
    """Return whether the file has statistics that the graph connects with no layer."""
    inventory = subject.inventory
    return bool(inventory.not_judged) or any(layer.evidence != "graph" for layer in inventory.layers)


def _without_statistics() -> BatchNormLayer:
    facts = replace(described(statistics=False), mode="batch", has_update_ops=False)
    return replace(example(missing=("moving_mean", "moving_variance"), facts=facts), absent={})


RULE = Rule(
    code="BN306",
    name="batch-statistics-by-design",
    severity="note",
    repair="none",
    check=_check,
    healthy=(
        # Statistics that the training graph does not connect with the layer.
        lambda: holding(_without_statistics(), example("kept/elsewhere"), trains=True),
        lambda: holding(example(facts=described(mode="batch")), trains=False),
        lambda: holding(example(facts=described(mode="stored")), trains=False),
    ),
    sick=(
        lambda: holding(_without_statistics(), trains=False),
        lambda: holding(_without_statistics(), trains=True),
    ),
)
