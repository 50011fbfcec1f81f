"""Legacy HDF5 files list weights by position: added statistics must stand where Keras will look for them."""

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused

pytestmark = pytest.mark.tensorflow


def build(keras, seed, *, frozen=False):
    """Return a model with two batch norms of one size inside a nested model, and one beside it."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inner_input = keras.Input((6,))
    x = layers.BatchNormalization(name="first", trainable=not frozen)(layers.Dense(8, name="a")(inner_input))
    x = layers.BatchNormalization(name="second")(layers.Dense(8, name="b", activation="tanh")(x))
    inner = keras.Model(inner_input, x, name="inner")
    inputs = keras.Input((6,), name="in")
    x = layers.BatchNormalization(name="outer")(layers.Dense(8, name="c")(inner(inputs)))
    model = keras.Model(inputs, layers.Dense(2, name="d")(x))
    random = np.random.default_rng(seed)
    for layer in (inner.get_layer("first"), inner.get_layer("second"), model.get_layer("outer")):
        layer.gamma.assign(random.uniform(0.5, 2, 8))
        layer.beta.assign(random.normal(0, 1, 8))
    return model


def strip(path):
    """Take every moving statistic and its name out of a file."""
    with h5py.File(path, "r+") as file:
        gone = 0
        groups = [file["model_weights"][name] for name in file["model_weights"]]
        for group in groups:
            names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
            kept = [name for name in names if "moving_" not in name]
            for name in set(names) - set(kept):
                del group[name]
                gone += 1
            group.attrs["weight_names"] = np.array([name.encode() for name in kept], "S")
    return gone


def truth(model, data):
    """Return the mean and variance that each layer sees with all the data as one batch, in float64."""
    inner = model.get_layer("inner")
    found = {}

    def dense(layer, x):
        return x @ np.asarray(layer.kernel, np.float64) + np.asarray(layer.bias, np.float64)

    def norm(layer, x):
        found[layer.name] = (x.mean(axis=0), x.var(axis=0))
        scale = np.asarray(layer.gamma, np.float64) / np.sqrt(x.var(axis=0) + layer.epsilon)
        return (x - x.mean(axis=0)) * scale + np.asarray(layer.beta, np.float64)

    x = norm(inner.get_layer("first"), dense(inner.get_layer("a"), data.astype(np.float64)))
    x = norm(inner.get_layer("second"), np.tanh(dense(inner.get_layer("b"), x)))
    norm(model.get_layer("outer"), dense(model.get_layer("c"), x))
    return found


@pytest.fixture(params=["keras", "tf_keras"])
def library(request, tf):
    return pytest.importorskip(request.param)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(5).normal(1, 2, (300, 6)).astype(np.float32)
    np.save("x.npy", values)
    return values


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("present", [True, False], ids=["at 0 and 1", "missing"])
def test_keras_loads_each_statistic_into_its_layer(library, data, present):
    model = build(library, 1)
    model.save("model.h5")
    if not present:
        assert strip("model.h5") == 6
    result = ckpt_doctor.fix("model.h5", data="x.npy", output="out.h5", layers=["*"] if present else ())
    assert result.complete
    assert len(result.layers) == 3
    loaded = library.models.load_model("out.h5", compile=False)
    inner = loaded.get_layer("inner")
    expected = truth(model, data)
    for layer in (inner.get_layer("first"), inner.get_layer("second"), loaded.get_layer("outer")):
        mean, variance = expected[layer.name]
        spread = variance + layer.epsilon
        assert (np.abs(np.asarray(layer.moving_mean) - mean) / np.sqrt(spread)).max() < 1e-5
        assert (np.abs(np.asarray(layer.moving_variance) - variance) / spread).max() < 1e-5
    # The other weights stand where they stood.
    for one, other in zip(model.get_layer("inner").layers[1:], inner.layers[1:], strict=True):
        for before, after in zip(one.trainable_weights, other.trainable_weights, strict=True):
            np.testing.assert_array_equal(before, after)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_an_order_that_cannot_be_known_is_refused(library, data):
    build(library, 1, frozen=True).save("model.h5")
    strip("model.h5")
    with pytest.raises(RepairRefused, match=r"several layers, some of which may be frozen.*save the model as \.keras"):
        ckpt_doctor.fix("model.h5", data="x.npy", output="out.h5")
