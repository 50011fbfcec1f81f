"""What nothing has touched, and what was trained beside it."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.heuristics import initial_values as heuristic
from ckpt_doctor.heuristics import stored_in_training
from ckpt_doctor.heuristics.stored_in_training import lost_and_frozen, trained_on_stored
from ckpt_doctor.rules._examples import described, example

ZERO, ONE = np.zeros(3), np.ones(3)


@pytest.mark.parametrize(
    ("mean", "variance", "start", "expected"),
    [
        (ZERO, ONE, None, "0/1"),
        (ZERO, ONE, "0/1", "0/1"),
        (ZERO, ONE, "0/0", None),
        (ZERO, ZERO, None, "0/0"),
        (ZERO, ZERO, "0/0", "0/0"),
        (ZERO, ZERO, "0/1", None),  # A dead layer.
        ([0, 0, 1e-7], ONE, None, None),
        (ZERO, [1, 1, 1.0000001], None, None),
        (ZERO, [0, 1, 1], None, None),
        (ONE, ONE, None, None),
        ([], ONE, None, None),
        (ZERO, [], None, None),
        ([np.nan, 0, 0], ONE, None, None),
    ],
)
def test_initial_values_are_exact_in_every_channel(mean, variance, start, expected):
    assert heuristic.initial_values(np.asarray(mean), np.asarray(variance), start) == expected


def test_a_layer_that_lacks_a_statistic_has_no_initial_values():
    assert heuristic.at_initial_values(example(moving_mean=0, moving_variance=1)) == "0/1"
    assert heuristic.at_initial_values(example(moving_mean=0, moving_variance=0, initial="0/0")) == "0/0"
    assert heuristic.at_initial_values(example(moving_mean=0, moving_variance=0)) is None
    assert heuristic.at_initial_values(example(missing=["moving_mean"], moving_variance=1)) is None
    assert heuristic.at_initial_values(example(missing=["moving_variance"], moving_mean=0)) is None


def test_copies_may_start_at_either_pair():
    def beside(**values):
        return replace(example(), companion_values={key.replace("__", "/"): value for key, value in values.items()})

    both = beside(moving_mean__twin=ZERO, moving_variance__twin=ONE)
    assert heuristic.copy_at_initial_values(both, "twin") is True
    assert heuristic.copy_at_initial_values(both, "shadow") is None
    assert heuristic.copy_at_initial_values(beside(moving_mean__t=ZERO, moving_variance__t=ZERO), "t") is True
    assert heuristic.copy_at_initial_values(beside(moving_mean__t=ONE, moving_variance__t=ONE), "t") is False
    assert heuristic.copy_at_initial_values(beside(moving_mean__t=ZERO), "t") is None
    assert heuristic.copy_at_initial_values(beside(moving_variance__t=ONE), "t") is None


@pytest.mark.parametrize(
    ("gamma", "beta", "expected"),
    [
        (1, 0, False),
        (0, 0, False),  # The last layer of a residual block.
        (1, [0, 0, 1e-6], True),
        ([1, 1, 1.02], 0, False),  # Within a random start.
        ([0.95, 1.09, 0.91], 0, False),
        ([1, 1, 1.11], 0, True),
        ([1, 1, 0.89], 0, True),
        ([1, 1, 1.02], None, True),
        (1, None, False),
        (0, None, False),
        ([0, 0, 1], None, True),
        (None, 0, False),
        (None, [0, 0.1, 0], True),
        (None, None, None),
    ],
)
def test_gamma_and_beta_tell_whether_a_layer_was_trained(gamma, beta, expected):
    given = {role: value for role, value in (("gamma", gamma), ("beta", beta)) if value is not None}
    missing = [role for role in ("gamma", "beta") if role not in given]
    assert heuristic.affine_is_trained(example(missing=missing, dtype=np.float64, **given)) is expected


def test_an_empty_gamma_tells_nothing():
    layer = example(beta=0)
    assert heuristic.affine_is_trained(replace(layer, values={**layer.values, "gamma": np.zeros(0)})) is False


UNTOUCHED = {"moving_mean": 0, "moving_variance": 1}


def test_what_never_moved_may_be_wrong_unless_training_used_it():
    assert stored_in_training.never_updated(example(**UNTOUCHED)) == "0/1"
    assert stored_in_training.never_updated(example(moving_mean=0, moving_variance=0, initial="0/0")) == "0/0"
    assert stored_in_training.never_updated(example()) is None
    assert stored_in_training.never_updated(example(**UNTOUCHED, gamma=1, beta=0)) is None
    # Without gamma and beta nothing tells whether the layer was trained.
    assert stored_in_training.never_updated(example(missing=["gamma", "beta"], **UNTOUCHED)) == "0/1"
    for trained, expected in ((True, "0/1"), (None, "0/1"), (False, None)):
        assert (
            stored_in_training.never_updated(example(facts=described(trained=trained, updates_run=None), **UNTOUCHED))
            == expected
        )


def renormalised(clipped=False, mean=0.0, stddev=1.0, **options):
    """Return an untouched layer with batch renormalisation, whose averages hold these values."""
    layer = example(facts=replace(described(), renorm_clipped=clipped), **UNTOUCHED, **options)
    values = {"layer/renorm_mean": np.full(3, mean), "layer/renorm_stddev": np.full(3, stddev)}
    return replace(layer, companion_values=values, companions={key: f"bn/{key}" for key in values})


def test_renorm_whose_averages_never_moved_normalises_with_them():
    assert heuristic.renorm_uses_initial_values(renormalised())
    assert stored_in_training.never_updated(renormalised()) is None
    for other in (
        renormalised(clipped=True),
        renormalised(clipped=None),
        renormalised(mean=0.1),
        renormalised(stddev=0.9),
        replace(renormalised(), facts=None),
    ):
        assert not heuristic.renorm_uses_initial_values(other)
        assert stored_in_training.never_updated(other) == "0/1"


def test_renorm_of_tensorflow_1_13_starts_with_a_weight_and_not_with_0_and_1():
    layer = renormalised()
    weighted = {**layer.companions, "layer/renorm_mean_weight": "bn/renorm_mean_weight"}
    assert not heuristic.renorm_uses_initial_values(replace(layer, companions=weighted))


@pytest.mark.parametrize("lost", ["layer/renorm_mean", "layer/renorm_stddev"])
def test_renorm_without_its_averages_tells_nothing(lost):
    layer = renormalised()
    kept = {key: value for key, value in layer.companion_values.items() if key != lost}
    assert not heuristic.renorm_uses_initial_values(replace(layer, companion_values=kept))


def frozen(*, mode="stored", trained=False, evidence="graph", updates_run=None, **options):
    facts = described(mode=mode, trained=trained, updates_run=updates_run)
    return replace(example(facts=facts, **options), evidence=evidence)


def test_a_layer_that_ran_on_its_initial_values_was_trained_on_them():
    assert trained_on_stored(frozen(**UNTOUCHED))
    assert trained_on_stored(frozen(evidence="config", **UNTOUCHED))
    assert not trained_on_stored(frozen())  # They moved.
    assert not trained_on_stored(frozen(evidence="names", **UNTOUCHED))
    assert not trained_on_stored(frozen(evidence="object-graph", **UNTOUCHED))
    assert not trained_on_stored(frozen(mode="switch", **UNTOUCHED))
    assert not trained_on_stored(frozen(trained=None, **UNTOUCHED))
    assert not trained_on_stored(frozen(trained=True, **UNTOUCHED))
    assert not trained_on_stored(example(**UNTOUCHED))


def test_updates_that_ran_and_changed_nothing_were_switched_off():
    """The train op waits for them, the weights are trained, and yet the averages never moved: the switch was off."""
    off = {"mode": "switch", "trained": None, "updates_run": True}
    assert trained_on_stored(frozen(**off, **UNTOUCHED))
    assert stored_in_training.never_updated(frozen(**off, **UNTOUCHED)) is None
    assert stored_in_training.certainty_of_stored(frozen(**off, **UNTOUCHED)) == "likely"
    for other in (
        frozen(**off),
        frozen(**{**off, "updates_run": None}, **UNTOUCHED),
        frozen(**{**off, "updates_run": False}, **UNTOUCHED),
        frozen(**off, gamma=1, beta=0, **UNTOUCHED),
        frozen(**off, evidence="config", **UNTOUCHED),
        frozen(**{**off, "trained": True}, **UNTOUCHED),
    ):
        assert not trained_on_stored(other)


def test_renorm_at_its_initial_values_was_trained_on_them_if_it_was_trained():
    assert trained_on_stored(renormalised())
    assert trained_on_stored(renormalised(missing=["gamma", "beta"]))
    assert not trained_on_stored(renormalised(gamma=1, beta=0))
    assert not trained_on_stored(renormalised(clipped=True))


def test_statistics_that_are_lost_and_were_stored_in_training_cannot_come_from_data():
    assert lost_and_frozen(frozen(missing=["moving_mean"]))
    assert lost_and_frozen(frozen(missing=["moving_variance"]))
    assert lost_and_frozen(frozen(missing=["moving_mean", "moving_variance"], evidence="config"))
    assert not lost_and_frozen(frozen())
    assert not lost_and_frozen(frozen(missing=["moving_mean"], mode="switch"))
    assert not lost_and_frozen(frozen(missing=["moving_mean"], trained=None))
    assert not lost_and_frozen(example(missing=["moving_mean"]))
    # Gamma is no statistic.
    assert not lost_and_frozen(replace(frozen(), absent={"gamma": "bn/gamma"}))
