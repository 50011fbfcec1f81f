"""BN102: a batch-norm layer has no moving variance.

At inference a batch-norm layer divides by the root of the moving variance. Where the file lacks it, a strict loader
stops with `Key bn/moving_variance not found in checkpoint`; one that skips what is missing runs on the initial value 1,
and the model answers garbage without a word.

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
    yield from missing(rule, subject, "moving_variance")


RULE = Rule(
    code="BN102",
    name="missing-moving-variance",
    severity="error",
    repair="estimate",
    check=_check,
    healthy=(healthy_layer, lambda: without("moving_mean"), stateless, lambda: only_shadow("moving_variance")),
    sick=(lambda: without("moving_variance"), lambda: without("moving_mean", "moving_variance")),
)
