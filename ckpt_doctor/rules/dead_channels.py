"""BN205: channels that never vary.

A moving variance of exactly 0 means that the channel had the same value at every position of every sample: a dead unit
in front of the layer, padding, or a batch of one. It is harmless while the channel stays constant. If it comes alive at
inference, it is amplified by up to `1 / sqrt(epsilon)`, 32 times for 1e-3 and 316 times for 1e-5.

Usual cause: a ReLU unit that died; inputs with constant channels; training with a batch size of 1 on vectors, where the
    variance of every batch is 0. For the last:

    model.fit(x, y, batch_size=32)      # not 1 in front of a batch norm on vectors

False positives: channels that are constant by design: padding, a category that never occurs, pruned units whose gamma
is 0. They are harmless as long as they stay constant.

Repair: none; the value is that of the data. A channel that matters needs another training.

Repair is unsafe when: `--layers` names such a layer and the data make the channel vary: a channel that training never
used then takes part in the answer. Without `--layers` nothing is changed.

Source: keras-team/keras issue 8794; for the amplification the definition of the layer (Ioffe, Szegedy, 2015, section
    3).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.initial_values import at_initial_values
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        variance = layer.values.get("moving_variance")
        if variance is None or at_initial_values(layer) is not None:
            continue
        count = int(np.count_nonzero(variance == 0))
        if count:
            epsilon = f" ({1 / np.sqrt(layer.epsilon):.0f} times here)" if layer.epsilon else ""
            yield rule.finding(
                f"layer {layer.name}: {count} of {variance.size} channels have a moving_variance of exactly 0; they "
                "never varied in training; if such a channel becomes active, it is amplified by 1 / "
                f"sqrt(epsilon){epsilon}",
                layer=layer,
                variables=(layer.variables["moving_variance"],),
                certainty="proven",
            )


RULE = Rule(
    code="BN205",
    name="dead-channels",
    severity="note",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example()),
        lambda: holding(example(moving_variance=[1e-38, 1, 1])),
        # An average that starts at 0 and was never updated: BN201.
        lambda: holding(example(moving_mean=0, moving_variance=0, initial="0/0")),
    ),
    sick=(
        lambda: holding(example(moving_variance=[0, 1, 1])),
        lambda: holding(example(moving_variance=0)),
        lambda: holding(example(moving_mean=0, moving_variance=0)),
    ),
)
