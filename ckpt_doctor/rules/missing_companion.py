"""BN104: variables that belong to the statistics, and that the graph restores, are absent.

Zero-debiasing keeps `moving_mean/biased` and `moving_mean/local_step` beside the statistic, batch renormalisation keeps
`renorm_mean`, `renorm_stddev` and `moving_stddev`. Inference needs none of them. But the graph's saver asks for them,
so restoring fails with `Key bn/bn/moving_mean/biased not found in checkpoint`; and if a loader skips them, they start
at zero and the next training batch overwrites the statistics.

Usual cause: the checkpoint is older than the option in the code (`zero_debias_moving_mean=True`, `renorm=True`), or
    went through a format that does not store them (Keras 2.1.3 to 2.2 H5).

    slim.batch_norm(x, zero_debias_moving_mean=False)    # as when the checkpoint was written

False positives: a checkpoint that is only served: inference needs none of these variables. The training code may also
restore with a saver of its own, which does not ask for them.

Repair: `ckpt-doctor fix --method copy` computes them from the stored statistics, without data.

Repair is unsafe when: training goes on and was expected to debias a young average: the step counter is set as if the
average had settled, so statistics that are cold (BN202) stay cold longer.

Source: keras-team/keras issues 9003 and 9165, tensorflow/tensorflow issues 5827 and 32398.
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
        # Where a statistic is missing itself, its repair writes the companions too.
        names = {
            key: name
            for key, name in layer.absent_companions.items()
            if not layer.absent and (key.startswith("layer/") or key.rpartition("/")[0] in layer.variables)
        }
        if names:
            listed = ", ".join(sorted(names.values()))
            yield rule.finding(
                f"layer {layer.name} ({layer.channels} channels) has statistics but lacks {listed}, which the graph's "
                "saver restores; `fix --method copy` computes them from the statistics",
                layer=layer,
                variables=tuple(names.values()),
                certainty="proven",
            )


def _lacking(*keys: str, missing: tuple[str, ...] = ()) -> BatchNormLayer:
    layer = example(missing=missing, facts=described())
    return replace(layer, absent_companions={key: f"bn/bn/{key}" for key in keys})


RULE = Rule(
    code="BN104",
    name="missing-companion",
    severity="warning",
    repair="copy",
    check=_check,
    fixed="always",
    healthy=(
        lambda: holding(example(facts=described())),
        # All of it is missing: BN101 and BN102 say so.
        lambda: holding(
            _lacking("moving_mean/biased", "moving_mean/local_step", missing=("moving_mean", "moving_variance"))
        ),
    ),
    sick=(
        lambda: holding(_lacking("moving_mean/biased", "moving_mean/local_step")),
        lambda: holding(_lacking("layer/moving_stddev")),
    ),
)
