"""Statistics that are missing, where a graph that only serves is all that is known."""

from dataclasses import replace

import pytest

from ckpt_doctor.batchnorm import Inventory, TrainingMode
from ckpt_doctor.graphs.facts import ModelFacts
from ckpt_doctor.heuristics.stored_in_training import lost_and_untold
from ckpt_doctor.rules import RULES, repaired_unasked
from ckpt_doctor.rules._examples import described, example
from ckpt_doctor.rules.interface import Subject

STATISTICS = ("moving_mean", "moving_variance")


def findings(layer, *, trains=False, names=frozenset({"bn/gamma"})):
    model = ModelFacts("graph", (layer.facts,), trains=trains, names=names)
    inventory = Inventory((layer,), model=model)
    told = [one for rule in RULES if rule.code in ("BN101", "BN102") for one in rule.check(rule, Subject(inventory))]
    assert lost_and_untold(layer, inventory) == ({one.certainty for one in told} == {"unproven"})
    return told


def lost(mode="stored", trained=None, missing=STATISTICS, **more):
    return example(missing=missing, facts=described(mode=mode, trained=trained), **more)


def test_estimates_are_made_only_if_asked_for():
    """Two nets of ten that were trained on 0 and 1 lost more than half a point by estimates that nobody asked for."""
    told = findings(lost())
    assert {(one.rule, one.severity, one.certainty, one.repair) for one in told} == {
        ("BN101", "error", "unproven", "estimate"),
        ("BN102", "error", "unproven", "estimate"),
    }
    assert repaired_unasked(told) == []
    assert "does not show whether it was trained on batches or on 0" in told[0].message


@pytest.mark.parametrize(
    ("layer", "model"),
    [
        (lost("switch"), {}),  # A branch for batches says how it was meant to be trained.
        (lost(trained=True), {}),
        (lost(), {"trains": True}),
        (lost(), {"names": None}),  # A SavedModel.
        (lost(missing=("moving_mean",)), {}),
        (replace(lost(), trained=TrainingMode("batch", "weights", "the bias", "bn")), {}),
    ],
)
def test_where_anything_tells_they_are_made(layer, model):
    told = findings(layer, **model)
    assert {one.certainty for one in told} == {"proven"}
    assert repaired_unasked(told) == told
