"""BN106: the file has the statistics under another automatic layer name.

Layers without a name of their own are numbered as they are made: `batch_normalization_7`. A second model in the same
session, another TensorFlow version (`batch_normalization_v1`) or a scope (`model/`, `tower_0/`) shifts the numbers, and
a loader looks for `batch_normalization_1/moving_mean` instead of the saved `batch_normalization_7/moving_mean`. Lenient
loaders then fall back to 0 and 1, although the values are in the file.

Reported if exactly one assignment fits: as many layers without statistics as there are statistics without a layer, in
the same order, with the same numbers of channels.

Usual cause: automatic names, and more than one model in one process.

    tf.keras.backend.clear_session()                         # before the model is built
    x = tf.keras.layers.BatchNormalization(name="stem_bn")(x)   # or a name that cannot drift

False positives: statistics left over from a removed branch or an older model, with as many layers and channels as the
layers that lack theirs. The match rests on names and shapes, so it is always `likely`.

Repair: `ckpt-doctor fix --method copy` writes the values under the names that the model uses.

Repair is unsafe when: the layers were created in another order than their numbers suggest: two layers with the same
number of channels get each other's statistics, and no shape contradicts. Compare the model's outputs, or estimate from
data instead.

Source: tensorflow/tensorflow issue 35906, Dobiasd/frugally-deep issue 156.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        drifted = {
            role: layer.companions[f"{role}/drifted"]
            for role in ("moving_mean", "moving_variance")
            if role in layer.absent and f"{role}/drifted" in layer.companions
        }
        if drifted:
            yield rule.finding(
                f"layer {layer.name} ({layer.channels} channels) has no statistics under its own name, and "
                f"{' and '.join(drifted.values())} belong to no layer: the numbering of the layers has shifted; `fix "
                "--method copy` copies them to the right names",
                layer=layer,
                variables=tuple(layer.absent[role] for role in drifted),
                certainty="likely",
            )


_BOTH = ("moving_mean", "moving_variance")


def _drifted() -> BatchNormLayer:
    names = {f"{role}/drifted": f"batch_normalization_7/{role}" for role in _BOTH}
    return replace(example(missing=_BOTH, facts=described()), companions=names)


RULE = Rule(
    code="BN106",
    name="drifted-name",
    severity="warning",
    repair="copy",
    check=_check,
    fixed="always",
    healthy=(lambda: holding(example()), lambda: holding(example(missing=_BOTH, facts=described()))),
    sick=(lambda: holding(_drifted()),),
)
