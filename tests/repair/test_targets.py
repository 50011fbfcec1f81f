"""Which layers are repaired, by which method, and why the others are left."""

from dataclasses import replace

import pytest

from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.repair.targets import Targets, choose
from ckpt_doctor.rules._examples import described, example
from tests.repair.layers import found, verdict_on

A, B = example("net/a"), example("net/b")
LOST = example("net/a", missing=["moving_mean", "moving_variance"])
FROZEN = replace(
    example("net/a", missing=["moving_mean"], facts=described("net/a", mode="stored", trained=False)), evidence="graph"
)


def chosen(*findings, layers=(A, B), patterns=(), method="auto", has_data=True, unproven=False, force=False):
    verdict = verdict_on(list(layers), *findings)
    return choose(verdict, patterns, method=method, has_data=has_data, unproven=unproven, force=force)


def reasons(targets):
    return dict(targets.left)


def test_nothing_found_nothing_chosen():
    assert chosen() == Targets()
    assert chosen(has_data=False) == Targets()
    assert chosen().layers == ()


@pytest.mark.parametrize("method", ["auto", "layerwise", "training"])
def test_what_is_proven_is_estimated(method):
    assert chosen(found("BN201", "net/b"), method=method) == Targets(estimated=("net/b",))
    assert chosen(found("BN203", "net/a", "net/b"), method=method).estimated == ("net/a", "net/b")


def test_what_is_missing_is_estimated_however_sure():
    assert chosen(found("BN101", "net/a", certainty="likely"), layers=[LOST, B]).estimated == ("net/a",)


def test_what_values_of_the_file_make_likely_is_estimated():
    assert chosen(found("BN201", "net/a", certainty="likely")) == Targets(estimated=("net/a",))
    assert chosen(found("BN203", "net/a", certainty="likely")).estimated == ()


def test_what_is_not_proven_is_left_unless_asked():
    finding = found("BN201", "net/a", certainty="unproven")
    targets = chosen(finding)
    assert (targets.layers, list(reasons(targets))) == ((), ["net/a"])
    assert reasons(targets) == {
        "net/a": "BN201 is not proven for this layer; if you know that it applies, pass --unproven"
    }
    assert chosen(finding, unproven=True) == Targets(estimated=("net/a",))
    assert chosen(finding, patterns=["net/a"]) == Targets(estimated=("net/a",))


def test_never_updated_layers_are_repaired_together_or_not_at_all():
    """Of a net whose three layers never were, a repair of the one that gradients told of cost 1.3 points."""
    told, untold = found("BN201", "net/a", certainty="likely"), found("BN201", "net/b", certainty="unproven")
    targets = chosen(told, untold)
    assert targets.layers == ()
    assert reasons(targets)["net/a"].startswith("it was never updated (BN201), but nothing shows whether other such")
    assert chosen(told, untold, unproven=True).estimated == ("net/a", "net/b")
    assert chosen(told, untold, patterns=["net/a"]).estimated == ("net/a",)
    # What is missing must be filled in all the same, and what is wrong for another reason.
    assert chosen(found("BN203", "net/a"), untold).estimated == ("net/a",)
    assert chosen(found("BN101", "net/a"), untold, layers=[LOST, B]).estimated == ("net/a",)


def test_what_no_repair_helps_is_neither_chosen_nor_left():
    assert chosen(found("BN205", "net/a"), found("BN303", "net/b")) == Targets()


def test_a_pattern_chooses_healthy_layers_and_no_others():
    targets = chosen(found("BN201", "net/b"), patterns=["*/a"])
    assert targets == Targets(estimated=("net/a",))
    assert chosen(patterns=["net/?"]).estimated == ("net/a", "net/b")
    assert chosen(patterns=["net/b", "net/a"]).estimated == ("net/a", "net/b")


def test_a_pattern_without_data_has_nothing_to_estimate_from_but_says_so_by_trying():
    assert chosen(patterns=["net/a"], has_data=False) == Targets(estimated=("net/a",))
    finding = found("BN201", "net/a", certainty="unproven")
    targets = chosen(finding, patterns=["net/a"], has_data=False)
    assert (targets.layers, list(reasons(targets))) == ((), ["net/a"])


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(BadRequest, match=r"--layers net/A: no batch-norm layer matches; found: net/a, net/b$"):
        chosen(patterns=["net/a", "net/A"])
    with pytest.raises(BadRequest, match=r"found: none$"):
        chosen(patterns=["x"], layers=[])
    six = [example(f"bn{number}") for number in range(6)]
    with pytest.raises(BadRequest, match=r"found: bn0, bn1, bn2, bn3, bn4, …$"):
        chosen(patterns=["x"], layers=six)
    with pytest.raises(BadRequest, match=r"bn4$"):
        chosen(patterns=["x"], layers=six[:5])


def test_layers_without_statistics_cannot_be_chosen():
    bare = replace(LOST, absent={})
    half = replace(example("net/a", missing=["moving_variance"]), absent={})
    for layer in (bare, half, replace(half, variables={"moving_variance": "x"})):
        targets = chosen(found("BN203", "net/a"), layers=[layer, B])
        assert (targets.layers, [name for name, _ in targets.left]) == ((), ["net/a"])
        with pytest.raises(BadRequest):
            chosen(patterns=["net/a"], layers=[layer, B])
    # One of the two may be absent, if the layer needs it.
    lost = example("net/a", missing=["moving_variance"])
    assert chosen(found("BN102", "net/a"), layers=[lost, B]).estimated == ("net/a",)


def test_a_layer_that_was_trained_on_stored_statistics_needs_force():
    inert = found("BN304", "net/a")
    assert chosen(inert) == Targets()
    with pytest.raises(RepairRefused, match=r"layer net/a: it was trained with its stored statistics.*--force overrid"):
        chosen(inert, patterns=["*"])
    assert chosen(inert, patterns=["net/b"]) == Targets(estimated=("net/b",))
    assert chosen(inert, patterns=["*"], force=True).estimated == ("net/a", "net/b")
    assert chosen(inert, force=True).estimated == ("net/a",)
    assert chosen(force=True) == Targets()


@pytest.mark.parametrize("method", ["auto", "layerwise", "training"])
def test_lost_statistics_of_a_frozen_layer_are_not_estimated(method):
    finding = found("BN101", "net/a")
    targets = chosen(finding, layers=[FROZEN, B], method=method)
    assert targets.layers == ()
    assert reasons(targets)["net/a"].startswith("it was trained with its stored statistics (BN304), which this file la")
    assert chosen(finding, layers=[FROZEN, B], method=method, force=True).estimated == ("net/a",)
    # Those after it are.
    assert chosen(finding, found("BN203", "net/b"), layers=[FROZEN, B], method=method).estimated == ("net/b",)


def test_a_copy_of_them_may_be_taken_all_the_same():
    assert chosen(found("BN103", "net/a"), layers=[FROZEN, B], method="copy").copied == ("net/a",)


def copying(name="net/a", code="BN104"):
    return found(code, name)


@pytest.mark.parametrize("method", ["auto", "copy"])
def test_what_is_in_the_file_is_copied(method):
    assert chosen(copying(), method=method) == Targets(copied=("net/a",))
    assert chosen(copying(), method=method, has_data=False) == Targets(copied=("net/a",))


@pytest.mark.parametrize("method", ["layerwise", "training", "debias"])
def test_other_methods_say_that_they_do_not_copy(method):
    targets = chosen(copying(), method=method)
    assert targets.layers == ()
    assert reasons(targets) == {"net/a": f"--method {method} does not repair BN104, which needs copy"}


def test_a_copy_that_is_not_proven_is_left():
    swapped = found("BN206", "net/a", certainty="likely")
    assert reasons(chosen(swapped)) == {
        "net/a": "BN206 is not proven for this layer; if you know that it applies, pass --unproven"
    }
    assert chosen(swapped, unproven=True).copied == ("net/a",)


def test_a_layer_may_be_copied_and_estimated():
    targets = chosen(copying(), found("BN203", "net/a"))
    assert (targets.copied, targets.estimated, targets.layers) == (("net/a",), ("net/a",), ("net/a",))
    assert chosen(copying(), found("BN203", "net/a"), method="copy") == Targets(copied=("net/a",))


COLD = found("BN202", "net/a")


def test_a_cold_average_is_estimated_from_data_and_debiased_without():
    assert chosen(COLD) == Targets(estimated=("net/a",))
    assert chosen(COLD, has_data=False) == Targets(debiased=("net/a",))
    for has_data in (True, False):
        assert chosen(COLD, method="debias", has_data=has_data) == Targets(debiased=("net/a",))
    assert chosen(COLD, method="layerwise", has_data=False) == Targets(estimated=("net/a",))
    assert reasons(chosen(COLD, method="copy")) == {
        "net/a": "--method copy does not repair BN202, which needs estimate"
    }


@pytest.mark.parametrize("method", ["auto", "debias"])
def test_a_cold_average_that_is_not_proven_is_not_debiased(method):
    likely = found("BN202", "net/a", certainty="likely")
    targets = chosen(likely, has_data=False, method=method)
    assert (targets.debiased, list(reasons(targets))) == ((), ["net/a"])
    assert chosen(likely, has_data=False, method=method, unproven=True).debiased == ("net/a",)


def test_a_cold_average_with_another_defect_needs_data():
    targets = chosen(COLD, found("BN203", "net/a"), has_data=False)
    assert (targets.debiased, targets.estimated) == (("net/a",), ("net/a",))
    targets = chosen(COLD, found("BN203", "net/b"), method="debias")
    assert (targets.debiased, targets.estimated) == (("net/a",), ())
    assert reasons(targets) == {"net/b": "--method debias does not repair BN203, which needs estimate"}


def test_statistics_that_are_not_those_of_the_data_are_asked_for_by_name():
    finding = found("BN401", "net/a", certainty="likely")
    targets = chosen(finding)
    assert reasons(targets)["net/a"].startswith("its statistics do not match the data (BN401); if the data are")
    assert reasons(targets)["net/a"].endswith("name the layer with --layers")
    both = chosen(finding, found("BN201", "net/a", certainty="unproven"))
    assert reasons(both)["net/a"] == "BN401 is not proven for this layer; if you know that it applies, pass --unproven"


def test_the_reason_names_what_the_method_would_repair():
    doubtful = found("BN201", "net/a", certainty="unproven"), found("BN206", "net/a", certainty="likely")
    assert reasons(chosen(*doubtful))["net/a"].startswith("BN201 is not proven")
    assert reasons(chosen(*doubtful, method="copy"))["net/a"].startswith("BN206 is not proven")
    sure = found("BN203", "net/a")
    assert reasons(chosen(sure, *doubtful, method="debias"))["net/a"] == (
        "--method debias does not repair BN203, which needs estimate"
    )
    assert reasons(chosen(sure, *doubtful, method="copy"))["net/a"].startswith("BN206 is not proven")


def test_every_layer_is_named_once_in_the_order_copied_debiased_estimated():
    targets = Targets(("c", "a"), ("a", "d"), ("b", "d"))
    assert targets.layers == ("a", "d", "b", "c")


def test_findings_on_the_checkpoint_choose_no_layer():
    assert chosen(found("CK201")) == Targets()
