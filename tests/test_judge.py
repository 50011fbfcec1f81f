"""What the one judge is shown, and what it hands on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor import verdict as module
from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Checkpoint, Damage
from ckpt_doctor.graphs.facts import ModelFacts
from ckpt_doctor.observation import Observation
from ckpt_doctor.result import NotJudged
from ckpt_doctor.rules._examples import described, example
from ckpt_doctor.selection import Selection
from ckpt_doctor.verdict import Policy, judge

CHECKPOINT = Checkpoint("model", "tensor-bundle", (), (), 0)


def analysis_of(*layers: BatchNormLayer, steps: int | None = None, **options: object) -> Analysis:
    return Analysis(CHECKPOINT, Inventory(layers, steps=steps), **options)


def codes(analysis: Analysis, policy: Policy) -> list[str]:
    return [finding.rule for finding in judge(analysis, policy).findings]


def shifted(by: float) -> dict[str, Observation]:
    """Return data whose means are so many standard deviations from those that are stored."""
    mean, variance = np.array([0.4, -0.1, 2.0]), np.array([1.7, 0.3, 4.0])
    mean = mean + by * np.sqrt(variance + 1e-3)
    return {"bn": Observation(100, mean, variance, np.stack([mean, mean]), np.stack([variance, variance]))}


def cold(**options: object) -> BatchNormLayer:
    layer = example(facts=described(), moving_mean=[0.4, -0.1, 0.3], moving_variance=[1.7, 0.9, 4.0])
    return replace(layer, **{"momentum": 0.99, **options})


def test_everything_that_the_rules_may_ask_reaches_them():
    policy = Policy()
    assert codes(analysis_of(example()), policy) == []
    assert codes(analysis_of(example(), non_finite={"w": 3}), policy) == ["CK201"]
    assert codes(analysis_of(defects=(Damage("truncated", "x", "y"),)), policy) == ["CK102"]
    assert codes(analysis_of(example()), Policy(observed=shifted(0.3))) == ["BN401"]
    assert codes(analysis_of(example()), Policy(observed=shifted(0.3), tolerance=1.5)) == []
    assert codes(analysis_of(example()), Policy(observed=shifted(0.2), tolerance=0.5)) == ["BN401"]
    assert codes(analysis_of(example()), Policy(observed=shifted(0.3), selection=Selection.of((), ("BN4",), {}))) == []
    assert codes(analysis_of(cold(), steps=100), policy) == ["BN202"]
    assert codes(analysis_of(cold(), steps=100), Policy(repaired=frozenset({"bn"}))) == []
    assert codes(analysis_of(cold(), steps=100), Policy(repaired=frozenset({"other"}))) == ["BN202"]


def test_the_verdict_keeps_what_it_is_of():
    analysis = analysis_of(cold(), example("fresh", moving_variance=[0, 1, 1]), steps=100)
    verdict = judge(analysis, Policy())
    assert verdict.analysis is analysis
    assert verdict.subject.inventory is analysis.inventory
    assert [finding.rule for finding in verdict.findings] == ["BN202", "BN205"]


def test_what_is_not_judged_is_told_with_its_place():
    model = ModelFacts("graph", not_judged=(("site", "strange"),), problems=("no graph",))
    inventory = Inventory((), not_judged={"obs/mean": "alone"}, model=model)
    verdict = judge(Analysis(CHECKPOINT, inventory), Policy(unobserved={"bn": "never run"}))
    assert verdict.not_judged == (
        NotJudged("obs/mean", "alone"),
        NotJudged("site", "strange"),
        NotJudged("model", "no graph"),
        NotJudged("bn", "never run"),
    )
    assert judge(Analysis(CHECKPOINT, Inventory((), not_judged={"a": "b"})), Policy()).not_judged == (
        NotJudged("a", "b"),
    )


def test_what_no_counter_tells_is_named_only_if_asked_for():
    # A bundle could hold its counter, beside the graph that counts; what follows cannot.
    bundle = analysis_of(cold(), cold(name="other"))
    assert judge(bundle, Policy(strict=True)).not_judged == ()
    analysis = replace(bundle, checkpoint=replace(bundle.checkpoint, format="saved-model"))
    assert judge(analysis, Policy()).not_judged == ()
    (place,) = judge(analysis, Policy(strict=True)).not_judged
    assert place.where == "model"
    assert "averages of 2 layers (first: bn) are cold (BN202) is unknown" in place.reason
    for policy in (
        Policy(strict=True, selection=Selection.of((), ("BN202",), {})),
        Policy(strict=True, repaired=frozenset({"bn", "other"})),
    ):
        assert judge(analysis, policy).not_judged == ()
    # The counter tells.
    for steps in (100, 10_000):
        assert judge(analysis_of(cold(), steps=steps), Policy(strict=True)).not_judged == ()


TRAINED_BY_GRADIENT = example(facts=replace(described(), gradient_trains=True))


@pytest.mark.parametrize(
    ("layer", "asked"),
    [
        (example(), False),
        (example(facts=described()), False),
        (replace(example(), slots=("bn/moving_mean/Adam",)), True),
        (replace(example(), copies={"gamma/shadow": "bn/gamma/ExponentialMovingAverage"}), True),
        (TRAINED_BY_GRADIENT, True),
        (cold(), True),
        (cold(momentum=0.9), False),
    ],
)
def test_receipts_are_looked_for_only_where_one_could_answer(layer, asked, monkeypatch):
    calls = []

    def receipts(checkpoint):
        calls.append(checkpoint)
        return frozenset({"bn"})

    monkeypatch.setattr(module, "repaired_layers", receipts)
    verdict = judge(analysis_of(layer, example("other"), steps=100), Policy())
    assert calls == ([CHECKPOINT] if asked else [])
    assert verdict.subject.repaired == (frozenset({"bn"}) if asked else frozenset())
    for known in (frozenset(), frozenset({"bn"})):
        calls.clear()
        assert judge(analysis_of(layer, steps=100), Policy(repaired=known)).subject.repaired == known
        assert calls == []
