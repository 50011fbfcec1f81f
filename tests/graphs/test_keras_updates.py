"""How often a step updates a Keras layer: by its config, against what Keras did.

A layer whose input is 0 everywhere averages a variance of 0, so what it stores is exactly decay^updates.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.keras_updates import is_zero_debiased, updates_each_step
from tests.catalogue import FIXTURES

STEPS, DECAY, TIME = 3, 0.9, 5


def shared(keras: Any, layer: Any, x: Any) -> Any:
    return keras.layers.Add()([layer(x), layer(x)])


def not_in_training(keras: Any, layer: Any, x: Any) -> Any:
    return keras.layers.Add()([layer(x), layer(x, training=False)])


def nested(keras: Any, layer: Any, x: Any) -> Any:
    inner = keras.Sequential([keras.Input((TIME, 2)), layer], name="inner")
    return keras.layers.Add()([inner(x), inner(x), inner(x)])


def twice_distributed(keras: Any, layer: Any, x: Any) -> Any:
    wrapped = keras.layers.TimeDistributed(layer)
    return keras.layers.Add()([wrapped(x), wrapped(x)])


def distributed_model(keras: Any, layer: Any, x: Any) -> Any:
    inner = keras.Sequential([keras.Input((2,)), layer], name="inner")
    return keras.layers.TimeDistributed(inner)(x)


def once(keras: Any, layer: Any, x: Any) -> Any:
    return layer(x)


def trained(keras: Any, build: Any, folder: Path, **compiled: Any) -> list[Path]:
    """Return the files of a model that was trained for a few steps on nothing, one a format."""
    x = keras.Input((TIME, 2))
    layer = keras.layers.BatchNormalization(momentum=DECAY, name="bn")
    outputs = keras.layers.Dense(1, dtype="float32")(build(keras, layer, keras.layers.Rescaling(0.0)(x)))
    model = keras.Model(x, outputs)
    model.compile(**({"optimizer": "sgd", "loss": "mse", "run_eagerly": True} | compiled))
    data = np.ones((STEPS * 2, TIME, 2), np.float32)
    model.fit(data, np.ones((STEPS * 2, TIME, 1)), batch_size=2, verbose=0, shuffle=False)
    files = [folder / "model.keras", folder / "model.h5"]
    for file in files:
        model.save(file)
    return files


def counted(path: Path) -> tuple[int, int | None, int]:
    """Return the steps and the updates in one that the file tells, and the updates that its variance shows."""
    checkpoint = open_checkpoint(str(path))
    inventory = take_inventory(checkpoint, describe(checkpoint))
    (layer,) = inventory.layers
    assert layer.facts is not None
    assert inventory.steps is not None
    variance = np.asarray(layer.values["moving_variance"], np.float64)
    updates = np.log(variance) / math.log(DECAY)
    np.testing.assert_allclose(updates, np.round(updates), atol=1e-4)
    return inventory.steps, layer.facts.updates, round(float(updates[0]))


def assert_counted_as_done(files: list[Path]) -> None:
    """Assert that each file tells as many updates as its variance shows."""
    for path in files:
        steps, each, seen = counted(path)
        assert steps == STEPS
        assert each is not None
        assert steps * each == seen


@pytest.mark.parametrize("build", [shared, nested, twice_distributed, distributed_model])
def test_keras_3_updates_as_often_as_its_config_says(tmp_path, build):
    keras = pytest.importorskip("keras")
    assert_counted_as_done(trained(keras, build, tmp_path))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("build", [nested, twice_distributed, not_in_training])
def test_keras_2_folds_time_into_the_batch_and_obeys_its_calls(tmp_path, build):
    keras = pytest.importorskip("tf_keras")
    assert_counted_as_done(trained(keras, build, tmp_path))


def test_gradient_accumulation_counts_each_small_step(tmp_path):
    keras = pytest.importorskip("keras")
    files = trained(keras, once, tmp_path, optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2))
    assert [counted(path) for path in files] == [(STEPS, 1, STEPS)] * 2


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_optimizer_inside_a_loss_scale_counts_the_steps(tmp_path, optimizer):
    """The counter of `LossScaleOptimizer` itself stays 0; mixed_float16 makes `compile` wrap every optimizer in it."""
    keras = pytest.importorskip("keras")
    inner = getattr(keras.optimizers, optimizer)()
    for path in trained(keras, once, tmp_path, optimizer=keras.optimizers.LossScaleOptimizer(inner)):
        assert counted(path) == (STEPS, 1, STEPS)
        model = describe(open_checkpoint(str(path)))
        assert model is not None
        assert model.trains


def wrapper(name: str, **more: Any) -> dict[str, Any]:
    inner = {"class_name": "BatchNormalization", "config": {"name": "bn"}}
    return {"class_name": name, "config": {"name": "outer", "layer": inner}, **more}


def model_of(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "net", "layers": list(layers)}}


def distributed_over(length: object) -> dict[str, Any]:
    return wrapper("TimeDistributed", build_config={"input_shape": [None, length, 2]})


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (distributed_over(7), 7),
        (distributed_over(None), None),
        (wrapper("TimeDistributed"), None),  # A Sequential in an H5 file writes no shape.
        (wrapper("TimeDistributed", build_config={"input_shape": 7}), None),
        (wrapper("MyWrapper"), None),
        (wrapper("Bidirectional"), None),
        (wrapper("SpectralNormalization"), 1),
        ({"class_name": "RNN", "config": {"name": "outer", "cell": wrapper("x")["config"]["layer"]}}, None),
    ],
)
def test_what_a_wrapper_does_is_known_of_few(layer, expected):
    assert updates_each_step(model_of(layer), keras_3=True)[("outer", "bn")] == expected


def test_two_layers_of_one_name_tell_nothing_where_they_differ():
    one, other = distributed_over(7), distributed_over(8)
    assert updates_each_step(model_of(one, one), keras_3=True)[("outer", "bn")] == 7
    assert updates_each_step(model_of(one, other), keras_3=True)[("outer", "bn")] is None


@pytest.mark.parametrize("config", [None, 3, {"layers": 3}, {"layers": [3, {"config": 3}, {}]}, {"name": 3}])
def test_a_config_that_keras_does_not_write_tells_nothing(config):
    updates_each_step({"class_name": "Sequential", "config": config}, keras_3=True)


def test_models_that_are_nested_without_end_are_left():
    layer: dict[str, Any] = {"class_name": "BatchNormalization", "config": {"name": "bn"}}
    for _ in range(60):
        layer = model_of(layer)
    assert updates_each_step(json.loads(json.dumps(layer)), keras_3=True) == {}


@pytest.mark.parametrize(
    ("version", "backend", "expected"),
    [
        ("2.1.2", "tensorflow", False),
        ("2.1.3", "tensorflow", True),
        ("2.2.4", "tensorflow", True),
        ("2.3.1", "tensorflow", True),
        ("2.2.4", None, True),
        ("2.2.4", "theano", False),
        ("2.2.4-tf", "tensorflow", False),
        ("2.4.0", "tensorflow", False),
        ("3.0.5", "tensorflow", False),
        (None, None, False),
        ("", "", False),
    ],
)
def test_averages_of_some_versions_correct_for_their_start(version, backend, expected):
    assert is_zero_debiased(version, backend) is expected


def test_a_file_of_such_a_version_says_so():
    model = describe(open_checkpoint(str(FIXTURES / "formats/keras/keras22_whole.h5")))
    assert model is not None
    assert {layer.zero_debiased for layer in model.layers} == {True}
    model = describe(open_checkpoint(str(FIXTURES / "formats/keras/keras3_whole.h5")))
    assert model is not None
    assert {layer.zero_debiased for layer in model.layers} == {False}
