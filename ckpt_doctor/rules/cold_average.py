"""BN202: the averages are cold: too few updates for their decay.

A moving average starts at a made-up value, a mean of 0 and a variance of 1, and forgets it at the rate of its decay d:
after N updates the share d^N of the initial value is left. With d = 0.999 and 200 updates that is 82 %, and the stored
variance is 0.82 + 0.18 times the true one. Training does not notice; inference is off by that much.

How many updates there were is told by the file's step counter, times the calls of a shared layer, the towers, or the
steps of time under Keras 3's `TimeDistributed`; or by a counter of the layer itself (`local_step`). It is believed only
if every variance is at least what must be left of the 1: one layer below that contradicts it for all, as its statistics
were loaded before the counter began, or are updated more often. If a file has neither counter nor decay, channels that
never vary show it: their variance is exactly d^N, the same number in several layers; or all variances of the file are
just above one number between 0.5 and 1. Averages that correct for their start (zero debiasing) are never cold; slim's
`zero_debias_moving_mean` corrects the mean only, and its variance is as cold as ever. Batch renormalisation averages
deviations, of which another part is left: it is not judged. A file without a counter (weights, many SavedModels) is not
judged unless its variances tell: one below 0.05 shows that nothing is left. `--strict` reports such a file.

The finding is proven if a training graph counts the updates with the steps (one op applies every gradient, updates the
statistics and adds one to the counter; no branch, loop or other saver is in between) and the variances begin at what is
left, or if channels that never vary hold exactly d^N. A proven one with more than half of the initial value left is an
error. With another graph it is likely; a config or a counter alone make it unproven.

Usual cause: a decay for long training in a short one, or an evaluation after the first few hundred steps.

    tf.layers.batch_normalization(x, momentum=0.9, training=is_training)     # 0.99 is the default, slim's is 0.999

False positives: the counter is not the number of updates. Fine-tuned models load their statistics before the counter
begins, a warm start or another `compile` resets it; `keras.remat` runs a layer twice and leaves no trace in the file;
hand-made gradient accumulation updates once a micro-batch. Zero-debiased averages of a program that does not record it
look cold and are not (Keras 2.1.3 to 2.3 is known and left out). All of these are `unproven`.

Repair: estimated from data by `ckpt-doctor fix`. Without data, debiasing removes the initial value exactly; the result
is an average over training, not the statistics of the final weights. What is not proven is repaired with `--unproven`
only, from data or without. A receipt of such a repair beside the file turns this into a note.

Repair is unsafe when: the number of updates, the decay or the start is wrong: `--method debias` then removes what was
never there, and a working model falls from 0.98 to 0.68. Estimates from data need data that are prepared as in
training.

Source: tensorflow/tensorflow issue 1122, keras-team/keras issue 7177, tensorflow/models issue 4367.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject

# With more than half of the start in it, a variance of 0.1 is stored as 0.55 at least: the model does not work.
_HALF = 0.5


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        # The counter goes on saying what it said; a receipt says that the averages are new since.
        cold = None if layer.name in subject.repaired else subject.shares.of(layer)
        if cold is None:
            continue
        proven = cold.certainty == "proven"
        how = "channels that never vary have exactly this variance"
        if cold.steps is not None and cold.decay is not None:
            how = f"{cold.steps} updates at a decay of {cold.decay:g}"
        elif not cold.exact:
            how = "every variance of the file is just above this share of the initial 1"
        start = "their initial values 0 and 1" if layer.initial == "0/1" else "their initial value 0"
        what = "the statistics of its {channels} channels still hold"
        if cold.roles == ("moving_variance",):
            what, start = "the moving_variance of its {channels} channels still holds", "its initial value 1"
        share = f"{100 * cold.share:.0f} %" if cold.exact else f"up to {100 * cold.share:.0f} %"
        yield rule.finding(
            f"layer {layer.name}: {what.format(channels=layer.channels)} {share} of {start} ({how}); train longer, "
            "lower the decay, or estimate the statistics from data",
            layer=layer,
            variables=tuple(layer.variables[role] for role in cold.roles),
            severity="error" if proven and cold.share > _HALF else None,
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
