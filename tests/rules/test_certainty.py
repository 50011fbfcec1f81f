"""How sure a finding is: `proven` only for what the bytes of the file or the graph of the model show."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.rules import RULES
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule

BY_CODE = {rule.code: rule for rule in RULES}

# Rule to the certainty of its sick examples, in their order.
EXPECTED = {
    "BN101": ["likely", "likely"],
    "BN102": ["likely", "likely"],
    "BN103": ["likely", "likely"],
    "BN104": ["proven", "proven"],
    # Which variables are copies of each other is told by names.
    "BN105": ["likely", "likely", "likely", "likely"],
    "BN106": ["likely"],
    "BN203": ["proven", "proven", "proven"],
    "BN204": ["proven", "proven", "proven", "unproven"],
    "BN205": ["proven", "proven", "proven"],
    "BN206": ["likely", "likely", "likely"],
    "BN207": ["likely"],
    # An infinity is certain; 65504, 1 and 0 may be the true values.
    "BN208": ["proven", "likely", "likely", "likely"],
    "BN209": ["likely", "likely"],
    "BN210": ["unproven", "unproven"],
    "BN211": ["likely", "likely", "likely"],
    "BN301": ["proven"],
    "BN303": ["proven"],
    "BN304": ["proven"],
    # An optimizer slot, a gradient in the graph, a slot.
    "BN305": ["likely", "proven", "likely"],
    "BN306": ["proven", "likely"],
    # The data may be the wrong ones.
    "BN401": ["likely", "likely", "likely"],
    "BN402": ["likely", "proven", "likely"],
    "CK101": ["proven"],
    "CK102": ["proven"],
    "CK103": ["proven"],
    "CK104": ["proven"],
    "CK105": ["proven"],
    "CK106": ["likely"],
    "CK201": ["proven", "proven", "proven"],
}


def certainties(code, subject):
    return [finding.certainty for finding in BY_CODE[code].check(BY_CODE[code], subject)]


def known_from(subject, evidence):
    layers = tuple(replace(layer, evidence=evidence) for layer in subject.inventory.layers)
    return replace(subject, inventory=replace(subject.inventory, layers=layers))


def test_every_rule_says_how_sure_it_is():
    certainty = inspect.signature(Rule.finding).parameters["certainty"]
    assert certainty.default is inspect.Parameter.empty
    assert certainty.kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="certainty"):
        RULES[0].finding("no certainty")


@pytest.mark.parametrize("code", EXPECTED)
def test_examples_are_as_sure_as_their_evidence(code):
    sick = [case() for case in BY_CODE[code].sick]
    for subject, expected in zip(sick, EXPECTED[code], strict=True):
        assert set(certainties(code, subject)) == {expected}


@pytest.mark.parametrize("code", ["BN101", "BN102", "BN103", "BN209"])
@pytest.mark.parametrize(
    ("evidence", "expected"),
    [("names", "likely"), ("config", "proven"), ("object-graph", "proven"), ("graph", "proven")],
)
def test_names_alone_prove_nothing(code, evidence, expected):
    assert certainties(code, known_from(BY_CODE[code].sick[0](), evidence)) == [expected]


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [("names", "unproven"), ("object-graph", "unproven"), ("config", "likely"), ("graph", "likely")],
)
def test_a_fresh_layer_may_be_a_frozen_one_unless_the_model_says_otherwise(evidence, expected):
    assert certainties("BN210", known_from(BY_CODE["BN210"].sick[0](), evidence)) == [expected]


def test_a_config_shows_what_is_frozen_at_the_save_and_not_what_was_while_it_trained():
    assert certainties("BN304", known_from(BY_CODE["BN304"].sick[0](), "config")) == ["likely"]


def test_an_object_graph_shows_slots_and_no_gradients():
    assert certainties("BN305", known_from(BY_CODE["BN305"].sick[1](), "object-graph")) == ["likely"]


def test_a_negative_variance_is_proven_by_the_epsilon_of_the_model():
    assert certainties("BN204", holding(example(moving_variance=[-0.002, 1, 1], epsilon=None))) == ["likely"]
    assert certainties("BN204", holding(example(moving_variance=[-0.002, 1, 1], epsilon=1e-3))) == ["proven"]


def test_bfloat16_has_an_infinity_of_its_own_range():
    """An infinity in bfloat16 is no overflow of half precision, and a stalled variance beside it only likely."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer = example(dtype=ml_dtypes.bfloat16, moving_variance=[1, 1, np.inf])
    assert certainties("BN208", holding(layer)) == ["likely"]
