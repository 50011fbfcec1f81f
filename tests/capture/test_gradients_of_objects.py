"""Checkpoints of objects with `--model`: the layer in front and the optimizer's slots tell how a net was trained.

Trained here by the frameworks: on the moments of its batches, with averages that never move; and on its stored 0 and 1.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import ckpt_doctor

pytestmark = pytest.mark.tensorflow

STEPS = 60


def make(library):
    """Return a functional model whose batch norms have a bias in front; `momentum` 1 never moves the averages."""
    layers = library.layers
    x = inputs = library.Input((6,))
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization(momentum=1.0)(layers.Dense(12)(x)))
    return library.Model(inputs, layers.Dense(2)(x))


def compiled(library):
    """Return the model with an optimizer that is not the file's: nothing of it is asked for."""
    model = make(library)
    model.compile(library.optimizers.RMSprop(), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def trained(library, *, on_batches):
    """Return a net, its optimizer and its data after some steps of a loop of one's own."""
    import tensorflow as tf

    library.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (256, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > x[:, 2]).astype(np.int32)
    model, optimizer = make(library), library.optimizers.Adam(0.01)
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(inputs, training=on_batches))
        optimizer.apply_gradients(
            zip(tape.gradient(value, model.trainable_variables), model.trainable_variables, strict=True)
        )

    for number in range(STEPS):
        batch = slice(32 * (number % 8), 32 * (number % 8) + 32)
        step(x[batch], y[batch])
    return model, optimizer, x


@pytest.mark.parametrize("on_batches", [True, False], ids=["on batches", "on stored 0 and 1"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_the_bias_in_front_tells(library, on_batches, tmp_path, monkeypatch):
    import tensorflow as tf

    library = pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: compiled(library)))
    model, optimizer, x = trained(library, on_batches=on_batches)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write("m")
    np.save("x.npy", x)
    # The object graph does not say what feeds what.
    alone = ckpt_doctor.scan("m").checkpoints[0]
    assert {(finding.rule, finding.certainty) for finding in alone.findings} == {("BN201", "unproven")}
    named = ckpt_doctor.scan("m", model="ours:build").checkpoints[0]
    told = {(finding.rule, finding.certainty) for finding in named.findings}
    assert [layer.name for layer in named.batch_norm_layers] == [layer.name for layer in alone.batch_norm_layers]
    fixed = ckpt_doctor.fix("m", model="ours:build", data="x.npy", output="fixed") if on_batches else None
    if fixed is None:
        assert told == {("BN304", "proven")}
        with pytest.raises(ckpt_doctor.errors.RepairRefused, match="BN304"):
            ckpt_doctor.fix("m", model="ours:build", data="x.npy", output="fixed", layers=["*"])
        return
    assert told == {("BN201", "proven")}
    assert fixed.complete
    again = make(library)
    tf.train.Checkpoint(model=again).read("fixed").expect_partial()
    # Served with the moments of all data, it answers what it answers in training mode on all data.
    served, in_training = (np.asarray(again(x, training=mode)) for mode in (False, True))
    assert served == pytest.approx(in_training, abs=2e-3)
    assert not np.allclose(model(x, training=False), in_training, atol=0.1)
