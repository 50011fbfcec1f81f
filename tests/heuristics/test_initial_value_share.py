"""How much of its initial value an average still holds: by counter and decay, or by channels that never vary."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.heuristics.initial_value_share import InitialValueShares
from ckpt_doctor.rules._examples import described, example

SHARE = 0.99**100  # 0.366
WARM_ENOUGH = {"moving_mean": [0.4, -0.1, 0.3], "moving_variance": [1.7, 0.9, 4.0]}


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
    layer = averaged(facts=replace(described(), updates=updates), momentum=0.995)
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
    assert share_of(averaged(companions=[f"moving_mean/{companion}"])) is None
    assert share_of(averaged(companions=["moving_mean/shadow"])) is not None


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


def test_of_many_channels_all_above_the_share_are_no_chance_but_less_sure():
    loaded = averaged("sibling", moving_variance=[1.7, 0.3, 4.0])
    for channels, certainty in ((15, None), (16, "unproven"), (64, "unproven")):
        found = share_of(averaged(channels=channels), loaded)
        assert (found.certainty if found is not None else None) == certainty
    assert share_of(averaged(channels=16)).certainty == "likely"


@pytest.mark.parametrize(
    "sibling",
    [
        averaged("sibling", moving_variance=[1.7, 0.3, 4.0], momentum=0.9),
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
        layer = averaged(moving_mean=[0, mean, mean], moving_variance=SHARE, dtype=np.float64)
        assert (share_of(layer) is not None) is cold
        outlier = averaged(moving_mean=[0, 0, mean], moving_variance=SHARE, dtype=np.float64)
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
