"""The file's own word about the data: what the data of training left in it, against the data that are given.

A batch-norm layer that is not broken stores the mean and the variance of what went into it in training, and so does a
cold average once its start is taken out. Data in 0..255 for a model of 0..1 contradict them, and a repair from such
data makes the model worse. Two things blur the comparison, and both are allowed for:

* What goes into a layer depends on how the layers before it normalise. While training ran, all of them normalised with
  the moments of each batch, so the comparison is made in training mode, and a broken layer does not blur it.
* A moving average still holds a share s of its start: `mean = (1 - s) * m` and `variance = s + (1 - s) * v`, with one s
  for all layers that are averaged alike. One number is left open, and the s that suits the data best is taken.

Measured on 64 nets of Keras 3 (3 to 8 layers; dense, convolution in one and two dimensions, depthwise, residual, batch
norm first; seven data sets; four optimizers, 60 to 900 steps, decays of 0.9 to 0.999, with and without dropout and
augmentation), each with its first, its last or about half of its layers broken, or cold as trained. Right data (8 to
450 samples of training or of a test set, a single class, 90 % of one class, shifted, flipped, zoomed, darker, of other
contrast) were refused in none of 2,126 comparisons, and the furthest (a single class) reached 0.72 of a limit, in
logarithms for variances; 20 were told, 19 of them single classes. Data 255 times too large were refused in 64 of 64
cases where the first layer spoke, and by 28 of 28 cold averages; 10 times too large in 60 and 24. Of 306 wrong data
that made the model worse by ten points or more there, 253 were told and 208 of them refused.

On 21 healthy nets of other scripts (Keras 3 and tf_keras: fine-tuned, frozen, shared, recompiled, saved again), with
the last layer broken, nothing was told of right data (50 samples and all).

What cannot be told: where no layer is healthy or cold, the file has no word. Where the layers that read the data are
the broken ones, their normalisation takes scale and offset out, and the others see nothing of it. Swapped channels and
other domains are told only where they change the moments beyond what a single class does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.heuristics.agreement import DEFAULT_EPSILON
from ckpt_doctor.heuristics.initial_values import at_initial_values
from ckpt_doctor.heuristics.stored_in_training import ran_on
from ckpt_doctor.observation import Observation
from ckpt_doctor.verdict import Verdict

_COLD = "BN202"
# Findings that leave a layer's statistics what they are: absent companions, channels that never vary.
_HARMLESS = ("BN104", "BN205")
# Findings about statistics, about layers whose statistics are not of the data of training, and about gradients.
_DISQUALIFY = ("BN1", "BN2", "BN304", "BN305")
# What is left of a start that may be assumed: up to 99.9 % in steps that move `1 - s` by a fifth.
_SHARES = tuple(1 - 0.8**step for step in range(1, 32))
_LARGEST_SHARE = 0.999
_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
# Part of epsilon that is added to variances before they are divided: channels that hardly vary differ by rounding. All
# of epsilon would hide data that are 255 times too small.
_FLOOR = 0.01
# Fewer samples tell nothing about a variance.
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Limits:
    """How far the median channel of a layer may be from what it saw in training.

    Attributes:
        larger: The variance on the data by that in training.
        smaller: The reverse. A few samples of data with heavy tails vary much less than all of them, and noise that
            training adds (dropout) is absent at inference; both leave the mean alone, so it must be off as well.
        offset: With `smaller`: the difference of the means, in standard deviations on the data.
        shift: The difference of the means, in standard deviations on the data or in training, the larger ones.
        direction: The cosine of the means over the channels, which must be above this; -1 asks nothing.
    """

    larger: float
    smaller: float
    offset: float
    shift: float
    direction: float


# Beyond these a repair is refused; right data reached 0.72 of them at most, by a shift of 1.08. Beyond the others it is
# told. A single class, and 20 samples or fewer, can turn the means of a layer around (a cosine of -0.83), so their
# direction is told and no more; 50 samples of right data had 0.54 at least.
REFUSED = Limits(larger=16.0, smaller=400.0, offset=1.5, shift=1.5, direction=-1.0)
TOLD = Limits(larger=6.0, smaller=60.0, offset=0.75, shift=0.75, direction=0.0)
# Means have a direction where their root mean square is so many standard deviations; chance makes less of 50 samples.
_LEAST_MEANS = 0.3
_FEWEST_CHANNELS = 8


@dataclass(frozen=True)
class Witnesses:
    """Layers whose stored statistics are of the data of training, and were averaged alike.

    Attributes:
        layers: The layers.
        cold: Whether much of their start is left in them.
        only_told: Whether what they say is told and refuses nothing: the user asked to replace healthy layers; the
            model runs a layer at several places, whose averages took turns and lack what the places differ by; training
            ran them on their stored statistics, which may be of other data (frozen layers of a fine-tuned model).
    """

    layers: tuple[BatchNormLayer, ...]
    cold: bool
    only_told: bool


@dataclass(frozen=True)
class Deviation:
    """How what goes into a layer differs from what went into it in training; medians over its channels.

    Attributes:
        layer: The layer.
        ratio: The variance on the data by that in training.
        spread: The same, or its reciprocal where a channel varies less: at least 1, so that channels which grow do not
            make up for others which shrink.
        shift: The difference of the means in standard deviations, those on the data or in training, the larger ones.
        offset: The same in standard deviations on the data.
        direction: The cosine of the means over the channels, in standard deviations on the data; 1 where the means are
            small or the channels are few.
    """

    layer: BatchNormLayer
    ratio: float
    spread: float
    shift: float
    offset: float
    direction: float

    def is_beyond(self, limits: Limits) -> bool:
        """Return whether the layer contradicts the data."""
        if self.shift > limits.shift or self.direction < limits.direction:
            return True
        if self.ratio > 1:
            return self.spread > limits.larger
        return self.spread > limits.smaller and self.offset > limits.offset

    @property
    def weight(self) -> float:
        """How much the layer is off, for comparison with other layers."""
        return max(float(np.log(self.spread)) / float(np.log(REFUSED.larger)), self.shift / REFUSED.shift)


def find_witnesses(
    verdict: Verdict, estimated: Collection[str], several_sites: Collection[str] = ()
) -> tuple[Witnesses, ...]:
    """Return the layers of a checkpoint that know the moments of the data of training.

    Args:
        verdict: What is wrong with the checkpoint.
        estimated: Names of the layers whose statistics the repair replaces by those of the data.
        several_sites: Names of the layers that the model runs at several places.
    """
    cold: set[str] = set()
    others: set[str] = set()
    for finding in verdict.findings:
        if finding.rule == _COLD:
            cold.update(finding.layers)
        elif finding.rule.startswith(_DISQUALIFY) and finding.rule not in _HARMLESS:
            others.update(finding.layers)
    groups: dict[tuple[object, ...], list[BatchNormLayer]] = {}
    for layer in verdict.analysis.inventory.layers:
        if layer.name in others or not _speaks(layer):
            continue
        is_cold = layer.name in cold
        is_replaced = layer.name in estimated and not is_cold
        only_told = is_replaced or layer.name in several_sites or ran_on(layer) == "stored"
        key = (is_cold, only_told, layer.momentum, layer.initial)
        groups.setdefault(key, []).append(layer)
    return tuple(Witnesses(tuple(layers), bool(key[0]), bool(key[1])) for key, layers in groups.items())


def _speaks(layer: BatchNormLayer) -> bool:
    """Return whether a layer has statistics of data: finite ones that moved."""
    mean, variance = (layer.values.get(role) for role in STATISTICS)
    if mean is None or variance is None or not mean.size or mean.size != variance.size:
        return False
    if at_initial_values(layer) is not None:
        return False
    return bool(np.isfinite(mean).all() and np.isfinite(variance).all() and np.all(variance >= 0))


def deviations(witnesses: Witnesses, seen: Mapping[str, Observation]) -> tuple[Deviation, ...]:
    """Return how the data differ from those of training, by the word of layers that were averaged alike.

    Args:
        witnesses: The layers; those that nothing was seen of are passed over.
        seen: Layer to its input on the data.
    """
    heard = [
        (layer, seen[layer.name])
        for layer in witnesses.layers
        if layer.name in seen and seen[layer.name].mean.size == layer.values["moving_mean"].size
    ]
    if not heard or min(observation.samples for _, observation in heard) < FEWEST_SAMPLES:
        return ()

    def assuming(share: float) -> tuple[Deviation, ...]:
        return tuple(_deviation(layer, observation, share) for layer, observation in heard)

    plain = assuming(0.0)
    if witnesses.layers[0].initial is None or not any(each.is_beyond(TOLD) for each in plain):
        return plain
    assumed = [plain, *map(assuming, (*_SHARES, *_shares_of_channels(heard)))]
    return min(assumed, key=lambda found: float(np.mean([each.weight for each in found])))


def _shares_of_channels(heard: Sequence[tuple[BatchNormLayer, Observation]]) -> Array:
    """Return what is left of the start by the variances of the channels, if the data are right.

    `s + (1 - s) * v` is stored of a variance v, which gives s; small variances need it exactly.
    """
    found = []
    for layer, seen in heard:
        start = 1.0 if layer.initial == "0/1" else 0.0
        stored = np.asarray(layer.values["moving_variance"], np.float64).reshape(-1)
        tells = np.abs(start - seen.variance) > 1e-6
        found.append((stored - seen.variance)[tells] / (start - seen.variance)[tells])
    shares = np.concatenate(found)
    if not shares.size:
        return shares
    return np.clip(np.quantile(shares, _QUANTILES), 0.0, _LARGEST_SHARE)


def _deviation(layer: BatchNormLayer, seen: Observation, share: float) -> Deviation:
    """Return how a layer's stored statistics, without that share of their start, differ from what was seen."""
    stored_mean, stored_variance = (np.asarray(layer.values[role], np.float64).reshape(-1) for role in STATISTICS)
    start = 1.0 if layer.initial == "0/1" else 0.0
    mean = stored_mean / (1 - share)
    variance = np.maximum(stored_variance - share * start, 0.0) / (1 - share)
    epsilon = layer.epsilon or DEFAULT_EPSILON
    factor = np.log((seen.variance + _FLOOR * epsilon) / (variance + _FLOOR * epsilon))
    distance = np.abs(mean - seen.mean)
    return Deviation(
        layer,
        ratio=float(np.exp(np.median(factor))),
        spread=float(np.exp(np.median(np.abs(factor)))),
        shift=float(np.median(distance / np.sqrt(np.maximum(variance, seen.variance) + epsilon))),
        offset=float(np.median(distance / np.sqrt(seen.variance + epsilon))),
        direction=_direction(mean / np.sqrt(seen.variance + epsilon), seen.mean / np.sqrt(seen.variance + epsilon)),
    )


def _direction(first: Array, second: Array) -> float:
    """Return the cosine of two vectors of means, of shape `(channels,)`; 1 where it tells nothing."""
    sizes = [float(np.sqrt(np.mean(np.square(each)))) for each in (first, second)]
    if first.size < _FEWEST_CHANNELS or min(sizes) < _LEAST_MEANS:
        return 1.0
    return float(np.mean(first * second) / (sizes[0] * sizes[1]))


@dataclass(frozen=True)
class Objections:
    """What speaks against a repair.

    Attributes:
        told: What the user should know, a sentence each.
        refusing: Those that are strong enough to refuse the repair.
    """

    told: tuple[str, ...] = ()
    refusing: tuple[str, ...] = ()

    def __add__(self, other: Objections) -> Objections:
        return Objections((*self.told, *other.told), (*self.refusing, *other.refusing))


def contradictions(groups: Sequence[Witnesses], seen: Mapping[str, Observation], limits: Limits = TOLD) -> bool:
    """Return whether any layer contradicts the data beyond the limits."""
    return any(each.is_beyond(limits) for group in groups for each in deviations(group, seen))


def objections(groups: Sequence[Witnesses], seen: Mapping[str, Observation]) -> Objections:
    """Return what the file says against the data.

    Args:
        groups: The layers that know the data of training.
        seen: Layer to its input on the data in training mode.
    """
    result = Objections()
    for group in groups:
        found = deviations(group, seen)
        beyond = [each for each in found if each.is_beyond(TOLD)]
        if beyond:
            text = _sentence(group, max(beyond, key=lambda each: each.weight), len(beyond), len(found))
            refuses = not group.only_told and any(each.is_beyond(REFUSED) for each in beyond)
            result += Objections((text,), (text,) if refuses else ())
    return result


def _sentence(group: Witnesses, worst: Deviation, beyond: int, heard: int) -> str:
    kind = "cold average" if group.cold else "healthy layer"
    others = f"; {beyond} of {heard} such layers disagree with the data" if heard > 1 else ""
    return f"the data contradict the {kind} {worst.layer.name}: {', '.join(_parts(worst))}{others}"


def _parts(found: Deviation) -> Iterator[str]:
    channels = int(found.layer.values["moving_mean"].size)
    if found.ratio > 1:
        yield f"the median of its {channels} channels has {found.spread:.3g} times the variance that training stored"
    else:
        yield f"the median of its {channels} channels has 1/{found.spread:.3g} of the variance that training stored"
    yield f"its mean is off by {found.shift:.2g} standard deviations"
    if found.direction < TOLD.direction:
        yield f"the means of its channels point the other way (a cosine of {found.direction:.2f})"
