"""What the calls of a layer read, by the connections that Keras writes down."""

import numpy as np
import pytest

from ckpt_doctor.analysis import analyse
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs.keras_calls import Call, calls_of, layers_in


def tensor(layer):
    return {"class_name": "__keras_tensor__", "config": {"shape": [None, 3], "keras_history": [layer, 0, 0]}}


def test_calls_of_keras_3():
    inbound = [
        {"args": [tensor("a")], "kwargs": {"mask": tensor("m"), "training": False}},
        {"args": [[tensor("a"), tensor("b")]], "kwargs": {}},
        {"args": [], "kwargs": {"query": tensor("a"), "value": tensor("b"), "mask": None}},
    ]
    first, second, third = calls_of({"inbound_nodes": inbound})
    assert (first.sources, first.masks, first.arguments["training"]) == (["a"], ("m",), False)
    assert second == Call(["a", "b"], {})
    assert (third.sources, third.masks) == (["a", "b"], ())


def test_calls_of_keras_2():
    inbound = [[["a", 0, 0, {}], ["b", 0, 0, {"training": True}]], ["c", 0, 0, {}]]
    assert calls_of({"inbound_nodes": inbound}) == [Call(["a", "b"], {"training": True}), Call(["c"], {})]
    assert calls_of({}) == calls_of({"inbound_nodes": None}) == []


def test_a_sequential_of_keras_1_is_a_list():
    entry = {"config": [{"class_name": "Dense", "config": {"name": "d"}}, {"config": None}, "?"]}
    assert [name for name, _ in layers_in(entry)] == ["d"]
    assert layers_in({"config": {"units": 3}}) is layers_in("?") is None


@pytest.mark.tensorflow
def test_a_mask_is_no_second_input_of_batch_norm(tmp_path):
    keras = pytest.importorskip("keras")
    x, mask = keras.Input((6, 8), name="x"), keras.Input((6,), dtype="bool", name="mask")
    outputs = [keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(12, name="fc")(x), mask=mask)]
    # What is read for a mask too is not read by batch norm alone.
    hidden = keras.layers.Dense(12, name="fc2")(x)
    outputs.append(keras.layers.BatchNormalization(name="bn2")(hidden, mask=keras.ops.any(hidden > 0, axis=-1)))
    model = keras.Model([x, mask], outputs)
    model.save(tmp_path / "model.keras")
    checkpoint = open_checkpoint(tmp_path / "model.keras")
    fronts = {layer.name: layer.facts.front for layer in analyse(checkpoint).inventory.layers}
    kernel = checkpoint.variable(fronts["bn"].kernel).read()
    assert np.array_equal(kernel, model.get_layer("fc").kernel)
    assert fronts["bn2"] is None
