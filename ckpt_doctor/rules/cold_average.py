"""BN202: the averages are cold: too few updates for their decay.

A moving average starts at a made-up value, a mean of 0 and a variance of 1, and forgets it at the rate of its decay d:
after N updates the share d^N of the initial value is left. With d = 0.999 and 200 updates that is 82 %, and the stored
variance is 0.82 + 0.18 times the true one. Training does not notice; inference is off by that much.

The number of updates is taken from the file's step counter, and believed only if every stored variance is at least d^N,
as it must be. Where a file has neither counter nor decay, channels that never vary give it away: their variance is
exactly d^N, the same number in several layers. Averages that correct for their start (zero debiasing) are never cold.

The finding is proven only if the training graph runs the updates in every step, whatever is fed, and the values agree.
A counter, a config, a placeholder or the optimizer alone make it unproven.

Usual cause: a decay for long training in a short one, or an evaluation after the first few hundred steps.

    tf.layers.batch_normalization(x, momentum=0.9, training=is_training)     # 0.99 is the default, slim's is 0.999

False positives: the counter is not the number of updates. Fine-tuned models load their statistics before the counter
begins, a warm start or another `compile` resets it; layers that are called several times in a step are updated as often
(shared layers, T times under `TimeDistributed` in Keras 3, twice with `keras.remat`), and gradient accumulation updates
once a micro-batch. Zero-debiased averages whose companions the file does not keep (Keras 2.1.3 to 2.2 H5) look cold and
are not. All of these are `unproven`.

Repair: estimated from data by `ckpt-doctor fix`. Without data, debiasing takes the initial value out exactly; what is
left is an average over training, not the statistics of the final weights. What is not proven is repaired with
`--unproven` only, from data or without. A receipt of such a repair beside the file turns this into a note.

Repair is unsafe when: the number of updates, the decay or the start is wrong: `--method debias` then takes out what was
never in, and a healthy model falls from 0.98 to 0.68. Estimates from data need data that are prepared as in training.

Source: tensorflow/tensorflow issue 1122, keras-team/keras issue 7177, tensorflow/models issue 4367.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        # The counter goes on saying what it said; a receipt says that the averages are new since.
        cold = None if layer.name in subject.repaired else subject.shares.of(layer)
        if cold is None:
            continue
        how = (
            f"{cold.steps} updates at a decay of {cold.decay:g}"
            if cold.steps is not None and cold.decay is not None
            else "channels that never vary have exactly this variance"
        )
        start = "0 and 1" if layer.initial == "0/1" else "0"
        yield rule.finding(
            f"layer {layer.name}: {cold.share:.0%} of the statistics of its {layer.channels} channels is "
            f"still their initial value {start} ({how}); train longer, lower the decay, or estimate them from data",
            layer=layer,
            variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
            certainty=cold.certainty,
        )


def _after(steps: int | None, momentum: float | None = 0.99, **values: Any) -> Subject:
    layer = replace(example(facts=described(), **values), momentum=momentum)
    subject = holding(layer)
    return Subject(replace(subject.inventory, steps=steps))


def _dead_channels(share: float) -> Subject:
    first = example("bn1", moving_mean=[0, 0.2, 0.1], moving_variance=[share, share + 0.4, share + 2])
    second = example("bn2", moving_mean=[0, 0.1, 0], moving_variance=[share, share + 1, share])
    return holding(first, second)


def _debiased() -> Subject:
    layer = replace(example(facts=described()), momentum=0.99, companions={"moving_mean/local_step": "bn/local_step"})
    return Subject(replace(holding(layer).inventory, steps=100))


RULE = Rule(
    code="BN202",
    name="cold-average",
    severity="warning",
    repair="estimate",
    check=_check,
    fixed="proven",
    healthy=(
        lambda: _after(400, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _after(None, moving_variance=[1.7, 0.9, 4.0]),
        # 0.99^100 is 0.37: a variance below it cannot come from an average that started at 1 a hundred updates ago.
        lambda: _after(100, moving_variance=[1.7, 0.3, 4.0]),
        _debiased,
        lambda: _dead_channels(0.04),
        # A receipt answers what the counter asks.
        lambda: replace(_after(100, moving_variance=[1.7, 0.9, 4.0]), repaired=frozenset({"bn"})),
    ),
    sick=(
        lambda: _after(100, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _after(290, moving_variance=[1.7, 0.9, 4.0]),
        lambda: _dead_channels(0.145),
    ),
)
