"""When a repair counts as proven."""

from __future__ import annotations

import numpy as np
import pytest

from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.proof import prove
from ckpt_doctor.repair_result import RepairedLayer

EPSILON = 1e-3


def proof_of(entries, mean, variance, *, seen_mean=0.0, seen_variance=1.0, observed=True):
    """Return the proof of one written layer of three channels, on data with these moments."""
    values = {"moving_mean": np.full(3, mean, np.float32), "moving_variance": np.full(3, variance, np.float32)}
    values |= {"gamma": np.full(3, 1.3), "beta": np.full(3, 0.2)}
    layer = BatchNormLayer("bn", {role: role for role in values}, values=values, channels=3, epsilon=EPSILON)
    moments = np.full((2, 3), seen_mean), np.full((2, 3), seen_variance)
    seen = Observation(10, moments[0][0], moments[1][0], *moments)
    analysis = Analysis(Checkpoint("x", "tensor-bundle", (), (), 0), Inventory((layer,)))
    return prove(entries, analysis, {"bn": seen} if observed else {})


def repaired(method="layerwise"):
    return [RepairedLayer("bn", method, None, None)]


@pytest.mark.parametrize(
    ("method", "off", "good"),
    [
        ("layerwise", 1e-6, True),
        ("layerwise", 0.05, False),  # Far beyond rounding, though BN401 would not mind.
        ("training", 0.05, True),
        ("training", 0.5, False),
    ],
)
def test_layerwise_leaves_no_more_than_rounding(method, off, good):
    proof = proof_of(repaired(method), 0.01, 1, seen_mean=0.01 + off)
    assert (proof.remaining == ()) is good
    assert proof.layers[0].residual == pytest.approx(off / np.sqrt(1 + EPSILON), rel=1e-2)


@pytest.mark.parametrize(("ratio", "good"), [(1.9, True), (0.6, True), (2.1, False), (0.45, False)])
def test_the_variance_counts_as_the_mean_does(ratio, good):
    """BN401 allows `training` a factor of two in the variance; the means are right here."""
    stored = 4.0
    proof = proof_of(repaired("training"), 0.01, stored, seen_mean=0.01, seen_variance=stored * ratio)
    assert (proof.remaining == ()) is good
    off = abs(ratio - 1) * stored / (stored * ratio + EPSILON)
    assert proof.layers[0].residual == pytest.approx(off, rel=1e-3)


def test_layerwise_does_not_forgive_a_variance_that_is_a_little_off():
    assert proof_of(repaired(), 0.01, 4, seen_mean=0.01, seen_variance=4 * 1.05).remaining
    assert not proof_of(repaired(), 0.01, 4, seen_mean=0.01, seen_variance=4 * 1.0001).remaining


def test_what_was_estimated_must_be_seen_afterwards():
    assert proof_of([RepairedLayer("other", "layerwise", None, None)], 0.01, 1).remaining
    # Without data nothing was estimated, and nothing needs to be seen.
    assert not proof_of(repaired("copy"), 0.01, 1, observed=False).remaining


@pytest.mark.parametrize(
    ("mean", "variance", "rule"), [(np.nan, 1.0, "BN203"), (0.1, -1.0, "BN204"), (0.0, 1.0, "BN201")]
)
def test_a_finding_that_is_left_on_a_repaired_layer_is_no_repair(mean, variance, rule):
    proof = proof_of(repaired("copy"), mean, variance, observed=False)
    assert any(reason.startswith(f"{rule} remains: ") for reason in proof.remaining)


def test_a_finding_elsewhere_is_told_and_hinders_nothing():
    proof = proof_of([], 0.0, 1.0, observed=False)
    assert proof.remaining == ()
    (note,) = proof.notes
    assert note.startswith("BN201 never-updated is still reported: ")


def test_data_that_contradict_a_layer_which_was_left_alone_are_no_proof():
    """One layer was repaired, and its healthy neighbour saw something else while it was trained."""
    proof = proof_of([], 0.01, 1, seen_mean=5.0)
    (reason,) = proof.remaining
    assert reason.startswith("BN401: layer bn: ")
