"""What training graphs say of their layers: mode, decay, epsilon, wiring, initial values, as they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.facts import LayerFacts

ZOO = Path(__file__).parents[2] / "fixtures" / "zoo"

# Sample: mode, decay, epsilon, whether one op runs updates and gradients, whether it is proven that training used
# batch statistics, and what the averages start at.
MADE = {
    # What was fed to a switch during training is in no file.
    "tf1/layers_control": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/layers_group": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/layers_slim": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/layers_separate": ("switch", 0.8, 1e-3, False, None, "0/1"),
    "tf1/layers_forgotten": ("switch", 0.8, 1e-3, False, None, "0/1"),
    "tf1/layers_default": ("stored", None, 1e-3, None, False, "0/1"),
    "tf1/layers_frozen": ("switch", 0.99, 1e-3, False, None, "0/1"),
    "tf1/contrib_in_place": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/control_flow_v2": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/keras_updates_run": ("switch", 0.8, 1e-3, False, None, "0/1"),
    "tf1/hand_cond": ("switch", 0.6, 1e-3, True, None, "0/1"),
    "tf1/hand_where": ("switch", 0.6, 1e-3, False, None, "0/1"),
    "tf1/hand_phase": ("switch", 0.6, 1e-3, False, None, "0/1"),
    "tf1/hand_ema": ("switch", 0.6, 1e-3, True, None, "0/0"),
    "tf1/hand_anonymous": ("switch", 0.6, 1e-3, False, None, "0/1"),
    "tf1/hand_sufficient": ("batch", 0.6, 1e-3, False, True, "0/1"),
    "tf1/hand_weighted": ("batch", 0.6, 1e-3, False, True, "0/1"),
    "tf1/renorm": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/partitioned": ("switch", 0.8, 1e-3, True, None, "0/1"),
    "tf1/trained_by_gradient": ("stored", None, 1e-5, None, False, "0/1"),
    "tf1/serves_stored": ("stored", None, 1e-3, None, None, "0/1"),
    "tf1/serves_batch": ("batch", 0.8, 1e-3, None, None, "0/1"),
    "tf1/design_trains": ("batch", None, 1e-3, None, True, "0/1"),
    "libraries/tensorpack": ("batch", 0.8, 1e-5, True, True, "0/1"),
    "libraries/tflearn": ("switch", 0.8, 1e-5, True, None, "0/1"),
    "libraries/sonnet": ("batch", 0.8, 1e-3, True, True, "0/1"),
    "tf2/serves_stored": ("stored", None, 1e-3, None, None, "0/1"),
    "tf2/serves_batch": ("batch", 0.8, 1e-3, None, None, "0/1"),
    "tf2/keras_export": ("stored", None, 1e-3, None, None, "0/1"),
}


def layers_of(name: str) -> tuple[LayerFacts, ...]:
    facts = describe(open_checkpoint(str(ZOO / name)))
    assert facts is not None
    assert facts.evidence == "graph"
    return facts.layers


@pytest.mark.parametrize(("name", "made"), MADE.items())
def test_what_a_graph_says_is_how_it_was_made(name, made):
    for layer in layers_of(name):
        said = (layer.mode, layer.momentum, layer.epsilon, layer.updates_run, layer.trained, layer.initial)
        assert said == made, layer.name


def test_only_a_gradient_that_is_applied_proves_that_it_trains_statistics():
    assert [layer.gradient_trains for layer in layers_of("tf1/trained_by_gradient")] == [True]
    assert [layer.gradient_trains for layer in layers_of("tf1/facenet")] == [False]


def test_updates_of_one_layer_only_are_told_from_the_others():
    assert {layer.name: layer.updates_run for layer in layers_of("tf1/layers_by_scope")} == {"bn1": True, "bn2": False}
