"""BN209: the vectors of one layer differ in length.

A batch-norm layer has one number a channel in each of its vectors. Two lengths in one layer mean that one of them is
another layer's, or that the layer normalised another axis than the one that its neighbours assume. No framework loads
it into one layer.

Usual cause: two models mixed in one file; or `axis=-1` (channels last) on data with channels first, so that the
    statistics are one for each column of the image.

    tf.layers.batch_normalization(x, axis=1)      # for data of shape [batch, channels, height, width]

False positives: names alone group the vectors (`likely`): two layers that share a scope, or exported variables that
share one shown name, look like one layer.

Repair: none; the file does not show which of them is right.

Repair is unsafe when: a vector is cut or padded by hand until it fits: each channel then gets the number of another
one. `fix` repairs nothing here.

Source: keras-team/keras issue 1517.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        if len(set(layer.shapes.values())) <= 1:
            continue
        lengths = {role: math.prod(shape) for role, shape in layer.shapes.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{layer.variables[role]} {list(layer.shapes[role])}" for role in lengths)
            yield rule.finding(
                f"layer {layer.name}: its vectors differ in length: {listed}; they cannot belong to the same layer; "
                "check how the file was assembled",
                layer=layer,
                variables=tuple(layer.variables[role] for role in lengths),
                certainty="likely" if layer.evidence == "names" else "proven",
            )


def _shaped(**shapes: tuple[int, ...]) -> BatchNormLayer:
    return replace(example(), shapes=shapes)


RULE = Rule(
    code="BN209",
    name="shape-mismatch",
    severity="error",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(_shaped(gamma=(3,), beta=(3,), moving_mean=(3,), moving_variance=(3,))),
        # Sonnet keeps its statistics ready for broadcasting.
        lambda: holding(_shaped(gamma=(3,), beta=(3,), moving_mean=(1, 1, 1, 3), moving_variance=(1, 1, 1, 3))),
        lambda: holding(_shaped(gamma=(1,))),
    ),
    sick=(
        lambda: holding(_shaped(gamma=(3,), beta=(3,), moving_mean=(8,), moving_variance=(8,))),
        lambda: holding(_shaped(gamma=(3,), moving_mean=())),
    ),
)
