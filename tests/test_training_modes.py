"""How layers ran in training, told from checkpoints that the real frameworks wrote, and what `fix` makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.analysis import analyse
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import open_checkpoint
from tests.catalogue import FIXTURES
from tests.independent import read_file, write_bundle

FOLDER = FIXTURES / "training_modes"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def modes(path):
    return {layer.name: layer.trained for layer in analyse(open_checkpoint(path)).inventory.layers}


def findings(path):
    [checkpoint] = ckpt_doctor.scan(path).checkpoints
    return {(one.rule, one.severity, one.certainty, one.repair) for one in checkpoint.findings}


@pytest.mark.parametrize("name", EXPECTED)
def test_tensorflow_1(name):
    made = EXPECTED[name]
    by = "weights" if made["trainable_only"] else "slots" if made["bias"] else "scale"
    told = modes(FOLDER / name)
    assert {(mode.ran_on, mode.by) for mode in told.values()} == {(made["ran_on"], by)}
    certainty = "proven" if by == "slots" else "likely"
    if made["trainable_only"]:
        repair = "initial" if made["ran_on"] == "stored" else "estimate"
        assert {(rule, each) for rule, _, _, each in findings(FOLDER / name)} >= {("BN101", repair), ("BN102", repair)}
    elif made["ran_on"] == "batch":
        assert findings(FOLDER / name) == {
            ("BN201", "error", certainty, "estimate"),
            ("BN302", "error", certainty, "none"),
        }
    else:
        assert findings(FOLDER / name) == {("BN304", "note", certainty, "none")}


@pytest.mark.parametrize("described", [True, False])
def test_initial_values_are_put_back_without_data(here, described):
    """The values with which TensorFlow initialises them: zeros and ones."""
    for file in FOLDER.glob("trainable_stored.*"):
        if described or file.suffix != ".meta":
            shutil.copy(file, here)
    shutil.copy(FOLDER / "trainable_stored.meta", "graph.meta")
    options = {} if described else {"model": "graph.meta"}
    result = ckpt_doctor.fix("trainable_stored", output="out", **options)
    assert (result.complete, {layer.method for layer in result.layers}) == (True, {"initial"})
    before, after = read_file(here / "trainable_stored").values, read_file(here / "out").values
    added = {f"bn{number}/{role}" for number in (1, 2) for role in ("moving_mean", "moving_variance")}
    assert set(after) - set(before) == added
    for name in added:
        assert np.array_equal(after[name], np.full(12, float(name.endswith("variance")), np.float32))
    for name, value in before.items():
        assert np.array_equal(after[name], value)
    again = ckpt_doctor.fix("out", output="again", **options)
    assert (again.complete, again.layers) == (True, ())


def test_initial_values_are_not_estimated_unless_forced(here):
    np.save("x.npy", np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    options = {"data": ("x.npy",), "output": "out"}
    with pytest.raises(RepairRefused, match="which --method initial restores"):
        ckpt_doctor.fix(FOLDER / "trainable_stored", method="layerwise", **options)


def test_the_user_may_know_that_a_network_was_trained_on_its_initial_values(here):
    """Nothing tells: no bias, no slots."""
    values = {name: value for name, value in read_file(FOLDER / "no_bias_stored").values.items() if "Adam" not in name}
    values = {name: value for name, value in values.items() if "moving" not in name}
    write_bundle(here / "model", values, meta_of=FOLDER / "no_bias_stored")
    with pytest.raises(RepairRefused, match="if you know it was, name it with --layers"):
        ckpt_doctor.fix("model", method="initial", output="out")
    result = ckpt_doctor.fix("model", method="initial", layers=("*",), output="out")
    assert {layer.method for layer in result.layers} == {"initial"}
    assert not read_file(here / "out").values["bn1/moving_mean"].any()


def test_initial_values_replace_nothing(here):
    source = FIXTURES / "tf1_layers" / "full" / "model.ckpt-400"
    with pytest.raises(RepairRefused, match="restores missing statistics"):
        ckpt_doctor.fix(source, method="initial", layers=("bn1",), output="out", unproven=True)


def test_layers_that_tell_different_things_speak_for_themselves_only(here):
    values = dict(read_file(FOLDER / "adam_batch").values)
    other = read_file(FOLDER / "adam_stored").values
    for name in values:
        if name.startswith(("fc2/", "bn2/")):
            values[name] = other[name]
    write_bundle(here / "model", values, meta_of=FOLDER / "adam_batch")
    assert {name: mode.ran_on for name, mode in modes("model").items()} == {"bn1": "batch", "bn2": "stored"}
    # A third that says nothing is not told either way.
    values["fc1/bias"] = np.zeros(12, np.float32)
    values = {name: value for name, value in values.items() if not name.startswith("fc1/bias/")}
    write_bundle(here / "other", values, meta_of=FOLDER / "adam_batch")
    assert {name: mode and mode.of for name, mode in modes("other").items()} == {"bn1": "bn2", "bn2": "bn2"}


def test_healthy_layers_are_not_asked():
    assert set(modes(FIXTURES / "tf1_layers" / "full" / "model.ckpt-400").values()) == {None}


# Keras.


def data(random, rows=256):
    x = (random.normal(size=(rows, 8)) * [1, 2, 0.5, 3, 1, 4, 1, 2] + 2).astype(np.float32)
    return x, (np.sin(x[:, :1]) + x.sum(1, keepdims=True) * 0.3).astype(np.float32)


def keras_model(keras, *, use_bias, functional=True, regularizer=None):
    options = {"use_bias": use_bias, "kernel_regularizer": regularizer}
    inputs = keras.Input((8,))
    x = inputs
    for number in (1, 2):
        x = keras.layers.Dense(12, name=f"fc{number}", **options)(x)
        x = keras.layers.BatchNormalization(name=f"bn{number}")(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="out")(x))


def train(keras, model, optimizer, *, training, steps=80):
    """Train with a loop of one's own that never updates the statistics."""
    import tensorflow as tf

    random = np.random.default_rng(3)
    x, y = data(random)
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(a, b):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(a, training=training) - b) ** 2) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for _ in range(steps):
        chosen = random.integers(0, len(x), 32)
        step(x[chosen], y[chosen])
    for layer in model.layers:
        if layer.name.startswith("bn"):
            layer.moving_mean.assign(np.zeros(12))
            layer.moving_variance.assign(np.ones(12))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.tensorflow
@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.parametrize(
    ("optimizer", "use_bias", "by"),
    [("Adam", True, "slots"), ("RMSprop", True, "slots"), ("Adam", False, "scale"), ("SGD", True, "weights")],
)
@pytest.mark.parametrize("training", [True, False])
def test_keras(here, framework, optimizer, use_bias, by, training):
    import importlib

    keras = importlib.import_module(framework)
    keras.utils.set_random_seed(5)
    model = keras_model(keras, use_bias=use_bias)
    train(keras, model, getattr(keras.optimizers, optimizer)(0.01), training=training)
    word = "batch" if training else "stored"
    paths = ["model.keras", "model.h5"]
    for path in paths:
        model.save(path)
    # Where slots lie in a SavedModel; what they tell does not depend on the file.
    if (optimizer, use_bias, training) == ("Adam", True, True):
        import tensorflow as tf

        tf.saved_model.save(model, "saved")
        paths.append("saved")
    for path in paths:
        told = modes(path)
        if optimizer == "SGD" and not training:
            # Its steps are gradients: bias and beta need not have moved together.
            assert all(mode is None or mode.ran_on == "stored" for mode in told.values())
            continue
        assert {(mode.ran_on, mode.by) for mode in told.values()} == {(word, by)}, path
        certainty = "proven" if by == "slots" else "likely"
        code = ("BN201", "error", certainty, "estimate") if training else ("BN304", "note", certainty, "none")
        assert path == "saved" or findings(path) == {code}


@pytest.mark.tensorflow
def test_a_penalty_in_the_config_is_taken_out(here):
    import keras

    keras.utils.set_random_seed(5)
    model = keras_model(keras, use_bias=False, regularizer=keras.regularizers.L2(0.02))
    train(keras, model, keras.optimizers.Adam(0.01), training=True)
    model.save("model.keras")
    assert {mode.ran_on for mode in modes("model.keras").values()} == {"batch"}
    config = analyse(open_checkpoint("model.keras")).inventory.layers[0].facts
    assert config.front.l2 == pytest.approx(0.02)


@pytest.mark.tensorflow
def test_a_second_reader_of_the_same_tensor_ends_it(here):
    import keras

    inputs = keras.Input((8,))
    x = keras.layers.Dense(12, name="fc1")(inputs)
    normal = keras.layers.BatchNormalization(name="bn1")(x)
    model = keras.Model(inputs, keras.layers.Add()([normal, x]))
    model.save("model.keras")
    [layer] = analyse(open_checkpoint("model.keras")).inventory.layers
    assert layer.facts.front is None


@pytest.mark.tensorflow
def test_what_stands_between(here):
    """Averages keep a constant; dropout, an activation and padding do not; two batch norms do no harm."""
    import keras

    L = keras.layers
    inputs = keras.Input((8, 8, 3))
    outputs = []

    def front(number, *between, **options):
        x = L.Conv2D(4, 3, name=f"c{number}", **options)(inputs)
        for layer in between:
            x = layer(x)
        outputs.append(L.GlobalMaxPooling2D()(L.BatchNormalization(name=f"b{number}")(x)))
        return x

    front(1, L.AveragePooling2D(2))
    front(2, L.Dropout(0.5))
    front(3, L.ReLU())
    front(4, L.ZeroPadding2D())
    front(5, activation="relu")
    both = front(6)
    outputs.append(L.GlobalMaxPooling2D()(L.BatchNormalization(name="b7")(both)))
    depthwise = L.DepthwiseConv2D(3, name="d")(inputs)
    outputs.append(L.GlobalMaxPooling2D()(L.BatchNormalization(name="b8")(depthwise)))
    separable = L.SeparableConv2D(4, 3, name="s")(inputs)
    outputs.append(L.GlobalMaxPooling2D()(L.BatchNormalization(name="b9")(separable)))
    transposed = L.Conv2DTranspose(4, 3, name="t", use_bias=False)(inputs)
    outputs.append(L.GlobalMaxPooling2D()(L.BatchNormalization(name="b10")(transposed)))
    keras.Model(inputs, outputs).save("model.keras")
    found = {layer.name: layer.facts.front for layer in analyse(open_checkpoint("model.keras")).inventory.layers}
    assert {name for name, one in found.items() if one is None} == {"b2", "b3", "b4", "b5"}
    groups = {name: (one.kernel.rpartition("/vars/")[0], one.axes) for name, one in found.items() if one is not None}
    assert groups["b1"] == ("layers/conv2d", (-1,))
    assert groups["b6"] == groups["b7"] == ("layers/conv2d_5", (-1,))
    assert groups["b8"] == ("layers/depthwise_conv2d", (-2, -1))
    assert (found["b9"].kernel, found["b9"].bias) == (
        "layers/separable_conv2d/vars/1",
        "layers/separable_conv2d/vars/2",
    )
    assert groups["b10"] == ("layers/conv2d_transpose", (-2,))
    assert found["b10"].bias is None


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.tensorflow
def test_a_call_in_inference_mode_is_obeyed_by_keras_2(here):
    import tf_keras as keras

    inputs = keras.Input((8,))
    x = keras.layers.BatchNormalization(name="bn1")(keras.layers.Dense(12)(inputs), training=False)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.get_layer("bn1").gamma.assign(np.linspace(0.5, 2, 12))
    for suffix in ("keras", "h5"):
        model.save(f"model.{suffix}")
        assert findings(f"model.{suffix}") == {("BN304", "note", "likely", "none")}
    assert Path("model.h5").exists()
