"""BN101: a batch-norm layer has no moving mean.

At inference a batch-norm layer subtracts the moving mean. Where the file lacks it, a strict loader stops with `Key
bn/moving_mean not found in checkpoint`; one that skips what is missing runs on the initial value 0, and the model
answers garbage without a word.

Usual cause: the checkpoint was written by a saver that was given the trainable variables, and moving statistics are not
trainable. Give it all variables:
    saver = tf.train.Saver()                      # not tf.train.Saver(tf.trainable_variables())
Repair: estimated from data by `ckpt-doctor fix`.
Source: tinghuiz/SfMLearner issue 17, zhengyang-wang/Unet_3D issue 5, Shiaoming/vid2depth issue 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._missing import healthy_layer, missing, only_shadow, stateless, without
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    yield from missing(rule, subject, "moving_mean")


RULE = Rule(
    code="BN101",
    name="missing-moving-mean",
    severity="error",
    repair="estimate",
    check=_check,
    healthy=(healthy_layer, lambda: without("moving_variance"), stateless, lambda: only_shadow("moving_mean")),
    sick=(lambda: without("moving_mean"), lambda: without("moving_mean", "moving_variance")),
)
