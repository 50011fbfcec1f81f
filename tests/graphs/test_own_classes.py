"""Layers in classes of the user's own: which of them run alike."""

import json

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions, Variable
from ckpt_doctor.graphs import describe
from tests.keras_configs import deciders, entry


def bn(name, class_name="BatchNormalization", **config):
    return entry(class_name, name, momentum=0.9, moving_variance_initializer="ones", **config)


def test_the_layers_of_a_functional_model_of_an_own_class_run_in_one_call():
    """Such a class has an own `train_step`; a model without connections has an own `call`."""
    functional = {"input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
    found = deciders(entry("mine>Trainer", "model", bn("a"), bn("b"), **functional))
    assert found["a"] == found["b"]
    found = deciders(entry("mine>Trainer", "model", bn("a"), bn("b")))
    assert found["a"] != found["b"]


def test_layers_of_one_own_class_with_the_same_options_run_the_same_code():
    own = "mine>Forgetful"
    found = deciders(
        entry("Functional", "model", bn("a", own), bn("b", own), bn("frozen", own, fixed=True), bn("keras"))
    )
    assert found["a"] == found["b"]
    assert len({found[name] for name in ("a", "frozen", "keras")}) == 3


def legacy(config):
    """Return a whole legacy file whose two layers lack their statistics, as Keras 3.15 names and lists them."""
    own = ("net/block/batch_normalization/gamma", "net/block/batch_normalization/beta")
    keras = ("net/bn/gamma", "net/bn/beta")
    return Checkpoint(
        "m.h5",
        "keras-hdf5",
        tuple(
            Variable(f"model_weights/{group}/{name}", (3,), "float32", 12, lambda: np.ones(3, np.float32))
            for group, names in (("block", own), ("bn", keras))
            for name in names
        ),
        (),
        0,
        descriptions=ModelDescriptions(keras_config=json.dumps(config)),
        attributes={
            "root": "model_weights",
            "weight_names": {"block": own, "bn": keras},
            "layer_names": ("block", "bn"),
            "keras_version": "3.15.1",
        },
    )


@pytest.mark.parametrize(
    "config",
    [
        # Keras writes this for a subclassed model, and the other for a layer of the user's own class.
        {"class_name": "Net", "config": {}},
        entry("Functional", "net", {**entry("Block", "block"), "registered_name": "own>Block"}, bn("bn")),
    ],
    ids=["subclassed model", "own layer"],
)
def test_what_is_inside_an_own_class_is_judged_by_its_names(config):
    checkpoint = legacy(config)
    inventory = take_inventory(checkpoint, describe(checkpoint))
    assert len(inventory.layers) == 2
    assert all(set(layer.absent) == {"moving_mean", "moving_variance"} for layer in inventory.layers)


def test_a_gamma_beside_layers_of_keras_is_none_of_a_batch_norm_that_the_config_does_not_list():
    checkpoint = legacy(entry("Functional", "net", entry("Dense", "block"), bn("bn")))
    inventory = take_inventory(checkpoint, describe(checkpoint))
    assert [layer.name for layer in inventory.layers] == ["bn"]
