"""BN101: a batch-norm layer has no moving mean.

At inference a batch-norm layer subtracts the moving mean. If the file lacks it, a strict loader stops with `Key
bn/moving_mean not found in checkpoint`; a lenient one falls back to the initial value 0, and the model returns garbage
without a warning.

Usual cause: the checkpoint was written by a saver that was given the trainable variables, and moving statistics are not
trainable. Give it all variables:
    saver = tf.train.Saver()                      # not tf.train.Saver(tf.trainable_variables())

False positives: instance or conditional normalisation that calls its vectors gamma and beta, if only names suggest
batch norm (`likely`), and a scale and shift next to a convolution (`unproven`); layers that also normalise with their
batch at inference and store no statistics; a `.meta` or `--model` of another model.

Repair: estimated from data by `ckpt-doctor fix`. If gradients show that the layer was trained on its initial values (a
bias in front of it and beta moved alike), `fix` restores those, without data.

Repair is unsafe when: the layer was trained in inference mode and then saved without its statistics: the true values
are those it trained with, 0 if it started from scratch and those of the original checkpoint if it was fine-tuned. With
the training graph, `fix` leaves such a layer alone. If only a serving graph exists, and neither biases nor optimizer
slots show it, the finding is `unproven`, and `fix` requires `--unproven` (0.890 -> 0.865 in one net). Also unsafe: data
that are not prepared as in training.

Source: tinghuiz/SfMLearner issue 17, zhengyang-wang/Unet_3D issue 5, Shiaoming/vid2depth issue 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules._missing import missing
from ckpt_doctor.rules.interface import Rule, Subject

_BOTH = ("moving_mean", "moving_variance")


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    yield from missing(rule, subject, "moving_mean")


def _only_shadow() -> Subject:
    shadow = {"moving_mean/shadow": "bn/moving_mean/ExponentialMovingAverage"}
    return holding(replace(example(missing=("moving_mean",)), companions=shadow))


RULE = Rule(
    code="BN101",
    name="missing-moving-mean",
    severity="error",
    repair="estimate",
    check=_check,
    fixed="likely",
    healthy=(
        lambda: holding(example()),
        lambda: holding(example(missing=("moving_variance",))),
        # It keeps no statistics by design.
        lambda: holding(replace(example(missing=_BOTH, facts=described(mode="batch", statistics=False)), absent={})),
        _only_shadow,
    ),
    sick=(lambda: holding(example(missing=("moving_mean",))), lambda: holding(example(missing=_BOTH))),
)
