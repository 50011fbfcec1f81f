"""BN207: one common factor over the statistics of all layers.

Caffe stores sums and, in a third blob, the factor to divide them by (about 999.98 after long training). A converter
that forgets it leaves means and variances a thousand times too large. A common factor f multiplies mean and variance
alike, so the mean measured in standard deviations grows by the root of f: 32 for a thousand. Real activations have
means within about one standard deviation; here the means of every layer are many standard deviations from zero, and
every layer's variance is large.

Usual cause: `scale_factor = blobs[2]` was not applied when a Caffe model was converted.

    factor = 1 / blobs[2][0] if blobs[2][0] != 0 else 0
    moving_mean, moving_variance = blobs[0] * factor, blobs[1] * factor

False positives: networks whose inputs are large numbers (pixels in 0..255 without centring, physical units) and whose
layers all keep that scale. The finding rests on values alone, so it is always `likely`.

Repair: none, as the factor is not in the file; convert again, or estimate from data with `ckpt-doctor fix --layers
    '*'`.

Repair is unsafe when: the data are not prepared as the original model wants them (channel order, mean subtraction,
scale): `fix --layers '*'` then measures another distribution. Weights that were trained further after the conversion
expect the scaled values.

Source: BVLC/caffe issue 4885; caffe/src/caffe/layers/batch_norm_layer.cpp (blob 2).

"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.median import median
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject

# Fewer layers may all see large inputs.
_FEWEST_LAYERS = 3
# Median over a layer's channels of |mean| / sqrt(variance). In published networks the largest layer is below 2, the
# median layer below 1; Caffe's factor makes 10 of 0.3.
_LEAST_DISTANCE = 3.0
# Variances below this are ordinary.
_LEAST_VARIANCE = 30.0


def _measured(layer: BatchNormLayer) -> tuple[float, float] | None:
    """Return the medians of |mean| / sqrt(variance) and of the variance over the living channels, or None."""
    mean, variance = layer.values.get("moving_mean"), layer.values.get("moving_variance")
    if mean is None or variance is None or mean.size != variance.size:
        return None
    mean, variance = mean.astype(np.float64).reshape(-1), variance.astype(np.float64).reshape(-1)
    living = np.isfinite(mean) & np.isfinite(variance) & (variance > 0)
    if not living.any():
        return None
    return median(np.abs(mean[living]) / np.sqrt(variance[living])), median(variance[living])


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    measured: dict[str, tuple[float, float]] = {}
    for layer in subject.inventory.layers:
        found = _measured(layer)
        if found is not None and (found[0] < _LEAST_DISTANCE or found[1] < _LEAST_VARIANCE):
            return  # One ordinary layer is enough.
        if found is not None:
            measured[layer.name] = found
    if len(measured) < _FEWEST_LAYERS:
        return
    distance = median(np.array([distance for distance, _ in measured.values()]))
    for layer in subject.inventory.layers:
        if layer.name in measured:
            own, variance = measured[layer.name]
            yield rule.finding(
                f"layer {layer.name} ({layer.channels} channels): means are {own:.3g} standard deviations from zero "
                f"and the variance is {variance:.3g} (medians); all {len(measured)} layers show the same (median "
                f"{distance:.3g}), as if one factor multiplied all statistics; convert the model again and apply "
                "Caffe's scale factor",
                layer=layer,
                variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
                certainty="likely",
            )


def _scaled(factor: float, *names: str) -> Subject:
    mean, variance = np.array([0.4, -0.3, 1.0]), np.array([0.5, 0.3, 4.0])
    return holding(*(example(name, moving_mean=mean * factor, moving_variance=variance * factor) for name in names))


def _large_inputs() -> Subject:
    first = example("bn1", moving_mean=[120, 117, 104], moving_variance=[700, 600, 800])
    return holding(first, example("bn2"), example("bn3"))


RULE = Rule(
    code="BN207",
    name="scaled-statistics",
    severity="warning",
    repair="none",
    check=_check,
    healthy=(
        lambda: _scaled(1, "bn1", "bn2", "bn3"),
        lambda: _scaled(999.98, "bn1", "bn2"),
        _large_inputs,
        # The factor is on the variance alone in no known converter; large variances are healthy.
        lambda: holding(*(example(name, moving_variance=[900, 400, 800]) for name in ("bn1", "bn2", "bn3"))),
    ),
    sick=(lambda: _scaled(999.98, "bn1", "bn2", "bn3"),),
)
