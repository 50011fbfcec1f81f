"""What only an optimizer shows of a layer: names as TensorFlow 2.21 wrote them for Keras 3.15 and tf_keras 2.21."""

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions, Variable
from ckpt_doctor.graphs import describe
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class Objects:
    """An object graph in the making, and the variables that lie with it."""

    def __init__(self):
        self.graph = pb.TrackableObjectGraph()
        self.graph.nodes.add()
        self.variables = []

    def add(self, owner, name):
        self.graph.nodes.add()
        number = len(self.graph.nodes) - 1
        self.graph.nodes[owner].children.add(node_id=number, local_name=name)
        return number

    def variable(self, owner, name, key, full_name, shape=(4,)):
        number = self.add(owner, name)
        self.graph.nodes[number].attributes.add(checkpoint_key=key + SUFFIX, full_name=full_name)
        dtype = "float32" if shape else "int64"
        self.variables.append(
            Variable(key + SUFFIX, shape, dtype, 16, lambda: np.ones(shape, dtype), full_name or None)
        )
        return number

    def inventory(self):
        checkpoint = Checkpoint(
            "m",
            "tensor-bundle",
            tuple(self.variables),
            (),
            0,
            descriptions=ModelDescriptions(object_graph=self.graph.SerializeToString()),
        )
        return take_inventory(checkpoint, describe(checkpoint))


def of_keras_3(layer):
    """Return a net with a head in an attribute and a layer in a list, which the optimizer trained."""
    objects = Objects()
    model, optimizer = objects.add(0, "model"), objects.add(0, "optimizer")
    objects.variable(objects.add(model, "o"), "_kernel", "model/o/_kernel", "net/kernel", (4, 2))
    lists = {name: objects.add(optimizer, name) for name in ("_variables", "_trainable_variables", "_momentums")}
    objects.variable(optimizer, "_iterations", "optimizer/_iterations", "adam/iteration", ())
    for place, role in enumerate(("gamma", "beta")):
        key = f"optimizer/_trainable_variables/{place}"
        objects.variable(lists["_trainable_variables"], str(place), key, f"net/{role}")
        slot = objects.variable(
            lists["_variables"], str(place), f"optimizer/_variables/{place}", f"adam/net_{layer}_{role}_momentum"
        )
        objects.graph.nodes[lists["_momentums"]].children.add(node_id=slot, local_name=str(place))
    return objects


@pytest.mark.parametrize("layer", ["bn0", "batch_normalization_3"])
def test_slots_name_a_batch_norm_in_a_list(layer):
    (found,) = of_keras_3(layer).inventory().layers
    assert found.name == f"net_{layer}"
    assert found.variables == {
        role: f"optimizer/_trainable_variables/{place}{SUFFIX}" for place, role in enumerate(("gamma", "beta"))
    }
    assert set(found.absent) == {"moving_mean", "moving_variance"}
    assert found.evidence == "names"


def test_a_name_that_tells_nothing_is_not_judged():
    inventory = of_keras_3("norms").inventory()
    assert not inventory.layers
    assert set(inventory.not_judged) == {f"optimizer/_trainable_variables/{place}{SUFFIX}" for place in range(2)}
    assert all("in a list or a dict" in reason for reason in inventory.not_judged.values())


def test_another_normalisation_in_a_list_is_none_of_ours():
    inventory = of_keras_3("layer_normalization").inventory()
    assert not inventory.layers
    assert not inventory.not_judged


def test_what_the_model_shows_as_well_is_judged_there():
    objects = of_keras_3("batch_normalization")
    layer = objects.add(1, "norm")
    for number, node in enumerate(objects.graph.nodes):
        if node.attributes and node.attributes[0].full_name in ("net/gamma", "net/beta"):
            role = node.attributes[0].full_name.removeprefix("net/")
            objects.graph.nodes[layer].children.add(node_id=number, local_name=role)
    for role in ("moving_mean", "moving_variance"):
        objects.variable(layer, role, f"model/norm/{role}", f"net/{role}")
    (found,) = objects.inventory().layers
    assert not found.absent


@pytest.mark.parametrize(("shown", "told"), [(True, True), (False, False)], ids=["of a model", "of an optimizer alone"])
def test_slots_alone_tell_that_variables_are_gone(shown, told):
    objects = Objects()
    optimizer = objects.add(0, "optimizer")
    if shown:
        objects.variable(objects.add(0, "model"), "kernel", "model/kernel", "dense/kernel", (4, 2))
    momentums = objects.add(optimizer, "_momentums")
    objects.variable(optimizer, "_iterations", "optimizer/_iterations", "Adam/iteration", ())
    for place, name in enumerate(("dense/kernel", "batch_normalization/gamma", "batch_normalization/beta")):
        objects.variable(momentums, str(place), f"optimizer/_variables/{place}", f"Adam/m/{name}")
    inventory = objects.inventory()
    assert not inventory.layers
    assert list(inventory.not_judged) == (["batch_normalization"] if told else [])
