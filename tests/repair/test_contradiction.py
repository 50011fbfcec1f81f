"""The file's own word about the data: who speaks, what is left of a start, and when it is strong."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.contradiction import (
    FEWEST_SAMPLES,
    REFUSED,
    TOLD,
    Deviation,
    Witnesses,
    contradictions,
    deviations,
    find_witnesses,
    objections,
)
from ckpt_doctor.rules._examples import described, example
from tests.repair.layers import found, verdict_on

CHANNELS = 32
RANDOM = np.random.default_rng(0)
MEAN, VARIANCE = RANDOM.normal(0, 1, CHANNELS), RANDOM.uniform(0.1, 3, CHANNELS)
EPSILON = 1e-3


def layer_of(mean=MEAN, variance=VARIANCE, name="bn", share=0.0, start=1.0, **options):
    """Return a layer that stores an average with a share of its start in it."""
    stored = {"moving_mean": (1 - share) * mean, "moving_variance": share * start + (1 - share) * variance}
    return example(name, channels=len(mean), dtype=np.float64, **stored, **options)


def seen_at(mean=MEAN, variance=VARIANCE, samples=100):
    return Observation(samples, mean, variance, np.stack([mean] * 2), np.stack([variance] * 2))


def deviation_of(seen, layer=None):
    (single,) = deviations(Witnesses((layer or layer_of(),), cold=False, only_told=False), {"bn": seen})
    return single


def objections_of(seen, *layers, cold=False, only_told=False):
    layers = layers or (layer_of(),)
    return objections(
        [Witnesses(layers, cold=cold, only_told=only_told)], dict.fromkeys([one.name for one in layers], seen)
    )


@pytest.mark.parametrize("start", ["0/1", "0/0"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95, 0.995])
def test_right_data_agree_whatever_is_left_of_the_start(share, start):
    layer = layer_of(share=share, start=float(start[-1]), initial=start)
    single = deviation_of(seen_at(), layer)
    assert not single.is_beyond(TOLD)
    assert single.direction == pytest.approx(1)


@pytest.mark.parametrize(
    ("factor", "share"), [(255.0, 0.0), (255.0, 0.5), (255.0, 0.94), (1 / 255, 0.0), (1 / 255, 0.5)]
)
def test_no_share_of_a_start_explains_data_of_another_scale(factor, share):
    """A scale k makes k of a mean and k*k of a variance; a start that is left takes both by the same 1 - s."""
    single = deviation_of(seen_at(MEAN * factor, VARIANCE * factor**2), layer_of(share=share))
    assert single.is_beyond(REFUSED)
    assert (single.ratio > 1) is (factor > 1)


def test_a_layer_whose_start_is_not_known_has_none_left():
    cold = layer_of(share=0.9, initial=None)
    assert deviation_of(seen_at(), cold).spread > 1.5
    assert deviation_of(seen_at(), layer_of(initial=None)).spread == pytest.approx(1)


def test_layers_that_were_averaged_alike_have_one_share_of_their_start():
    """Each alone would be explained by a share of its own."""
    variance = VARIANCE / 1000
    warm, cold = layer_of(variance=variance), layer_of(variance=variance, name="cold", share=0.9)
    seen = dict.fromkeys(("bn", "cold"), seen_at(variance=variance))
    assert not any(contradictions([Witnesses((one,), False, False)], seen) for one in (warm, cold))
    assert contradictions([Witnesses((warm, cold), False, False)], seen)


@pytest.mark.parametrize(
    ("ratio", "spread", "shift", "offset", "direction", "told", "refused"),
    [
        (4.0, 4.0, 0.5, 0.5, 1.0, False, False),
        (6.1, 6.1, 0.0, 0.0, 1.0, True, False),
        (16.1, 16.1, 0.0, 0.0, 1.0, True, True),
        # Channels that grow and shrink: the median factor is 1, and the spread tells.
        (1.01, 17.0, 0.0, 0.0, 1.0, True, True),
        # A smaller variance alone is noise of training or a narrow choice of samples.
        (1 / 1000, 1000.0, 0.1, 0.5, 1.0, False, False),
        (1 / 1000, 1000.0, 0.1, 1.0, 1.0, True, False),
        (1 / 1000, 1000.0, 0.1, 1.6, 1.0, True, True),
        (1 / 100, 100.0, 0.1, 1.6, 1.0, True, False),
        (1 / 30, 30.0, 0.1, 9.0, 1.0, False, False),
        (1.0, 1.0, 0.76, 0.76, 1.0, True, False),
        (1.0, 1.0, 1.51, 1.51, 1.0, True, True),
        # The direction is told and never refuses.
        (1.0, 1.0, 0.0, 0.0, -0.01, True, False),
        (1.0, 1.0, 0.0, 0.0, -1.0, True, False),
    ],
)
def test_the_limits(ratio, spread, shift, offset, direction, told, refused):
    single = Deviation(layer_of(), ratio, spread, shift, offset, direction)
    assert (single.is_beyond(TOLD), single.is_beyond(REFUSED)) == (told, refused)


def test_the_numbers_are_medians_over_the_channels():
    variance, mean = VARIANCE.copy(), MEAN.copy()
    variance[: CHANNELS // 2 - 1] *= 1e6
    mean[: CHANNELS // 2 - 1] += 1e3
    assert not deviation_of(seen_at(mean, variance)).is_beyond(REFUSED)
    variance[: CHANNELS // 2 + 1] = VARIANCE[: CHANNELS // 2 + 1] * 1e6
    assert deviation_of(seen_at(mean, variance)).is_beyond(REFUSED)


def test_a_shift_counts_in_the_larger_standard_deviation():
    single = deviation_of(seen_at(MEAN + 3 * np.sqrt(4 * VARIANCE + EPSILON), 4 * VARIANCE), layer_of(initial=None))
    assert single.shift == pytest.approx(3)
    assert single.offset == pytest.approx(3)
    single = deviation_of(seen_at(MEAN + 3 * np.sqrt(VARIANCE + EPSILON), VARIANCE / 4), layer_of(initial=None))
    assert single.shift == pytest.approx(3)
    assert single.offset == pytest.approx(3 * np.median(np.sqrt((VARIANCE + EPSILON) / (VARIANCE / 4 + EPSILON))))


def test_means_that_point_the_other_way_are_told():
    assert deviation_of(seen_at(-MEAN)).direction == pytest.approx(-1)
    (text,) = objections_of(seen_at(-0.4 * MEAN)).told
    assert "point the other way (a cosine of -1.00)" in text
    # Small means and few channels have no direction.
    assert deviation_of(seen_at(-MEAN * 0.01), layer_of(MEAN * 0.01)).direction == 1
    few = layer_of(MEAN[:7], VARIANCE[:7])
    assert deviation_of(seen_at(-MEAN[:7], VARIANCE[:7]), few).direction == 1


def test_channels_that_never_vary_contradict_nothing():
    """Their variances are rounding errors: 1e-12 and 1e-9 are the same."""
    dead = np.full(CHANNELS, 1e-12)
    assert deviation_of(seen_at(variance=np.full(CHANNELS, 1e-9)), layer_of(variance=dead)).spread < 1.01


def test_few_samples_say_nothing():
    wrong = MEAN * 255, VARIANCE * 255**2
    assert objections_of(seen_at(*wrong, samples=FEWEST_SAMPLES - 1)).told == ()
    assert objections_of(seen_at(*wrong, samples=FEWEST_SAMPLES)).refusing


def test_what_is_told_has_numbers_and_is_refused_where_it_is_strong():
    layers = [layer_of(name=name, initial=None) for name in ("bn", "bn2")]
    said = objections_of(seen_at(MEAN * 255, VARIANCE * 255**2), *layers)
    (text,) = said.told
    assert said.refusing == said.told
    assert text.startswith("the data contradict the healthy layer bn")
    assert "the median of its 32 channels has 6.5e+04 times the variance that training stored" in text
    assert "2 of 2 such layers disagree with the data" in text
    assert "cold average" in objections_of(seen_at(MEAN * 255, VARIANCE * 255**2), cold=True).told[0]
    (text,) = objections_of(seen_at(MEAN / 255, VARIANCE / 255**2)).told
    assert "has 1/" in text
    assert objections_of(seen_at()) == type(said)()


def test_what_a_user_asked_to_replace_is_told_and_refuses_nothing():
    said = objections_of(seen_at(MEAN * 255, VARIANCE * 255**2), only_told=True)
    assert (len(said.told), said.refusing) == (1, ())


def test_layers_that_nothing_was_seen_of_are_passed_over():
    group = Witnesses((layer_of(), layer_of(name="elsewhere")), False, False)
    assert len(deviations(group, {"bn": seen_at()})) == 1
    assert deviations(group, {}) == ()
    assert not contradictions([group], {"bn": seen_at()})
    assert contradictions([group], {"bn": seen_at(MEAN * 255, VARIANCE * 255**2)})


def named(groups):
    return {(each.name, group.cold, group.only_told) for group in groups for each in group.layers}


def test_healthy_layers_and_cold_averages_speak():
    layers = [layer_of(name=name) for name in ("a", "b", "c", "d")]
    verdict = verdict_on(layers, found("BN202", "b"), found("BN203", "c"), found("BN205", "d"))
    assert named(find_witnesses(verdict, ["b", "c"])) == {("a", False, False), ("b", True, False), ("d", False, False)}
    # A healthy layer that --layers names is replaced because the user said so.
    assert ("a", False, True) in named(find_witnesses(verdict, ["a", "b", "c"]))
    # One that the model runs at several places averaged them in turns.
    assert ("a", False, True) in named(find_witnesses(verdict, [], ["a"]))


def test_frozen_statistics_may_be_of_other_data():
    frozen = layer_of(facts=described(mode="stored", trained=False))
    assert named(find_witnesses(verdict_on([frozen]), [])) == {("bn", False, True)}


@pytest.mark.parametrize(
    "rule", ["BN101", "BN103", "BN204", "BN206", "BN207", "BN208", "BN210", "BN211", "BN304", "BN305"]
)
def test_layers_whose_statistics_are_in_doubt_do_not_speak(rule):
    assert find_witnesses(verdict_on([layer_of()], found(rule, "bn")), []) == ()


@pytest.mark.parametrize(
    "layer",
    [
        example("bn", moving_mean=0, moving_variance=1),
        example("bn", missing=["moving_mean"]),
        example("bn", moving_variance=-1),
        example("bn", moving_mean=np.nan),
    ],
    ids=["start", "missing", "negative", "nan"],
)
def test_layers_that_hold_nothing_of_the_data_do_not_speak(layer):
    assert find_witnesses(verdict_on([layer]), []) == ()


def test_layers_are_put_together_by_how_they_were_averaged():
    slow = replace(layer_of(name="slow"), momentum=0.999)
    fast = replace(layer_of(name="fast"), momentum=0.9)
    groups = find_witnesses(verdict_on([slow, fast, replace(slow, name="slow2")]), [])
    assert sorted(len(group.layers) for group in groups) == [1, 2]
