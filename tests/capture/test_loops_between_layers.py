"""Loops, branches and recurrent layers between two batch norms: what one run cannot hand to the next is made again."""

import numpy as np
import pytest

import ckpt_doctor
from tests.capture.small_graphs import IMAGES, Model, assert_close, moments, normal, product

pytestmark = pytest.mark.tensorflow

WORDS = np.random.default_rng(1).integers(1, 9, (80, 7))
WORDS[:, 4:] *= np.random.default_rng(2).random((80, 1)) > 0.5


@pytest.fixture
def model(v1, tmp_path):
    return Model(v1, tmp_path)


@pytest.mark.parametrize("behind", ["steps", "state"])
def test_a_loop_over_an_array_that_was_written_before_the_layer(model, v1, tf, behind):
    """As in `dynamic_rnn`: steps of the data lie in one array, those of the answer in another."""
    steps = tf.TensorArray(tf.float32, size=3, element_shape=[None, 2], dynamic_size=True)
    images = model.images()
    front = model.norm(v1.matmul(images, model.weights("w", [6, 6])), "front")
    source, start = (front, images) if behind == "steps" else (images, front)
    steps = steps.unstack(tf.transpose(tf.reshape(source, [-1, 3, 2]), [1, 0, 2]))
    answers = tf.TensorArray(tf.float32, size=v1.shape(images)[0] // v1.shape(images)[0] * 3)

    def turn(i, state, answers):
        state = v1.tanh(state + steps.read(i))
        return i + 1, state, answers.write(i, state)

    _, _, answers = v1.while_loop(lambda i, *_: i < 3, turn, [0, start[:, :2], answers])
    model.norm(tf.transpose(answers.stack(), [1, 0, 2]), "behind")
    model.save()
    result, stored = model.fix(batch_size=40)
    assert result.complete
    front = product(stored, "w")
    assert_close(stored, "front", moments(front))
    front = normal(front, moments(front))
    source, start = (front, IMAGES) if behind == "steps" else (IMAGES, front)
    states = [start[:, :2]]
    for step in range(3):
        states.append(np.tanh(states[-1] + source[:, 2 * step : 2 * step + 2]))
    assert_close(stored, "behind", moments(np.concatenate(states[1:])))


def test_a_branch_that_the_data_decide(model, v1):
    images = model.images()
    front = model.norm(v1.matmul(images, model.weights("w", [6, 4])), "front")
    way = v1.cond(v1.reduce_max(images) > -1e9, lambda: front[:, :3] * images[:, :3], lambda: front[:, :3] - 1.0)
    model.norm(way, "behind")
    model.save()
    result, stored = model.fix(batch_size=40)
    assert result.complete
    front = product(stored, "w")
    front = normal(front, moments(front))
    assert_close(stored, "behind", moments(front[:, :3] * IMAGES[:, :3]))


@pytest.mark.parametrize(("module", "recurrent"), [("keras", "LSTM"), ("keras", "Bidirectional"), ("tf_keras", "GRU")])
def test_a_mask_that_a_recurrent_layer_takes_past_a_layer(module, recurrent, tmp_path, monkeypatch):
    keras = pytest.importorskip(module)
    layers = keras.layers
    monkeypatch.chdir(tmp_path)
    words = keras.Input((None,), dtype="int32")
    front = layers.Embedding(9, 4, mask_zero=True)(words)
    hidden = layers.BatchNormalization(name="front")(front)
    if recurrent == "Bidirectional":
        hidden = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(hidden)
    else:
        hidden = getattr(layers, recurrent)(5, return_sequences=True)(hidden)
    model = keras.Model(words, layers.BatchNormalization(name="behind")(hidden))
    model.save("model.keras")
    np.save("x.npy", WORDS)
    result = ckpt_doctor.fix("model.keras", data="x.npy", output="fixed.keras", layers=["*"])
    assert result.complete
    fixed = keras.models.load_model("fixed.keras")
    for name in ("front", "behind"):
        layer = fixed.get_layer(name)
        # Keras 3 counts the mask among the inputs.
        entering = layer.input[0] if isinstance(layer.input, list) else layer.input
        values = np.asarray(keras.Model(fixed.inputs[0], entering)(WORDS), np.float64)[WORDS != 0]
        assert np.asarray(layer.moving_mean) == pytest.approx(values.mean(axis=0), abs=1e-5)
        assert np.asarray(layer.moving_variance) == pytest.approx(values.var(axis=0), rel=1e-4)
