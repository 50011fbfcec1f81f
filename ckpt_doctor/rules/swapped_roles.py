"""BN206: mean, variance, gamma and beta are swapped.

All four vectors of a layer have one shape, so nothing stops a loader from putting each where another belongs. The
values show it: a "variance" with negative numbers beside a "mean" that is above zero in every channel. One such layer
may be chance or a diverged training; several that agree are not.

Usual cause: Keras' legacy HDF5 weights of a nested model, saved while it was frozen and loaded after it was not, or the
    other way round: the file lists weights by position, and the positions depend on `trainable`. Also converters that
    write running mean and variance in the wrong order, and darknet's files, in which beta comes first.

    inner.trainable = True                     # as when the weights were saved
    model.load_weights("weights.h5")           # or use .weights.h5, which is immune
    inner.trainable = False

False positives: two layers whose variance diverged to negative values in some channels (BN204) while their means are
above zero in all, as behind a ReLU. The finding rests on values alone, so it is always `likely`.

Repair: `ckpt-doctor fix --method copy --unproven` swaps mean and variance back, without data, if gamma and beta look
right; if the original file still exists, load it in the right order.

Repair is unsafe when: the loader itself exchanges the vectors (a nested Keras model, frozen when it was saved and not
when it is loaded): corrected values are exchanged again. If three or four vectors are permuted, mean and variance alone
do not undo it. This is why `fix` requires --unproven.

Source: keras-team/keras issues 12470 and 10784, gmalivenko/pytorch2keras issue 120.

"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.role_swaps import RoleSwap
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for found in subject.role_swaps.values():
        layer = found.layer
        odd = "moving_variance" if found.found_in_variance else "gamma"
        names = tuple(layer.variables[role] for role in (odd, found.variance_in))
        finding = rule.finding(
            f"layer {layer.name}: {names[0]} is {_range(layer, odd)} over {found.channels} channels, which is not a "
            f"valid {odd.replace('_', ' ')}, and {names[1]} is {_range(layer, found.variance_in)}, which could be a "
            f"{'variance' if found.can_be_undone else 'gamma or a variance'}; other layers show the same pattern; "
            + ("its own mean and variance look right; " if _only_gamma_and_beta(found) else "")
            + "load the weights in the order in which they were saved"
            + (", or `fix --method copy --unproven`" if found.can_be_undone else ""),
            layer=layer,
            variables=names,
            certainty="likely",
        )
        yield finding if found.can_be_undone else replace(finding, repair="none")


def _only_gamma_and_beta(found: RoleSwap) -> bool:
    """Return whether mean and variance look like a mean and a variance: then gamma and beta alone are out of place."""
    mean = found.layer.values["moving_mean"]
    return not found.found_in_variance and bool(np.any(mean < 0) and np.any(mean > 0))


def _range(layer: BatchNormLayer, role: str) -> str:
    values = layer.values[role].astype(np.float64)
    return f"{values.min():.3g} to {values.max():.3g}"


_MEANS = [-0.4, 0.3, 1.2, -0.1]
_VARIANCES = [0.5, 1.3, 4.0, 0.2]


def _swapped(name: str) -> BatchNormLayer:
    return example(name, channels=4, moving_mean=_VARIANCES, moving_variance=_MEANS)


def _right(name: str) -> BatchNormLayer:
    return example(name, channels=4, moving_mean=_MEANS, moving_variance=_VARIANCES)


def _nested() -> Subject:
    first = example("bn1", channels=4, moving_mean=[0.9, 1.1, 1.0, 1.2], moving_variance=[-0.1, 0.1, 0.2, -0.2])
    second = example("bn2", channels=4, gamma=_MEANS, beta=_VARIANCES, moving_mean=_MEANS, moving_variance=_VARIANCES)
    return holding(first, second)


RULE = Rule(
    code="BN206",
    name="swapped-roles",
    severity="error",
    repair="copy",
    check=_check,
    healthy=(
        lambda: holding(_right("bn1"), _right("bn2")),
        # One layer alone may be chance.
        lambda: holding(_swapped("bn1"), _right("bn2"), _right("bn3")),
        # A variance that diverged, beside means of both signs.
        lambda: holding(*(example(name, channels=4, moving_mean=_MEANS, moving_variance=_MEANS) for name in "abc")),
    ),
    sick=(
        lambda: holding(_swapped("bn1"), _swapped("bn2")),
        lambda: holding(*(example(name, channels=4, moving_mean=1, moving_variance=0) for name in ("bn1", "bn2"))),
        _nested,
    ),
)
