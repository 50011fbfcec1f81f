"""Vectors in each other's place: what looks so, and how many layers must agree."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.heuristics.role_swaps import find_role_swaps
from ckpt_doctor.rules._examples import example

MEANS = [-0.5, 0.3, 1.0, -2.0]
VARIANCES = [0.5, 1.0, 2.0, 4.0]


def swapped(name, **values):
    """Return a layer of four channels whose mean and variance stand in each other's place."""
    given = {"moving_mean": VARIANCES, "moving_variance": MEANS, "gamma": 1.3, "beta": 0.2} | values
    return example(name, channels=4, **given)


def shifted(name, **values):
    """Return a layer whose beta holds a variance, and whose variance holds what can be none."""
    return swapped(name, moving_mean=MEANS, beta=VARIANCES, **values)


def opposite(name):
    """Return its neighbour in a nested Keras model: gamma and beta hold what its mean and variance would."""
    return example(name, channels=4, gamma=MEANS, beta=VARIANCES, moving_mean=1.3, moving_variance=0.2)


def found(*layers):
    return {name: (swap.variance_in, swap.found_in_variance) for name, swap in find_role_swaps(layers).items()}


def test_two_layers_that_agree_are_no_chance():
    assert found(swapped("a"), example("b"), swapped("c")) == {"a": ("moving_mean", True), "c": ("moving_mean", True)}
    assert found(swapped("a")) == {}
    assert found(swapped("a"), example("b")) == {}
    assert found() == {}


def test_the_swap_tells_layer_and_channels():
    a, b = swapped("a"), swapped("b")
    swaps = find_role_swaps([a, b])
    assert swaps["a"].layer is a
    assert swaps["b"].layer is b
    assert [swap.channels for swap in swaps.values()] == [4, 4]


def test_eight_channels_are_the_fewest():
    def narrow(name, channels):
        values = {"moving_mean": VARIANCES[:channels], "moving_variance": MEANS[:channels]}
        return example(name, channels=channels, **values)

    assert found(swapped("a"), narrow("b", 3)) == {}
    assert set(found(swapped("a"), swapped("b"))) == {"a", "b"}
    assert set(found(swapped("a"), narrow("b", 3), narrow("c", 3))) == {"a", "b", "c"}


def test_beta_may_hold_the_variance():
    assert found(shifted("a"), shifted("b")) == {"a": ("beta", True), "b": ("beta", True)}
    assert found(shifted("a")) == {}
    assert found(opposite("a"), opposite("b")) == {"a": ("beta", False), "b": ("beta", False)}


def test_neighbours_of_a_nested_model_count_together():
    """One layer with its mean and variance exchanged, and one that is shifted: both or neither."""
    assert found(swapped("a"), shifted("b")) == {"a": ("moving_mean", True), "b": ("beta", True)}
    assert found(swapped("a"), opposite("b")) == {"a": ("moving_mean", True), "b": ("beta", False)}


def test_initial_values_in_each_others_place():
    one = {"moving_mean": 1, "moving_variance": 0}
    assert found(swapped("a", **one), swapped("b", **one)) == {"a": ("moving_mean", True), "b": ("moving_mean", True)}
    assert found(swapped("a", moving_mean=1, moving_variance=1), swapped("b", moving_mean=0, moving_variance=0)) == {}
    mixed = {"moving_mean": 1, "moving_variance": [0, 0, 0, 1]}
    assert found(swapped("a", **mixed), swapped("b", **mixed)) == {}


@pytest.mark.parametrize(
    ("negative", "expected"),
    [(0, False), (1, False), (2, True), (10, True), (19, True), (20, False)],
)
def test_a_share_of_negative_values_makes_it_no_variance(negative, expected):
    """Of 20 channels: a variance that diverged is negative in a few or in all."""
    values = np.where(np.arange(20) < negative, -1.0, 1.0)
    layers = [
        example(name, channels=20, moving_mean=np.linspace(0.1, 2, 20), moving_variance=values) for name in ("a", "b")
    ]
    assert bool(found(*layers)) is expected


@pytest.mark.parametrize("mean", [[0.5, 1.0, 2.0, 0.0], [0.5, 1.0, 2.0, -0.1], 0.7])
def test_what_is_not_above_zero_or_always_the_same_is_no_variance_either(mean):
    assert found(swapped("a", moving_mean=mean), swapped("b", moving_mean=mean)) == {}


def test_what_is_missing_or_no_number_tells_nothing():
    for layer in (
        swapped("a", beta=[np.nan, 1, 1, 1]),
        swapped("a", moving_mean=[np.inf, 1, 1, 1]),
        replace(swapped("a"), values={"moving_mean": np.array(VARIANCES)}),
        replace(swapped("a"), values={"moving_variance": np.array(MEANS)}),
    ):
        assert found(layer, replace(layer, name="b")) == {}
    without = {name: value for name, value in shifted("a").values.items() if name != "beta"}
    assert found(replace(shifted("a"), values=without), replace(shifted("b"), values=without)) == {}
    for lost in ("gamma", "beta"):
        rest = {name: value for name, value in opposite("a").values.items() if name != lost}
        assert found(replace(opposite("a"), values=rest), replace(opposite("b"), values=rest)) == {}


@pytest.mark.parametrize(
    ("gamma", "beta", "undone"),
    [
        (1.3, 0.2, True),
        ([0.8, 1.1, 1.3, 0.9], [-0.1, 0.2, -0.3, 0.1], True),
        (MEANS, 0.2, False),
        (1.3, VARIANCES, False),
    ],
)
def test_a_swap_is_undone_only_where_gamma_and_beta_look_right(gamma, beta, undone):
    # Where all four are two places off, mean and variance are under gamma and beta.
    swaps = find_role_swaps([swapped(name, gamma=gamma, beta=beta) for name in "ab"])
    assert [swap.can_be_undone for swap in swaps.values()] == [undone, undone]
    # One layer of which it is not certain speaks for all.
    swaps = find_role_swaps([swapped("a"), swapped("b", gamma=gamma, beta=beta)])
    assert [swap.can_be_undone for swap in swaps.values()] == [undone, undone]
