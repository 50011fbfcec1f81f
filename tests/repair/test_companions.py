"""What must be written with a statistic, or the next training step undoes the repair."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.graphs.facts import Companion
from ckpt_doctor.repair.companions import companion_values, warm_steps
from ckpt_doctor.rules._examples import described
from tests.repair.layers import layer_with

STATISTICS = {"moving_mean": np.array([1.0, -2.0, 3.0]), "moving_variance": np.array([0.25, 1.0, 4.0])}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999, 0.9999])
def test_after_warm_steps_float32_does_not_see_the_start(decay):
    """2^-24 is half a unit in the last place of a float32 of 1."""
    steps = warm_steps(decay)
    assert steps == int(steps)
    assert decay**steps <= 2.0**-24 < decay ** (steps - 1)


def test_more_steps_than_that_stay():
    assert warm_steps(0.5) == 24.0
    assert warm_steps(0.5, 10.0) == 24.0
    assert warm_steps(0.5, 1000.0) == 1000.0


@pytest.mark.parametrize("decay", [None, 0.0, 1.0, -0.5, 1.5])
def test_without_a_decay_the_steps_are_warm_for_every_usual_one(decay):
    assert warm_steps(decay) == 2.0**20
    assert warm_steps(decay, 2.0**30) == 2.0**30
    assert 0.99998 ** warm_steps(decay) <= 2.0**-24


def written(layer, stored_steps=None, statistics=STATISTICS):
    """Return name to role and value."""
    return {name: (role, value) for role, name, value in companion_values(layer, statistics, stored_steps or {})}


def test_zero_debiased_averages_give_the_statistic_back():
    """TensorFlow: statistic = biased / (1 - d^local_step)."""
    layer = layer_with(
        {
            "moving_mean/biased": 0,
            "moving_mean/local_step": 0,
            "moving_variance/biased": 0,
            "moving_variance/local_step": 0,
        },
        momentum=0.9,
    )
    values = written(layer)
    assert set(values) == set(layer.companions.values())
    for role, statistic in STATISTICS.items():
        kind, steps = values[f"bn/{role}/local_step"]
        assert (kind, steps.shape, float(steps)) == ("local_step", (), math.ceil(math.log(2**-24) / math.log(0.9)))
        kind, biased = values[f"bn/{role}/biased"]
        assert kind == "biased"
        np.testing.assert_allclose(biased / (1 - 0.9**steps), statistic, rtol=1e-15)


def test_each_average_has_the_counter_of_its_own_statistic():
    layer = layer_with({"moving_mean/local_step": 0, "moving_variance/local_step": 0}, momentum=0.9)
    values = written(layer, {"bn/moving_mean/local_step": 5000.0})
    assert float(values["bn/moving_mean/local_step"][1]) == 5000
    assert float(values["bn/moving_variance/local_step"][1]) == 158


def test_few_steps_of_a_slow_decay_are_not_enough():
    """At the stored 5000 steps nothing would be left of 0.9, and almost everything of 0.99999."""
    layer = layer_with({"moving_mean/biased": 0, "moving_mean/local_step": 0}, momentum=0.99999)
    _, steps = written(layer, {"bn/moving_mean/local_step": 5000.0})["bn/moving_mean/local_step"]
    assert 0.99999 ** float(steps) <= 2.0**-24


def test_sonnet_calls_them_hidden_and_counter():
    layer = layer_with({"moving_mean/hidden": 0, "moving_mean/counter": 0}, momentum=0.9)
    values = written(layer, {"bn/moving_mean/counter": 7.0})
    assert (values["bn/moving_mean/counter"][0], float(values["bn/moving_mean/counter"][1])) == ("counter", 158)
    kind, hidden = values["bn/moving_mean/hidden"]
    assert kind == "hidden"
    np.testing.assert_allclose(hidden / (1 - 0.9**158), STATISTICS["moving_mean"], rtol=1e-15)
    assert float(written(layer, {"bn/moving_mean/counter": 700.0})["bn/moving_mean/counter"][1]) == 700


def test_a_biased_average_without_a_counter_is_warm():
    layer = layer_with({"moving_mean/biased": 0}, momentum=0.5)
    _, biased = written(layer, {"": 3.0})["bn/moving_mean/biased"]
    np.testing.assert_array_equal(biased, STATISTICS["moving_mean"] * (1 - 0.5**24))


def test_without_a_decay_nothing_of_the_start_is_assumed():
    layer = layer_with({"moving_mean/biased": 0, "moving_mean/local_step": 0})
    values = written(layer)
    np.testing.assert_array_equal(values["bn/moving_mean/biased"][1], STATISTICS["moving_mean"])
    assert float(values["bn/moving_mean/local_step"][1]) == 2**20


@pytest.mark.parametrize("kind", ["shadow", "twin", "twin_2", "tower_1"])
def test_copies_are_what_their_statistic_is(kind):
    values = written(layer_with({f"moving_mean/{kind}": 0, f"moving_variance/{kind}": 0}))
    for role, statistic in STATISTICS.items():
        copied, value = values[f"bn/{role}/{kind}"]
        assert copied == kind
        np.testing.assert_array_equal(value, statistic)


@pytest.mark.parametrize(("epsilon", "added"), [(0.75, 0.75), (None, 0.0)])
def test_renorm_averages_the_standard_deviation_with_epsilon(epsilon, added):
    """The variance is recomputed as moving_stddev^2 - epsilon."""
    layer = layer_with({"layer/renorm_mean": 0, "layer/renorm_stddev": 0, "layer/moving_stddev": 0}, epsilon=epsilon)
    values = written(layer)
    np.testing.assert_array_equal(values["bn/layer/renorm_mean"][1], STATISTICS["moving_mean"])
    for role in ("renorm_stddev", "moving_stddev"):
        kind, value = values[f"bn/layer/{role}"]
        assert kind == role
        np.testing.assert_allclose(np.square(value) - added, STATISTICS["moving_variance"], rtol=1e-12)


def test_sums_of_compare_gan_are_one_of_each():
    values = written(layer_with({"layer/accu_mean": 0, "layer/accu_variance": 0, "layer/accu_counter": 0}))
    np.testing.assert_array_equal(values["bn/layer/accu_mean"][1], STATISTICS["moving_mean"])
    np.testing.assert_array_equal(values["bn/layer/accu_variance"][1], STATISTICS["moving_variance"])
    kind, counter = values["bn/layer/accu_counter"]
    assert (kind, counter.shape, float(counter)) == ("accu_counter", (), 1.0)
    assert [values[f"bn/layer/accu_{role}"][0] for role in ("mean", "variance")] == ["accu_mean", "accu_variance"]


def test_what_does_not_depend_on_the_statistics_is_left():
    assert written(layer_with({"layer/renorm_mean_weight": 0, "moving_mean/drifted": 0})) == {}


def test_what_only_the_model_names_is_written_too():
    facts = replace(
        described(),
        companions=(
            Companion("net/bn/mean_shadow", "shadow", "moving_mean"),
            Companion("net/bn/local_step", "local_step", "moving_variance"),
        ),
    )
    values = written(layer_with({"moving_mean/twin": 0}, facts=facts, momentum=0.5))
    assert set(values) == {"bn/moving_mean/twin", "net/bn/mean_shadow", "net/bn/local_step"}
    np.testing.assert_array_equal(values["net/bn/mean_shadow"][1], STATISTICS["moving_mean"])
    assert float(values["net/bn/local_step"][1]) == 24
