"""How much of its initial value an average still holds: by counter and decay, or by channels that never vary."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.heuristics.initial_value_share import InitialValueShares
from ckpt_doctor.rules._examples import described, example

SHARE = 0.99**100  # 0.366
WARM_ENOUGH = {"moving_mean": [0.4, -0.1, 0.3, 0.2], "moving_variance": [1.7, 0.5, 4.0, 0.9], "channels": 4}


def averaged(name="bn", *, momentum=0.99, evidence="graph", companions=(), facts=None, **values):
    """Return a layer whose averages can have started at 0 and 1 a hundred updates ago."""
    layer = example(name, facts=facts or described(name), **(WARM_ENOUGH | values))
    return replace(layer, momentum=momentum, evidence=evidence, companions={key: f"{name}/{key}" for key in companions})


def share_of(layer, *others, steps=100):
    return InitialValueShares(Inventory((layer, *others), steps=steps)).of(layer)


def test_the_share_is_the_decay_to_the_power_of_the_updates():
    found = share_of(averaged())
    assert found.share == pytest.approx(SHARE)
    assert (found.steps, found.decay, found.certainty) == (100, 0.99, "likely")
    assert share_of(averaged(momentum=0.9), steps=10).share == pytest.approx(0.9**10)


@pytest.mark.parametrize(
    ("steps", "cold"),
    [(1, True), (100, True), (298, True), (299, False), (10_000, False), (0, False), (None, False)],
)
def test_five_percent_are_the_least_that_is_worth_a_word(steps, cold):
    """0.99^298 is 0.0500 and 0.99^299 is 0.0495."""
    layer = averaged(moving_variance=[1.7, 1.1, 4.0])
    assert (share_of(layer, steps=steps) is not None) is cold


@pytest.mark.parametrize("momentum", [None, 0.0, 1.0, 1.5, -0.5])
def test_without_a_decay_no_counter_tells(momentum):
    assert share_of(averaged(momentum=momentum)) is None


@pytest.mark.parametrize(("updates", "steps"), [(1, 100), (2, 200), (3, 300)])
def test_several_updates_a_step_count(updates, steps):
    layer = averaged(facts=replace(described(), updates=updates), momentum=0.995, moving_variance=[1.7, 0.9, 4.0])
    assert share_of(layer).steps == steps
    assert share_of(layer).share == pytest.approx(0.995**steps)


def test_a_layer_that_no_model_describes_is_updated_once_a_step():
    assert share_of(replace(averaged(), facts=None)).steps == 100


@pytest.mark.parametrize("evidence", ["config", "object-graph", "names"])
def test_a_counter_proves_nothing_and_without_the_graph_not_even_that_it_is_likely(evidence):
    assert share_of(averaged(evidence=evidence)).certainty == "unproven"


def test_averages_that_start_at_0_and_0_are_never_likely():
    cold = share_of(averaged(initial="0/0", moving_variance=[0.1, 0.01, 0.2]))
    assert (cold.certainty, cold.share) == ("unproven", pytest.approx(SHARE))


@pytest.mark.parametrize("companion", ["local_step", "biased", "counter", "hidden"])
def test_averages_that_correct_for_their_start_are_never_cold(companion):
    assert share_of(averaged(companions=[f"moving_variance/{companion}"])) is None
    assert share_of(averaged(companions=["moving_mean/shadow"])) is not None
    assert share_of(averaged(facts=replace(described(), zero_debiased=True))) is None
    assert share_of(averaged(companions=["layer/accu_counter"])) is None


def zero_debiased_mean(name="bn", *, updates=60, decay=0.999, **options):
    """Return a layer of slim's `zero_debias_moving_mean`: the mean is corrected for its start, the variance is not."""
    layer = averaged(name, momentum=decay, companions=["moving_mean/biased", "moving_mean/local_step"], **options)
    return replace(layer, companion_values={"moving_mean/local_step": np.array(updates, np.float32)})


def test_a_variance_stays_cold_beside_a_mean_that_corrects_for_its_start():
    """Its own counter says how many updates there were, whatever the counter of the file says."""
    variance = [0.95, 1.1, 1.3]
    for steps in (None, 60, 5_000):
        # A corrected mean may be anything.
        found = share_of(zero_debiased_mean(moving_variance=variance, moving_mean=[90, -50, 70]), steps=steps)
        assert found.share == pytest.approx(0.999**60)
        assert (found.steps, found.roles) == (60, ("moving_variance",))
    assert share_of(zero_debiased_mean(moving_variance=[0.9, 1.1, 1.3])) is None


def test_batch_renormalisation_averages_the_deviation_and_squares_it():
    """Of its variance (s + (1 - s) deviation)^2 another part is left than s; it is not judged by that."""
    assert share_of(averaged(companions=["layer/moving_stddev"])) is None
    assert share_of(averaged(facts=replace(described(), renorm_clipped=False))) is None
    # Nor does it contradict the counter for others.
    renorm = averaged("sibling", moving_variance=[1.7, 0.14, 4.0], companions=["layer/renorm_stddev"])
    assert share_of(averaged(), renorm) is not None


def test_a_companion_that_the_file_lacks_corrects_too():
    absent = {"moving_variance/local_step": "bn/moving_variance/local_step"}
    assert share_of(replace(averaged(), absent_companions=absent)) is None


@pytest.mark.parametrize(
    "layer",
    [
        averaged(moving_mean=0, moving_variance=1),  # Never updated: another defect.
        averaged(facts=described(trained=False)),
        averaged(initial=None),
        averaged(missing=["moving_mean"]),
        averaged(missing=["moving_variance"]),
        averaged(moving_variance=[1.7, np.nan, 4.0]),
        averaged(moving_variance=[1.7, np.inf, 4.0]),
        replace(averaged(), values={"moving_mean": np.zeros(0), "moving_variance": np.zeros(0)}),
    ],
)
def test_what_tells_nothing_is_not_cold(layer):
    assert share_of(layer) is None


@pytest.mark.parametrize("trained", [None, True])
def test_a_layer_that_may_have_been_trained_can_be_cold(trained):
    assert share_of(averaged(facts=described(trained=trained))) is not None


@pytest.mark.parametrize(
    ("lowest", "cold"), [(SHARE, True), (SHARE * 0.9995, True), (SHARE * 0.998, False), (0.3, False)]
)
def test_no_variance_can_be_below_what_is_left_of_the_1(lowest, cold):
    assert (share_of(averaged(moving_variance=[1.7, lowest, 4.0])) is not None) is cold


def test_the_rounding_that_is_allowed_is_a_thousandth_and_no_more():
    for lowest, cold in ((0.5 * (1 - 1e-3), True), (np.nextafter(0.5 * (1 - 1e-3), 0), False)):
        layer = averaged(momentum=0.5, moving_variance=[1.7, lowest, 4.0], dtype=np.float64)
        assert (share_of(layer, steps=1) is not None) is cold


def test_a_variance_below_the_share_is_possible_for_averages_that_start_at_0():
    assert share_of(averaged(initial="0/0", moving_variance=[1.7, 0.01, 4.0])) is not None


def test_a_sibling_below_the_share_contradicts_the_counter():
    """Its statistics were loaded and not averaged from the start: the model is fine-tuned, the counter began later."""
    loaded = averaged("sibling", moving_variance=[1.7, 0.3, 4.0])
    assert share_of(averaged(), loaded) is None
    rounding = averaged("sibling", moving_variance=[1.7, SHARE * 0.995, 4.0])
    assert share_of(averaged(), rounding).certainty == "likely"
    below = averaged("sibling", moving_variance=[1.7, SHARE * 0.985, 4.0])
    assert share_of(averaged(), below) is None


def test_of_many_channels_all_above_the_share_none_is_cold_beside_one_that_contradicts():
    """A fine-tuned model: one layer's variances are all above what the counter says is left, the other's are not."""
    loaded = averaged("sibling", moving_variance=[1.7, 0.3, 4.0])
    for channels in (3, 16, 64):
        assert share_of(averaged(channels=channels), loaded) is None


@pytest.mark.parametrize(
    "sibling",
    [
        # 0.9^100 is 3e-5: with this decay 0.3 is what it should be.
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], momentum=0.9),
        # It was frozen, so the counter says nothing of it.
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], facts=described(trained=False)),
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], facts=replace(described(), has_update_ops=False)),
        # How often it is updated is not known.
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], facts=replace(described(), updates=None)),
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], facts=replace(described(), zero_debiased=True)),
        # 0.5^100 is nothing in float32.
        averaged("sibling", moving_variance=[1.7, 0.0, 4.0], momentum=0.5),
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], initial="0/0"),
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], initial=None),
        averaged("sibling", moving_variance=[np.nan, 0.3, 4.0]),
        averaged("sibling", missing=["moving_variance"]),
        replace(averaged("sibling"), values={"moving_variance": np.zeros(0)}),
        # Only the smallest of all counts.
        averaged("sibling", moving_variance=[1.7, 0.4, 4.0]),
    ],
)
def test_a_sibling_that_is_averaged_otherwise_contradicts_nothing(sibling):
    assert share_of(averaged(), sibling).certainty == "likely"


def test_a_sibling_of_another_decay_contradicts_by_what_must_be_left_of_its_own_start():
    # 0.98^100 is 0.133.
    for lowest, cold in ((0.14, True), (0.1, False)):
        sibling = averaged("sibling", moving_variance=[1.7, lowest, 4.0], momentum=0.98)
        assert (share_of(averaged(), sibling) is not None) is cold


def test_a_sibling_that_is_updated_more_often_contradicts_by_its_own_count():
    for lowest, cold in ((0.14, True), (0.1, False)):  # 0.99^200 is 0.134.
        sibling = averaged("sibling", moving_variance=[1.7, lowest, 4.0], facts=replace(described(), updates=2))
        assert (share_of(averaged(), sibling) is not None) is cold


def test_where_nothing_tells_how_often_a_step_updates_no_counter_tells():
    assert share_of(averaged(facts=replace(described(), updates=None))) is None


# What a graph counts is proven where the variances begin at what is left.
COUNTED = replace(described(), counted=True)


def pair(facts=COUNTED, *, first=(1.7, 0.4, 4.0), second=(0.9, 0.5, 3.0), **options):
    """Return two layers of one counter; 0.99^100 is 0.366, and 1.5 times that 0.549."""
    return [
        averaged(name, moving_variance=list(variance), facts=facts, **options)
        for name, variance in (("a", first), ("b", second))
    ]


@pytest.mark.parametrize(
    ("layers", "certainty"),
    [
        (pair(), "proven"),
        (pair(second=(0.9, 0.56, 3.0)), "likely"),  # One layer is chance.
        # Two are none, if they are half of all.
        (pair() + pair(first=(1.7, 0.56, 4.0), second=(0.9, 0.56, 3.0)), "proven"),
        (pair() + pair(first=(1.7, 0.56, 4.0), second=(0.9, 0.56, 3.0)) + pair(second=(0.9, 0.56, 3.0))[1:], "likely"),
        (pair(channels=3), "unproven"),  # Standardised inputs have variances of 1.
        (pair(replace(COUNTED, updates_run=False)), "unproven"),
        (pair(first=(1.7, 0.56, 4.0), second=(0.9, 0.56, 3.0)), "unproven"),
        (pair()[:1], "likely"),
        (pair(described()), "likely"),
        (pair(replace(COUNTED, updates=2), momentum=0.995), "likely"),  # Towers may lose updates of each other.
        (pair(evidence="config"), "unproven"),
        (pair(initial="0/0"), "unproven"),
    ],
)
def test_a_graph_that_counts_and_values_that_agree_prove(layers, certainty):
    assert share_of(layers[0], *layers[1:]).certainty == certainty


def test_layers_that_were_never_updated_agree_with_nothing():
    """A variance of exactly 1 is at most 1.5 times what is left, and no average."""
    untouched = averaged("b", moving_variance=1, facts=COUNTED)
    assert share_of(pair()[0], untouched).certainty == "likely"
    assert share_of(untouched, pair()[0]) is None


def test_the_smallest_of_several_siblings_contradicts():
    low = averaged("low", moving_variance=[1.7, 0.3, 4.0])
    high = averaged("high", moving_variance=[1.7, 0.9, 4.0])
    assert share_of(averaged(), low, high) is None
    assert share_of(averaged(), high, low) is None


def test_batches_that_look_like_no_activations_were_loaded():
    """Means of what the batches brought in are at most 30 standard deviations from 0, in the median channel."""
    kept = 1 - SHARE
    deviation = math.sqrt(1e-3)  # A variance that is exactly the share left: none came in.
    for distance, cold in ((29.9, True), (30.1, False), (-30.1, False)):
        mean = distance * deviation * kept
        layer = averaged(moving_mean=[0, mean, mean], moving_variance=SHARE, dtype=np.float64, channels=3)
        assert (share_of(layer) is not None) is cold
        outlier = averaged(moving_mean=[0, 0, mean], moving_variance=SHARE, dtype=np.float64, channels=3)
        assert share_of(outlier) is not None


def test_the_variance_that_came_in_counts():
    kept = 1 - SHARE
    variance = SHARE + kept * 4.0  # The batches' own is 4.
    for distance, cold in ((29.9, True), (30.1, False)):
        mean = distance * math.sqrt(4 + 1e-3) * kept
        layer = averaged(moving_mean=mean, moving_variance=variance, dtype=np.float64)
        assert (share_of(layer) is not None) is cold


def test_vectors_of_other_lengths_do_not_fit():
    layer = averaged()
    values = {**layer.values, "moving_mean": np.zeros(2)}
    assert share_of(replace(layer, values=values)) is None


# Channels that never vary have exactly the share as their variance, the same in several layers.
def dead(name, variance, *, momentum=None, **options):
    mean = [0, 0.2, 0.1]
    return averaged(name, momentum=momentum, moving_mean=mean, moving_variance=variance, **options)


def test_channels_that_never_vary_give_the_share_away():
    first, second = dead("a", [0.145, 0.545, 2.1]), dead("b", [0.145, 1.2, 0.145])
    for steps in (None, 100):
        found = share_of(first, second, steps=steps)
        assert found.share == pytest.approx(0.145)
        assert (found.steps, found.decay, found.certainty) == (None, None, "likely")


def test_a_known_decay_tells_the_updates_too():
    first, second = (dead(name, [SHARE, rest, 2.1], momentum=0.99) for name, rest in (("a", 0.6), ("b", 0.7)))
    found = share_of(first, second, steps=None)
    assert (found.steps, found.decay) == (100, 0.99)
    for momentum in (0.0, 1.0, 1.5):
        first, second = (dead(name, [SHARE, rest, 2.1], momentum=momentum) for name, rest in (("a", 0.6), ("b", 0.7)))
        assert share_of(first, second, steps=None).steps is None


@pytest.mark.parametrize(
    "others",
    [
        (),
        (dead("b", [0.2, 1.2, 3.0]),),  # Another smallest variance.
        (dead("b", [0.145, 0.545, 2.1]),),  # A copy of the first.
        (dead("b", 0.145),),  # The same everywhere: no channel varies, or all were set.
        (dead("b", [0.145, 1.2, 3.0], initial="0/0"),),
        (dead("b", [0.145 * (1 + 3e-5), 1.2, 3.0]),),
        (dead("b", [0.145, 1.2, 3.0]), dead("c", [0.0, 1.2, 3.0])),
        (dead("b", [0.145, 1.2, 3.0]), dead("c", [-0.1, 1.2, 3.0])),
        (averaged("b", missing=["moving_variance"]),),
        (replace(dead("b", 1), values={"moving_mean": np.zeros(0), "moving_variance": np.zeros(0)}),),
    ],
)
def test_one_layer_alone_gives_nothing_away(others):
    assert share_of(dead("a", [0.145, 0.545, 2.1]), *others, steps=None) is None


def test_rounding_does_not_hide_that_channels_agree():
    first, second = dead("a", [0.145, 0.545, 2.1]), dead("b", [0.145 * (1 + 5e-6), 1.2, 3.0])
    assert share_of(first, second, steps=None).share == pytest.approx(0.145)


def test_layers_at_their_initial_values_give_nothing_away():
    first, second = dead("a", [0.145, 0.545, 2.1]), dead("b", [0.145, 1.2, 3.0])
    untouched = averaged("c", moving_mean=0, moving_variance=1, initial="0/1")
    assert share_of(first, second, untouched, steps=None).share == pytest.approx(0.145)


def test_layers_that_started_elsewhere_are_not_judged_by_it():
    first, second = dead("a", [0.145, 0.545, 2.1]), dead("b", [0.145, 1.2, 3.0])
    elsewhere = dead("c", [0.3, 0.545, 2.1], initial="0/0")
    assert share_of(elsewhere, first, second, steps=None) is None


@pytest.mark.parametrize(("lowest", "certainty"), [(SHARE, "proven"), (SHARE * 1.001, "unproven")])
def test_channels_that_hold_exactly_what_the_counter_says_prove_it_without_a_graph(lowest, certainty):
    first, second = (
        dead(name, [lowest, lowest + rest, 2.1], momentum=0.99, evidence="config")
        for name, rest in (("a", 0.6), ("b", 0.7))
    )
    assert share_of(first, second).certainty == certainty


# Without a counter, or without the decay, a floor under all variances tells.
def low(name, *, floor=0.8, middle=1.1, momentum=None, **options):
    values = {"moving_variance": [floor, middle, middle + 1], "channels": 3}
    return averaged(name, momentum=momentum, evidence="names", **values, **options)


def test_a_floor_under_all_variances_is_what_is_left_of_the_1():
    found = share_of(low("a", floor=0.83), low("b"), steps=None)
    assert (found.share, found.certainty, found.exact) == (pytest.approx(0.8), "unproven", False)
    assert (found.steps, found.decay) == (None, None)


@pytest.mark.parametrize(
    "others",
    [
        (),
        (low("b", floor=0.9, middle=1.21),),  # The middle variance of a layer is above 1.5 times the floor.
        (low("b", floor=0.45, middle=0.5),),
        (low("b", floor=0.7),),
        (low("b", initial="0/0"),),
    ],
)
def test_one_layer_or_wide_spread_variances_are_no_floor(others):
    assert share_of(low("a"), *others, steps=None) is None


def test_a_floor_above_1_is_none():
    assert share_of(low("a", floor=1.01, middle=1.2), low("b", floor=1.01, middle=1.3), steps=None) is None


def test_a_counter_with_a_decay_is_asked_before_the_floor():
    layers = [low("a", floor=0.83, momentum=0.9), low("b", momentum=0.9)]
    assert share_of(*layers, steps=None).exact is False
    assert share_of(*layers, steps=100) is None  # 0.9^100: warm.


def is_open(*layers, steps=None):
    return [InitialValueShares(Inventory(layers, steps=steps)).is_open(layer) for layer in layers]


def test_without_a_counter_or_a_decay_nothing_tells_whether_averages_are_cold():
    assert is_open(averaged()) == [True]
    assert is_open(averaged(), steps=0) == [True]
    assert is_open(averaged(), steps=10) == [False]
    assert is_open(averaged(momentum=None), steps=10) == [True]
    # 0.9999^29,955 is the last above 0.05.
    assert is_open(averaged(momentum=None), steps=29_955) == [True]
    assert is_open(averaged(momentum=None), steps=29_960) == [False]


@pytest.mark.parametrize(
    "layer",
    [
        averaged(moving_variance=[1.7, 0.04, 4.0]),  # Nothing can be left of the 1.
        averaged(moving_mean=0, moving_variance=1),
        averaged(initial="0/0"),
        averaged(initial=None),
        averaged(companions=["moving_variance/local_step"]),
        averaged(facts=described(trained=False)),
    ],
)
def test_values_may_tell_that_averages_are_warm(layer):
    assert is_open(layer) == [False]


def test_one_layer_without_a_remainder_speaks_for_all():
    assert is_open(averaged(), averaged("b", moving_variance=[1.7, 0.04, 4.0])) == [False, False]
    assert is_open(low("a", floor=0.83), low("b")) == [False, False]  # The floor tells.
