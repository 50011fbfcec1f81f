"""Models that look text and numbers up in tables, held against what Keras itself computes in front of the layer."""

import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.capture.data import read_samples
from ckpt_doctor.capture.live import LiveTensors
from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.options import DataOptions

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match"),
    pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict"),
]

RANDOM = np.random.default_rng(0)
WORDS = np.array("good great bad awful the a movie film plot".split())
DATA = {
    "text": np.array([" ".join(WORDS[row]) for row in RANDOM.integers(0, 9, (90, 6))]),
    "city": np.array(["ber", "par", "rom", "xxx"])[RANDOM.integers(0, 4, (90, 1))],
    "number": RANDOM.integers(0, 30, (90, 1)),
    "age": RANDOM.normal(40, 10, (90, 1)).astype(np.float32),
}


def adapted(layer, name):
    layer.adapt(DATA[name][:60])
    return layer


def flat_features(keras):
    """Return inputs by name, and what all kinds of preprocessing make of them."""
    layers = keras.layers
    inputs = {
        "text": keras.Input((), dtype="string", name="text"),
        "city": keras.Input((1,), dtype="string", name="city"),
        "number": keras.Input((1,), dtype="int64", name="number"),
        "age": keras.Input((1,), name="age"),
    }
    words = adapted(layers.TextVectorization(max_tokens=20, output_sequence_length=5), "text")(inputs["text"])
    city = adapted(layers.StringLookup(num_oov_indices=2), "city")(inputs["city"])
    parts = [
        layers.Flatten()(layers.Embedding(20, 3)(words)),
        layers.Flatten()(layers.Embedding(8, 2)(city)),
        layers.StringLookup(vocabulary=["ber", "rom"], output_mode="one_hot")(inputs["city"]),
        adapted(layers.IntegerLookup(output_mode="multi_hot"), "number")(inputs["number"]),
        layers.Flatten()(layers.Embedding(8, 2)(layers.Hashing(8)(inputs["city"]))),
        layers.CategoryEncoding(30, output_mode="multi_hot")(inputs["number"]),
        inputs["age"],
    ]
    if keras.__name__ == "keras":  # An adapted Discretization of Keras 2 cannot be loaded from a .keras file.
        parts.append(adapted(layers.Discretization(num_bins=5, output_mode="one_hot"), "age")(inputs["age"]))
    return inputs, layers.Concatenate()(parts)


def with_batch_norm(keras, inputs, features):
    """Return a model, and one that gives its inputs batch norm."""
    hidden = keras.layers.Dense(4)(features)
    return keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(hidden)), keras.Model(inputs, hidden)


def assert_statistics(tf, layer, before, data):
    rows = np.asarray(before({name: tf.constant(values) for name, values in data.items()}), np.float64)
    assert np.asarray(layer.moving_mean) == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert np.asarray(layer.moving_variance) == pytest.approx(rows.var(axis=0), rel=1e-5)


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_tables_are_filled_and_read(tf, module, tmp_path, monkeypatch):
    keras = pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    model, before = with_batch_norm(keras, *flat_features(keras))
    model.save("model.keras")
    np.savez("data.npz", **DATA)
    result = ckpt_doctor.fix("model.keras", data="data.npz", output="fixed.keras", layers=["*"])
    assert result.complete
    assert_statistics(tf, keras.models.load_model("fixed.keras").get_layer("bn"), before, DATA)


def test_the_model_of_a_feature_space(tf, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    space = keras.utils.FeatureSpace
    data = {name: DATA[name] for name in ("city", "number", "age")}
    features = space(
        features={
            "age": space.float_normalized(),
            "city": space.string_categorical(num_oov_indices=1),
            "number": space.integer_categorical(),
        },
        crosses=[space.cross(feature_names=("city", "number"), crossing_dim=8)],
        output_mode="concat",
    )
    single = {name: values[:, 0] for name, values in data.items()}
    features.adapt(tf.data.Dataset.from_tensor_slices(single).batch(30))
    model, before = with_batch_norm(keras, features.get_inputs(), features.get_encoded_features())
    model.save("model.keras")
    np.savez("data.npz", **data)
    assert ckpt_doctor.fix("model.keras", data="data.npz", output="fixed.keras", layers=["*"]).complete
    assert_statistics(tf, keras.models.load_model("fixed.keras").get_layer("bn"), before, data)


def test_text_of_a_dataset_is_read_batch_by_batch(tf, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ckpt_doctor.capture.samples._STREAM_MEMORY", 100)
    inputs, features = flat_features(keras)
    model, before = with_batch_norm(keras, inputs, features)
    model.save("model.keras")
    dataset = tf.data.Dataset.from_tensor_slices(DATA).batch(25)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(data=lambda: dataset))
    ckpt_doctor.fix("model.keras", data="ours:data", output="fixed.keras", layers=["*"])
    assert_statistics(tf, keras.models.load_model("fixed.keras").get_layer("bn"), before, DATA)


def test_text_goes_to_disk_and_comes_back():
    text = np.array([["a\0b\0", "ä"], ["", "long" * 50]], object)
    with LiveTensors(limit=100) as live:
        live.put(0, "t", text)
        assert (live.held, live.spilled) == (0, 4 * 8 + 4 + 1 + 200)
        assert live.get(0, "t").tolist() == text.tolist()


def test_text_as_objects_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", city=np.array(["ber", "rom"], object))
    inputs = [ModelInput("city", "city:0", "string", (None,))]
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"cannot be read as \.npz: .*; save text as x\.astype"):
        read_samples(DataOptions(data=["data.npz"]), inputs, kept)
    np.savez("data.npz", city=np.array(["ber", "rom"]))
    with ExitStack() as kept:
        assert read_samples(DataOptions(data=["data.npz"], seed=None), inputs, kept).read(0)["city:0"].tolist() == [
            "ber",
            "rom",
        ]


def test_an_empty_table_is_refused(tmp_path, monkeypatch):
    """Weights hold no vocabulary, and all that is looked up would be unknown."""
    keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)

    def build():
        city = keras.Input((1,), dtype="string")
        looked_up = keras.layers.StringLookup()(city)
        hidden = keras.layers.Flatten()(keras.layers.Embedding(8, 2)(looked_up))
        return keras.Model(city, keras.layers.BatchNormalization()(hidden))

    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=build))
    build().save_weights("model.weights.h5")
    np.save("city.npy", DATA["city"])
    with pytest.raises(RepairRefused, match=r"looks values up in the table .*, which is empty.*adapt"):
        ckpt_doctor.fix("model.weights.h5", data="city.npy", output="o.weights.h5", layers=["*"], model="ours:build")


def test_what_is_neither_a_table_nor_tracked_is_refused(tf, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    hidden_away = tf.Variable(2.0)

    def build():
        x = keras.Input((3,))
        doubled = keras.layers.Lambda(lambda x: x * tf.convert_to_tensor(hidden_away), output_shape=(3,))(x)
        return keras.Model(x, keras.layers.BatchNormalization()(doubled))

    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=build))
    build().save_weights("model.weights.h5")
    np.save("x.npy", RANDOM.normal(size=(50, 3)).astype(np.float32))
    with pytest.raises(RepairRefused, match=r"neither a lookup table nor a variable that Keras tracks"):
        ckpt_doctor.fix("model.weights.h5", data="x.npy", output="o.weights.h5", layers=["*"], model="ours:build")


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_a_layer_behind_a_stateful_recurrent_one_is_left_with_the_reason(module, tmp_path, monkeypatch):
    keras = pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    steps = keras.Input(batch_shape=(10, 4, 3))
    front = keras.layers.BatchNormalization(name="front")(steps)
    hidden = keras.layers.LSTM(4, stateful=True, return_sequences=True)(front)
    keras.Model(steps, keras.layers.BatchNormalization(name="behind")(hidden)).save("model.keras")
    data = RANDOM.normal(2, 3, (50, 4, 3)).astype(np.float32)
    np.save("x.npy", data)
    result = ckpt_doctor.fix("model.keras", data="x.npy", output="fixed.keras", layers=["*"])
    assert [left.name for left in result.left] == ["behind"]
    assert "carries its state from one batch to the next" in result.left[0].reason
    fixed = keras.models.load_model("fixed.keras").get_layer("front")
    assert np.asarray(fixed.moving_mean) == pytest.approx(data.astype(np.float64).mean(axis=(0, 1)), abs=1e-5)


def test_the_cause_is_named_where_a_layer_of_keras_fails(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)

    failing = []

    class Failing(keras.layers.Layer):
        def call(self, x):
            if failing:
                raise ValueError("the moon is full")
            return x

    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.BatchNormalization()(Failing()(x)))
    model.save_weights("model.weights.h5")
    failing.append(True)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: model))
    np.save("x.npy", RANDOM.normal(size=(50, 3)).astype(np.float32))
    with pytest.raises(RepairRefused, match=r"cannot be run at inference: the moon is full$"):
        ckpt_doctor.fix("model.weights.h5", data="x.npy", output="o.weights.h5", layers=["*"], model="ours:build")
