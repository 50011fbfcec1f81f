"""BN303: a serving graph normalises with the statistics of its batch.

The statistics are in the file, but the serving graph does not read them: its batch norm is in training mode. The output
for a sample depends on the other samples of its batch; a batch of one returns garbage.

Usual cause: the graph was exported from the training session, with `training=True` or the learning phase at 1.

    tf.keras.backend.set_learning_phase(0)        # before the model is built or loaded for export
    logits = network(images, is_training=False)   # in the function that builds the graph to export

False positives: generators and meta-learners that want the moments of the batch and still carry unused statistics; a
graph that was exported for an evaluation in training mode on purpose.

Repair: none by `ckpt-doctor fix`, as the statistics are not at fault; export the graph again in inference mode.

Repair is unsafe when: a graph in inference mode is exported before the statistics are known to be good: check BN201,
BN202 and BN401 first. A model that was tuned on the statistics of its batch answers differently in inference mode.
`fix` repairs nothing here.

Source: openvinotoolkit/openvino issue 21, tensorflow/tensorflow issue 3628, qubvel/segmentation_models issue 223. The
    graph's `is_training` is true also where the attribute is absent (tensorflow/core/ops/nn_ops.cc).
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    model = subject.inventory.model
    if model is None or model.evidence != "graph" or model.trains:
        return
    concerned = [
        layer
        for layer in subject.inventory.layers
        if layer.facts is not None
        and layer.facts.mode == "batch"
        and (layer.facts.moving_mean is not None or layer.facts.moving_variance is not None)
    ]
    if concerned:
        yield rule.finding(
            f"{len(concerned)} of {len(subject.inventory.layers)} layers (first: {concerned[0].name}, "
            f"{concerned[0].channels} channels) normalise with batch statistics in a serving graph, which ignores the "
            "stored statistics; export the graph again in inference mode",
            layers=tuple(layer.name for layer in concerned),
            variables=tuple(
                layer.variables[role]
                for layer in concerned
                for role in ("moving_mean", "moving_variance")
                if role in layer.variables
            ),
            certainty="proven",
        )


RULE = Rule(
    code="BN303",
    name="training-mode-in-serving",
    severity="error",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example(facts=described(mode="stored")), trains=False),
        lambda: holding(example(facts=described(mode="switch")), trains=False),
        # A graph that trains may.
        lambda: holding(example(facts=described(mode="batch")), trains=True),
        # It has no statistics: BN306.
        lambda: holding(example(facts=described(mode="batch", statistics=False)), trains=False),
    ),
    sick=(lambda: holding(example(facts=described(mode="batch")), trains=False),),
)
