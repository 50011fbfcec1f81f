"""Repairs without data: copies from the file, and the start taken out of an average."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.heuristics.initial_value_share import InitialValueShare, InitialValueShares
from ckpt_doctor.heuristics.role_swaps import find_role_swaps
from ckpt_doctor.repair.without_data import copied_statistics, debiased_statistics
from ckpt_doctor.rules._examples import example
from tests.repair.layers import layer_with

BOTH = ("moving_mean", "moving_variance")
MEAN, VARIANCE = [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]
UNTOUCHED = {"moving_mean": 0, "moving_variance": 1}


def copied(layer, swap=None):
    values, origin = copied_statistics(layer, swap)
    assert all(value.dtype == np.float64 for value in values.values())
    return {role: value.tolist() for role, value in values.items()}, origin


@pytest.mark.parametrize("kind", ["shadow", "drifted"])
def test_a_copy_takes_the_place_of_what_is_missing(kind):
    layer = layer_with({f"moving_mean/{kind}": MEAN, f"moving_variance/{kind}": VARIANCE}, missing=BOTH)
    values, origin = copied(layer)
    assert values == {"moving_mean": MEAN, "moving_variance": VARIANCE}
    assert origin == f"from bn/moving_mean/{kind} and bn/moving_variance/{kind}"


def test_what_is_there_stays_and_only_the_missing_one_is_copied():
    layer = layer_with(
        {"moving_mean/shadow": MEAN, "moving_variance/shadow": VARIANCE}, missing=["moving_variance"], moving_mean=0.5
    )
    values, origin = copied(layer)
    assert values == {"moving_mean": [0.5] * 3, "moving_variance": VARIANCE}
    assert origin == "from bn/moving_variance/shadow"


def test_a_shadow_comes_before_a_drifted_name():
    layer = layer_with(
        {"moving_mean/drifted": [9.0] * 3, "moving_mean/shadow": MEAN, "moving_variance/shadow": VARIANCE}, missing=BOTH
    )
    assert copied(layer)[0]["moving_mean"] == MEAN


def test_a_copy_of_another_shape_is_flattened():
    layer = layer_with({"moving_mean/shadow": [[[MEAN]]]}, missing=["moving_mean"])
    assert copied(layer)[0]["moving_mean"] == MEAN


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arithmetic_is_in_float64_whatever_is_stored(dtype):
    third = np.full(3, 1 / 3, dtype)
    exact = float(third[0])
    biased = {"moving_mean/biased": third, "moving_mean/local_step": 2.0}
    layers = {
        "shadow": layer_with({"moving_mean/shadow": third}, missing=["moving_mean"]),
        "biased": layer_with(biased, missing=["moving_mean"], momentum=0.7),
        "twin": layer_with({"moving_mean/twin": third, "moving_variance/twin": third}, **UNTOUCHED),
    }
    for kind, layer in layers.items():
        values, _ = copied_statistics(layer, None)
        assert values["moving_mean"].dtype == np.float64
        assert values["moving_mean"][0] == (exact / (1 - 0.7**2) if kind == "biased" else exact)
    layer = example(moving_mean=third, moving_variance=third, dtype=dtype)
    values = debiased_statistics(layer, share(0.1))
    assert [value.dtype for value in values.values()] == [np.float64, np.float64]
    assert values["moving_mean"][0] == exact / (1 - 0.1)
    assert values["moving_variance"][0] == (exact - 0.1) / (1 - 0.1)


def test_a_zero_debiased_average_is_divided_by_what_it_has_seen():
    """After two steps at a decay of 0.5, three quarters of the average are there."""
    layer = layer_with(
        {"moving_mean/biased": np.array([3.0, 6.0, -9.0]), "moving_mean/local_step": 2.0},
        missing=["moving_mean"],
        momentum=0.5,
    )
    values, origin = copied(layer)
    assert values["moving_mean"] == [4.0, 8.0, -12.0]
    assert origin == "from bn/moving_mean/biased"
    one = layer_with(
        {"moving_variance/biased": [[2.0, 2.0, 2.0]], "moving_variance/local_step": [1.0, 7.0]},
        missing=["moving_variance"],
        momentum=0.5,
    )
    assert copied(one)[0]["moving_variance"] == [4.0] * 3


@pytest.mark.parametrize(
    ("companions", "momentum"),
    [
        ({}, 0.5),
        ({"moving_mean/biased": MEAN}, 0.5),
        ({"moving_mean/local_step": 2.0}, 0.5),
        ({"moving_mean/biased": MEAN, "moving_mean/local_step": 2.0}, None),
        ({"moving_variance/shadow": VARIANCE}, 0.5),
    ],
)
def test_without_a_copy_only_data_help(companions, momentum):
    layer = layer_with(companions, missing=["moving_mean"], momentum=momentum)
    with pytest.raises(RepairRefused, match=r"layer bn: the file has no copy of its moving_mean.*data"):
        copied_statistics(layer, None)


@pytest.mark.parametrize(("steps", "momentum"), [(0.0, 0.5), (2.0, 1.0), (2.0, 1.5)])
def test_an_average_of_nothing_is_no_copy(steps, momentum):
    layer = layer_with(
        {"moving_mean/biased": MEAN, "moving_mean/local_step": steps}, missing=["moving_mean"], momentum=momentum
    )
    with pytest.raises(RepairRefused, match="layer bn: its biased moving_mean was never updated"):
        copied_statistics(layer, None)


def beside(kind, mean=MEAN, variance=VARIANCE, **own):
    return layer_with({f"moving_mean/{kind}": mean, f"moving_variance/{kind}": variance}, **own)


@pytest.mark.parametrize("kind", ["twin", "tower_1"])
def test_a_trained_copy_replaces_statistics_that_never_moved(kind):
    values, origin = copied(beside(kind, **UNTOUCHED))
    assert values == {"moving_mean": MEAN, "moving_variance": VARIANCE}
    assert origin == "from the copy that was trained"


@pytest.mark.parametrize("kind", ["twin", "tower_1", "shadow"])
def test_statistics_that_were_trained_stay(kind):
    own = {"moving_mean": [0.5, 0.25, -1.0], "moving_variance": [1.0, 2.0, 4.0]}
    values, origin = copied(beside(kind, mean=[0] * 3, variance=[1] * 3, **own))
    assert values == own
    assert origin == "companions computed from the statistics"


def test_two_untouched_copies_stay_untouched():
    assert copied(beside("twin", mean=[0] * 3, variance=[1] * 3, **UNTOUCHED))[0]["moving_variance"] == [1.0] * 3


@pytest.mark.parametrize(
    "own",
    [
        {"moving_mean": MEAN, "moving_variance": [6.0, 7.0, 8.5]},
        {"moving_mean": [3.0, 4.5, 5.0], "moving_variance": VARIANCE},
    ],
)
def test_two_trained_twins_that_differ_are_refused(own):
    """Nothing tells which is right: a loader takes the one or the other."""
    with pytest.raises(RepairRefused, match="layer bn: its two exported copies differ and both were trained"):
        copied_statistics(beside("twin", **own), None)
    # A tower has a history of its own, and may be a little off.
    assert copied(beside("tower_1", **own))[0] == {role: list(value) for role, value in own.items()}


def test_two_trained_twins_that_agree_are_one():
    own = {"moving_mean": MEAN, "moving_variance": VARIANCE}
    assert copied(beside("twin", **own)) == (own, "companions computed from the statistics")


def test_half_a_copy_is_none():
    layer = layer_with({"moving_mean/twin": MEAN}, **UNTOUCHED)
    assert copied(layer)[0] == {"moving_mean": [0.0] * 3, "moving_variance": [1.0] * 3}
    whole = layer_with(
        {"moving_mean/tower_1": MEAN, "moving_mean/tower_2": VARIANCE, "moving_variance/tower_2": MEAN}, **UNTOUCHED
    )
    assert copied(whole)[0] == {"moving_mean": VARIANCE, "moving_variance": MEAN}


def test_of_several_trained_towers_the_first_counts():
    layer = layer_with(
        {
            "moving_mean/tower_2": VARIANCE,
            "moving_variance/tower_2": VARIANCE,
            "moving_mean/tower_1": MEAN,
            "moving_variance/tower_1": MEAN,
        },
        **UNTOUCHED,
    )
    assert copied(layer)[0] == {"moving_mean": MEAN, "moving_variance": MEAN}


def test_mean_and_variance_are_put_back():
    variance, mean = [0.5, 1.0, 2.0, 4.0], [-0.5, 0.3, 1.0, -2.0]
    layers = [example(name, channels=4, moving_mean=variance, moving_variance=mean) for name in "ab"]
    swap = find_role_swaps(layers)["a"]
    values, origin = copied(layers[0], swap)
    np.testing.assert_allclose(values["moving_mean"], mean, rtol=1e-7)
    np.testing.assert_allclose(values["moving_variance"], variance, rtol=1e-7)
    assert values["gamma"] == pytest.approx([1.3] * 4)
    assert origin == "swapped roles corrected"


def test_gamma_and_beta_under_the_statistics_are_refused():
    variance, mean = [0.5, 1.0, 2.0, 4.0], [-0.5, 0.3, 1.0, -2.0]
    layers = [
        example(name, channels=4, gamma=mean, beta=variance, moving_mean=1.3, moving_variance=0.2) for name in "ab"
    ]
    for swap in find_role_swaps(layers).values():
        for other in (swap, replace(swap, found_in_variance=True), replace(swap, variance_in="moving_mean")):
            with pytest.raises(RepairRefused, match=r"layer [ab]: some of its gamma, beta, mean and variance"):
                copied_statistics(other.layer, other)


def share(left):
    return InitialValueShare(left, 10, 0.9, "unproven")


def debiased(layer, left):
    values = debiased_statistics(layer, share(left))
    return {role: value.tolist() for role, value in values.items()}


def test_debiasing_takes_the_start_out_exactly():
    """With a quarter of 0 and 1 left, stored values are three quarters of the average, and a quarter of 1."""
    layer = example(moving_mean=[0.75, -1.5, 3.0], moving_variance=[1.0, 0.25, 3.25], dtype=np.float64)
    assert debiased(layer, 0.25) == {"moving_mean": [1.0, -2.0, 4.0], "moving_variance": [1.0, 0.0, 4.0]}
    zero = example(moving_mean=[0.75, -1.5, 3.0], moving_variance=[1.5, 0.0, 3.0], initial="0/0", dtype=np.float64)
    assert debiased(zero, 0.25) == {"moving_mean": [1.0, -2.0, 4.0], "moving_variance": [2.0, 0.0, 4.0]}


def test_debiasing_undoes_a_float32_average():
    decay, updates = np.float32(0.9), 10
    random = np.random.default_rng(0)
    means, variances = random.normal(1, 1, (updates, 3)), random.uniform(1, 2, (updates, 3))
    mean, variance = np.zeros(3, np.float32), np.ones(3, np.float32)
    weights = np.array([0.1 * 0.9 ** (updates - 1 - number) for number in range(updates)])
    for one, other in zip(means, variances, strict=True):
        mean = (mean * decay + one.astype(np.float32) * (1 - decay)).astype(np.float32)
        variance = (variance * decay + other.astype(np.float32) * (1 - decay)).astype(np.float32)
    values = debiased_statistics(example(moving_mean=mean, moving_variance=variance), share(0.9**updates))
    np.testing.assert_allclose(values["moving_mean"], weights @ means / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(values["moving_variance"], weights @ variances / weights.sum(), rtol=1e-5)


def test_rounding_below_zero_is_zero_and_more_is_refused():
    stored = [0.25 - 1e-6, 1.0, 1.0]
    assert debiased(example(moving_variance=stored, dtype=np.float64), 0.25)["moving_variance"][0] == 0.0
    with pytest.raises(
        RepairRefused, match=r"layer bn: with 25.0 % of the initial value left, 1 variances would be neg"
    ):
        debiased(example(moving_variance=[0.25 - 1e-4, 1.0, 1.0], dtype=np.float64), 0.25)
    with pytest.raises(RepairRefused, match="2 variances would be negative"):
        debiased(example(moving_variance=[0.1, 0.1, 1.0], dtype=np.float64), 0.25)
    with pytest.raises(RepairRefused, match="1 variances would be negative"):
        debiased(example(moving_variance=[-1e-7, 1, 1], initial="0/0", dtype=np.float64), 0.25)


def test_a_tiny_positive_variance_is_kept():
    left = debiased(example(moving_variance=[0.25 + 1e-6, 1.0, 1.0], dtype=np.float64), 0.25)["moving_variance"][0]
    assert left == pytest.approx(1e-6 / 0.75, rel=1e-6)


def test_what_is_not_cold_cannot_be_debiased():
    layer = example()
    cold = InitialValueShares(Inventory((layer,))).of(layer)
    with pytest.raises(RepairRefused, match="layer bn: nothing shows how many updates"):
        debiased_statistics(layer, cold)


def test_of_a_corrected_mean_nothing_is_taken_out():
    layer = example(moving_mean=[0.75, -1.5, 3.0], moving_variance=[1.0, 0.25, 3.25], dtype=np.float64)
    values = debiased_statistics(layer, replace(share(0.25), roles=("moving_variance",)))
    assert values["moving_mean"].tolist() == [0.75, -1.5, 3.0]
    assert values["moving_variance"].tolist() == [1.0, 0.0, 4.0]


def test_what_is_only_a_bound_cannot_be_taken_out():
    with pytest.raises(RepairRefused, match="layer bn: at most 25 % of its initial value is left, and nothing shows"):
        debiased_statistics(example(), replace(share(0.25), exact=False))
