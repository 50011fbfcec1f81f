"""Object graphs and Keras configs, where files of the zoo do not reach."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions, Variable
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.object_graph import describe_objects
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

KEY = "/.ATTRIBUTES/VARIABLE_VALUE"


def objects(**owned: dict[str, str]) -> bytes:
    """Return an object graph: object to child to the key of its variable."""
    graph = pb.TrackableObjectGraph()
    graph.nodes.add()
    for name, children in owned.items():
        graph.nodes[0].children.add(node_id=len(graph.nodes), local_name=name)
        owner = graph.nodes.add()
        for child, key in children.items():
            owner.children.add(node_id=len(graph.nodes), local_name=child)
            graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key=key, full_name=f"net/{name}/{child}")
    return bytes(graph.SerializeToString())


def test_an_object_with_both_statistics_is_a_layer_and_its_children_are_the_roles():
    data = objects(
        bn={"gamma": f"optimizer/_trainable_variables/3{KEY}", "moving_mean": f"bn/moving_mean{KEY}",
            "moving_variance": f"bn/moving_variance{KEY}"},
        scaler={"mean": f"scaler/mean{KEY}", "variance": f"scaler/variance{KEY}"},
    )  # fmt: skip
    (layer,) = describe_objects(data).layers
    assert (layer.name, layer.gamma, layer.beta) == ("bn", f"optimizer/_trainable_variables/3{KEY}", None)


def test_a_number_in_a_list_is_no_name():
    data = objects(bn={"moving_mean": f"_all_variables/4{KEY}", "moving_variance": f"_all_variables/5{KEY}"})
    (layer,) = describe_objects(data).layers
    assert layer.name == "net/bn"


def test_a_damaged_object_graph_is_a_problem_and_no_crash():
    assert describe_objects(b"\xff\xff").problems


def keras_file(layers: list[dict[str, object]], **shapes: tuple[int, ...]) -> Checkpoint:
    variables = tuple(
        Variable(name, shape, "float32", 4, lambda shape=shape: np.ones(shape, np.float32))  # type: ignore[misc]
        for name, shape in shapes.items()
    )
    config = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
    return Checkpoint(
        "m.keras", "keras-v3", variables, ("m.keras",), 0,
        descriptions=ModelDescriptions(keras_config=json.dumps(config)),
    )  # fmt: skip


def bn(name: str, class_name: str = "BatchNormalization", **config: object) -> dict[str, object]:
    return {"class_name": class_name, "config": {"name": name, "momentum": 0.9, "epsilon": 0.001, **config}}


def test_a_layer_without_any_variable_is_known_by_its_config():
    checkpoint = keras_file(
        [bn("one"), {"class_name": "Dense", "config": {"name": "out"}}], **{"layers/dense/vars/0": (2, 2)}
    )
    (layer,) = take_inventory(checkpoint, describe(checkpoint)).layers
    assert (layer.name, set(layer.absent), dict(layer.variables)) == ("one", {"moving_mean", "moving_variance"}, {})


def test_a_derived_class_is_batch_norm_and_another_norm_is_not():
    group = "layers/my_batch_norm"
    checkpoint = keras_file(
        [bn("mine", "MyBatchNorm"), {"class_name": "LayerNormalization", "config": {"name": "ln"}}],
        **{f"{group}/vars/{n}": (2,) for n in range(4)},
        **{f"layers/layer_normalization/vars/{n}": (2,) for n in range(2)},
    )
    (layer,) = take_inventory(checkpoint, describe(checkpoint)).layers
    assert layer.variables["moving_variance"] == f"{group}/vars/3"
    assert (layer.epsilon, layer.momentum) == (0.001, 0.9)


def test_a_config_without_gamma_shifts_the_positions():
    group = "layers/batch_normalization"
    checkpoint = keras_file([bn("b", scale=False)], **{f"{group}/vars/{n}": (2,) for n in range(3)})
    (layer,) = take_inventory(checkpoint, describe(checkpoint)).layers
    assert dict(layer.variables) == {
        "beta": f"{group}/vars/0",
        "moving_mean": f"{group}/vars/1",
        "moving_variance": f"{group}/vars/2",
    }


def test_a_broken_config_is_said_and_names_still_judge():
    checkpoint = keras_file([bn("b")], **{f"layers/batch_normalization/vars/{n}": (2,) for n in range(4)})
    object.__setattr__(checkpoint.descriptions, "keras_config", "{")
    inventory = take_inventory(checkpoint, describe(checkpoint))
    assert inventory.model is not None
    assert inventory.model.problems
    assert len(inventory.layers) == 1


def trained_file(version: str | None, **config: object) -> Checkpoint:
    """Return a file whose optimizer has made steps, by a version of Keras."""
    checkpoint = keras_file(
        [bn("one", **config)], **{"layers/batch_normalization/vars/0": (2,), "optimizer/vars/0": ()}
    )
    variables = tuple(
        dataclasses.replace(variable, dtype="int64") if variable.name == "optimizer/vars/0" else variable
        for variable in checkpoint.variables
    )
    return dataclasses.replace(checkpoint, variables=variables, attributes={"keras_version": version})


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ("2.1.2", "switch"),
        ("2.2.4-tf", "switch"),
        ("2.3.1", "switch"),
        ("2.4.0", "stored"),
        ("2.10.0", "stored"),
        ("2.15.0", "stored"),
        ("3.0.5", "stored"),
        ("10.0", "stored"),
        ("1.2.2", "switch"),
        (None, "switch"),
        ("", "switch"),
        ("unknown", "switch"),
    ],
)
def test_since_keras_2_4_a_frozen_layer_trains_in_inference_mode(version, mode):
    """TensorFlow 2.0 and 1.15 both say 2.2.4-tf, and only the first froze layers so: nothing is claimed for them."""
    (layer,) = describe(trained_file(version, trainable=False)).layers
    assert (layer.mode, layer.trained) == (mode, False)
    (layer,) = describe(trained_file(version)).layers
    assert (layer.mode, layer.trained) == ("switch", None)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("number", ["", "_1", "_12"])
def test_a_model_that_was_built_a_second_time_in_a_session(number, nested):
    """Keras 2.2.4 and tf.keras of TensorFlow 1.15 write `bn/bn_1/gamma:0` for the layer `bn`."""
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    bn = {"class_name": "BatchNormalization", "config": {"name": "bn", "epsilon": 1e-3, "momentum": 0.9}}
    # A layer that is really called so must not be taken for it.
    other = {"class_name": "BatchNormalization", "config": {"name": "bn_2", "epsilon": 1e-3, "momentum": 0.9}}
    config = {"class_name": "Sequential", "config": {"name": "m", "layers": [bn, other]}}
    if nested:
        config = {"class_name": "Functional", "config": {"name": "outer", "layers": [config]}}
    names = {name: [f"{name}{number}/{role}:0" for role in roles] for name in ("bn", "bn_2")}
    if nested:
        names = {"m": [weight for listed in names.values() for weight in listed]}
    variables = tuple(
        Variable(f"{group}/{weight}", (3,), "float32", 12, lambda: np.ones(3, np.float32))
        for group, listed in names.items()
        for weight in listed
    )
    checkpoint = Checkpoint(
        "x.h5",
        "keras-weights-hdf5",
        variables,
        (),
        0,
        descriptions=ModelDescriptions(keras_config=json.dumps(config)),
        attributes={"weight_names": names, "root": "", "keras_version": "2.2.4"},
    )
    found = {layer.name: layer for layer in take_inventory(checkpoint, describe(checkpoint)).layers}
    assert set(found) == {"bn", "bn_2"}
    for name, layer in found.items():
        group = "m" if nested else name
        assert layer.variables == {role: f"{group}/{name}{number}/{role}:0" for role in roles}
        assert not layer.absent
        assert layer.evidence == "config"
