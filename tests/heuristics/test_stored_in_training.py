"""How a layer ran in training, where several things tell."""

from dataclasses import replace

import pytest

from ckpt_doctor.batchnorm import TrainingMode
from ckpt_doctor.heuristics.stored_in_training import certainty_of_batch, ran_on
from ckpt_doctor.rules._examples import described, example

OWN_SLOTS = {
    mode: TrainingMode(mode, "slots", "the momentum of the bias in front of it", "bn") for mode in ("batch", "stored")
}


@pytest.mark.parametrize(
    ("graph", "gradients", "mode", "certainty"),
    [
        (True, None, "batch", "proven"),
        (True, "batch", "batch", "proven"),
        (True, "stored", None, None),  # One of the two is of another run.
        (None, "batch", "batch", "proven"),
        (None, "stored", "stored", None),
        (False, None, "stored", None),
        (False, "batch", "batch", "proven"),
        (None, None, None, None),
    ],
)
def test_graph_and_gradients(graph, gradients, mode, certainty):
    layer = replace(example(facts=described(trained=graph)), trained=OWN_SLOTS.get(gradients))
    assert (ran_on(layer), certainty_of_batch(layer)) == (mode, certainty)


def test_slots_of_another_layer_prove_nothing():
    layer = replace(example(facts=described(trained=None)), trained=replace(OWN_SLOTS["batch"], of="bn_1"))
    assert certainty_of_batch(layer) == "likely"
