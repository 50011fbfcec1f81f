"""What a repaired checkpoint shows: what is left, what is told, and whether a receipt must go with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.errors import VerificationFailed
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.proof import confirm, prove
from ckpt_doctor.repair_result import RepairedLayer
from ckpt_doctor.rules._examples import described, example
from tests.repair.layers import checkpoint_of

MEAN, VARIANCE = np.array([0.4, -0.1, 0.3]), np.array([1.7, 0.9, 4.0])


def layer_named(name="bn", **options):
    return example(name, moving_mean=MEAN, moving_variance=VARIANCE, **options)


def cold(**options):
    return replace(layer_named(facts=described()), momentum=0.99, **options)


def entry(name="bn", method="training"):
    return RepairedLayer(name, method, None, None)


def seen_at(mean=MEAN, variance=VARIANCE, batches=2):
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    return Observation(10, mean, variance, np.stack([mean] * batches), np.stack([variance] * batches))


def proof_of(repaired, *layers, seen=None, steps=None):
    analysis = Analysis(checkpoint_of(), Inventory(layers, steps=steps))
    return prove(repaired, analysis, {} if seen is None else seen)


def test_a_repair_that_shows_in_the_file_is_clean_and_needs_nothing():
    proof = proof_of([entry()], layer_named(), seen={"bn": seen_at()})
    assert (proof.remaining, proof.notes, proof.clean, proof.needs_receipt) == ((), (), True, False)
    assert proof.layers[0].residual == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["training", "layerwise", "debias"])
def test_what_only_history_could_tell_needs_a_receipt(method):
    proof = proof_of([entry(method=method)], cold(), seen={"bn": seen_at()}, steps=100)
    assert (proof.remaining, proof.clean, proof.needs_receipt) == ((), True, True)
    assert proof.notes == (
        "the file does not show that its statistics are new: scan reports BN202 unless the receipt of this repair is "
        "next to the file",
    )


def test_all_rules_that_a_receipt_answers_are_named():
    proof = proof_of([entry()], cold(slots=("bn/moving_mean/Adam",)), seen={"bn": seen_at()}, steps=100)
    assert "scan reports BN202, BN305 unless" in proof.notes[0]


def test_a_copy_makes_nothing_new():
    proof = proof_of([entry(method="copy")], cold(), steps=100)
    assert [reason.partition(":")[0] for reason in proof.remaining] == ["BN202 remains"]
    assert (proof.notes, proof.clean, proof.needs_receipt) == ((), False, False)


def test_a_defect_elsewhere_is_told_once_a_rule_and_is_not_clean():
    untouched = {"moving_mean": 0, "moving_variance": 1}
    others = [example("x", **untouched), example("y", **untouched), example("z", moving_variance=[-1, 1, 1])]
    proof = proof_of([entry()], layer_named(), *others, seen={"bn": seen_at()})
    assert (proof.remaining, proof.clean, proof.needs_receipt) == ((), False, False)
    told = [note.partition(":")[0] for note in proof.notes]
    assert sorted(told) == ["BN201 never-updated is still reported", "BN204 negative-variance is still reported"]
    (note,) = (note for note in proof.notes if note.startswith("BN201"))
    assert "layer x" in note
    assert "layer y" not in note


def test_notes_and_doubts_about_the_data_do_not_count():
    proof = proof_of([entry()], layer_named(), seen={"bn": seen_at(batches=1)})  # BN402
    assert (proof.remaining, proof.notes, proof.clean) == ((), (), True)
    dead = example(moving_mean=MEAN, moving_variance=[1.7, 0.0, 4.0])  # BN205
    proof = proof_of([entry()], dead, seen={"bn": seen_at(variance=[1.7, 0.0, 4.0])})
    assert (proof.remaining, proof.notes, proof.clean) == ((), (), True)


def test_what_is_not_proven_is_not_clean():
    proof = proof_of([entry(method="layerwise")], layer_named(), seen={"bn": seen_at(mean=MEAN + 0.1)})
    assert (len(proof.remaining), proof.notes, proof.clean) == (1, (), False)
    off = 0.1 / np.sqrt(0.901)  # In the channel that varies least.
    assert proof.remaining[0] == (
        f"layer bn: its statistics differ by {off:.2g} from those that the model shows; up to 0.01 is rounding"
    )
    assert proof.layers[0].residual == pytest.approx(off, rel=1e-6)


@pytest.mark.parametrize(("epsilon", "added"), [(1.0, 1.0), (None, 1e-3)])
def test_the_residual_counts_in_standard_deviations_with_epsilon(epsilon, added):
    proof = proof_of([entry()], layer_named(epsilon=epsilon), seen={"bn": seen_at(mean=MEAN + 0.1)})
    assert proof.layers[0].residual == pytest.approx(0.1 / np.sqrt(0.9 + added), rel=1e-6)


@pytest.mark.parametrize("missing", [["moving_mean"], ["moving_variance"], ["moving_mean", "moving_variance"]])
def test_a_layer_that_is_not_there_afterwards_is_no_repair(missing):
    gone = proof_of([entry("gone")], layer_named(), seen={"bn": seen_at()})
    assert gone.remaining == ("layer gone is not in the written file",)
    half = proof_of([entry()], example(missing=missing), seen={"bn": seen_at()})
    assert "layer bn is not in the written file" in half.remaining
    assert [layer.residual for layer in (*gone.layers, *half.layers)] == [None, None]


def test_statistics_without_gamma_and_beta_are_a_layer():
    proof = proof_of([entry()], layer_named(missing=["gamma", "beta"]), seen={"bn": seen_at()})
    assert proof.remaining == ()
    assert proof.layers[0].residual is not None


def test_what_was_estimated_and_is_not_run_is_no_repair():
    for method, remaining in (
        ("layerwise", ("layer bn: the model does not use its new statistics",)),
        ("training", ("layer bn: the model does not use its new statistics",)),
        ("copy", ()),
        ("debias", ()),
    ):
        assert proof_of([entry(method=method)], layer_named(), seen={"other": seen_at()}).remaining == remaining
        assert proof_of([entry(method=method)], layer_named()).remaining == ()


def test_every_repaired_layer_is_in_the_proof():
    layers = [layer_named("a"), layer_named("b"), layer_named("c")]
    proof = proof_of([entry("c"), entry("gone"), entry("a", "copy")], *layers, seen={"c": seen_at(), "b": seen_at()})
    assert [(layer.name, layer.residual is None) for layer in proof.layers] == [
        ("c", False),
        ("gone", True),
        ("a", True),
    ]


def written_and_proven(written, proven, repaired=("bn",), **options):
    """Confirm what was written against what was proven, each one layer or several."""
    before, after = (Analysis(checkpoint_of(), Inventory(tuple(layers), **options)) for layers in (proven, written))
    confirm([entry(name) for name in repaired], before, after)


def test_what_was_written_is_what_was_proven():
    written_and_proven([layer_named()], [layer_named()])
    written_and_proven([cold()], [cold()], steps=100)
    # What is damaged in the container is compared elsewhere, byte for byte.
    damaged = Analysis(checkpoint_of(), Inventory((layer_named(),)), defects=(Damage("truncated", "x", "y"),))
    confirm([entry()], Analysis(checkpoint_of(), Inventory((layer_named(),))), damaged)


@pytest.mark.parametrize("role", ["moving_mean", "moving_variance"])
def test_a_statistic_that_changed_on_the_way_is_no_success(role):
    other = layer_named()
    values = {**other.values, role: other.values[role] + np.float32(1e-6)}
    with pytest.raises(
        VerificationFailed,
        match=r"^model: was written, but layer bn differs from what was verified "
        "before",
    ):
        written_and_proven([replace(other, values=values)], [layer_named()])
    lost = {name: value for name, value in values.items() if name != role}
    with pytest.raises(VerificationFailed, match="layer bn differs"):
        written_and_proven([replace(other, values=lost)], [layer_named()])


def test_a_layer_that_is_gone_is_no_success():
    with pytest.raises(VerificationFailed, match="layer bn differs"):
        written_and_proven([], [layer_named()])


def test_another_verdict_is_no_success():
    """Gamma is not of the repair, and a layer beside it neither: only the verdict shows that they changed."""
    sick = example("beside", moving_variance=[-1, 1, 1])
    with pytest.raises(
        VerificationFailed,
        match=r"was written, but the verdict \(BN204\) differs from what was "
        "verified",
    ):
        written_and_proven([layer_named(), sick], [layer_named(), example("beside")])
    with pytest.raises(VerificationFailed, match=r"the verdict \(BN204\)"):
        written_and_proven([layer_named(), example("beside")], [layer_named(), sick])
    written_and_proven([layer_named(), sick], [layer_named(), sick])


def test_a_residual_beyond_rounding_is_left_unless_another_draw_differs_as_much():
    off = {"bn": seen_at(mean=MEAN + 0.05 * np.sqrt(VARIANCE))}
    analysis = Analysis(checkpoint_of(), Inventory((layer_named(),)))
    entries = [entry(method="layerwise")]
    assert "up to 0.01 is rounding" in prove(entries, analysis, off).remaining[0]
    assert "up to 0.03 is the noise of the graph" in prove(entries, analysis, off, {"bn": 0.01}).remaining[0]
    assert prove(entries, analysis, off, {"bn": 0.02}).remaining == ()
    assert prove(entries, analysis, off, {"other": 0.02}).remaining != ()
