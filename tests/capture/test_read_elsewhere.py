"""Statistics that something else reads as well: folded into a kernel, or on the way to their own layer."""

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused
from tests.independent import read_file

pytestmark = pytest.mark.tensorflow

EPSILON = 1e-3
ROLES = {"gamma": 1.1, "beta": 0.1, "moving_mean": 0.0, "moving_variance": 1.0}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(rows=256):
    x = np.random.default_rng(2).normal(2, 3, (rows, 5)).astype(np.float32)
    np.savez("x.npz", x=x)
    return x


def saved(kind, dtype="float32"):
    """Save two dense layers, whose batch norm serves by a folded kernel, as quantisation-aware layers do."""
    import tensorflow as tf

    random = np.random.default_rng(0)

    class Net(tf.Module):
        def __init__(self):
            self.parts = []
            for number, size in enumerate((5, 4)):
                part = tf.Module()
                part.kernel = tf.Variable(random.normal(0, 0.5, (size, 4)), dtype=dtype, name=f"fc{number}/kernel")
                for role, value in ROLES.items():
                    setattr(part, role, tf.Variable(np.full(4, value), dtype=dtype, name=f"bn{number}/{role}"))
                self.parts.append(part)

        @tf.function(input_signature=[tf.TensorSpec([None, 5], tf.float32, name="x")])
        def serve(self, x):
            x = tf.cast(x, dtype)
            for part in self.parts:
                statistics = part.moving_mean, part.moving_variance
                inverse = part.gamma * tf.math.rsqrt(part.moving_variance + EPSILON)
                z = tf.matmul(x, part.kernel * (inverse if kind == "own input" else 1.0))
                y = tf.nn.batch_normalization(z, *statistics, part.beta, part.gamma, EPSILON)
                if kind == "folded":
                    y = tf.matmul(x, part.kernel * inverse) + (part.beta - part.moving_mean * inverse) + 0.0 * y
                x = tf.nn.relu(y)
            return {"y": tf.cast(x, tf.float32)}

    net = Net()
    tf.saved_model.save(net, "model", signatures=net.serve)
    return [part.kernel.numpy().astype(np.float64) for part in net.parts]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folded_kernel_reads_what_is_measured(here, dtype):
    """By arithmetic in float64, each layer on what the layers before it serve once they are repaired."""
    x = data().astype(np.float64)
    kernels = saved("folded", dtype)
    result = ckpt_doctor.fix("model", data="x.npz", output="out", unproven=True)
    assert result.complete
    stored = read_file(here / "out" / "variables" / "variables").values
    for number, kernel in enumerate(kernels):
        z = x @ kernel
        for role, expected in (("moving_mean", z.mean(0)), ("moving_variance", z.var(0))):
            [key] = [name for name in stored if f"parts/{number}/{role}/" in name]
            assert stored[key] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        x = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + EPSILON) * ROLES["gamma"] + ROLES["beta"], 0)


def test_statistics_that_are_read_on_the_way_to_their_own_input_are_left(here):
    data()
    saved("own input")
    with pytest.raises(RepairRefused, match="its statistics are also read on the way to its own input"):
        ckpt_doctor.fix("model", data="x.npz", output="out", unproven=True)


def test_a_keras_layer_whose_statistics_another_layer_reads_is_left(here):
    import keras

    data()

    @keras.saving.register_keras_serializable("tests")
    class Folded(keras.layers.Layer):
        """Serves by a kernel into which the statistics of its batch norm are folded."""

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 4), initializer="glorot_uniform")
            self.bn = keras.layers.BatchNormalization(name="inner")
            self.bn.build((None, 4))

        def call(self, x):
            z = x @ self.kernel
            inverse = self.bn.gamma / keras.ops.sqrt(self.bn.moving_variance + EPSILON)
            return 0.0 * self.bn(z) + x @ (self.kernel * inverse) + (self.bn.beta - self.bn.moving_mean * inverse)

    inputs = keras.Input((5,))
    x = Folded()(inputs)
    x = keras.layers.BatchNormalization(name="plain")(keras.layers.Dense(4)(x))
    model = keras.Model(inputs, x)
    model.get_layer("plain").gamma.assign([0.5, 1.0, 1.5, 2.0])
    model.layers[1].bn.gamma.assign([0.5, 1.0, 1.5, 2.0])
    model.save("model.keras")
    result = ckpt_doctor.fix("model.keras", data="x.npz", output="out.keras", unproven=True)
    assert [layer.name for layer in result.layers] == ["plain"]
    [left] = result.left
    assert "read elsewhere in the model" in left.reason
