"""Keras models of awkward shapes, each held against a float64 oracle that knows nothing of the engine.

The models and the oracle are those of `benchmarks/trial_keras.py`, which tries many more and large ones.
"""

import numpy as np
import pytest

pytestmark = [
    pytest.mark.tensorflow,
    # Keras remarks on inputs whose names differ from their keys, and on classes that it cannot build by shapes alone.
    pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict"),
    pytest.mark.filterwarnings("ignore:Model '.*' had a build config"),
    # It does so too when training meets what a model does not use, and when it loses the optimizer of mixed_float16.
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
]

NAMES = """
    shared side by side
    shared in sequence
    shared inner model
    nested two deep
    Sequential without Input
    TimeDistributed
    TimeDistributed any length
    RNN cell with batch norm
    while_loop
    several outputs
    dict inputs
    dict inputs, other names
    masks
    Conv1D
    Conv3D
    axis=1
    channels first
    no scale, no center
    renorm
    noise and dropout
    Lambda
    Lambda allowed
    custom layers
    custom layer, tf.function
    custom layer, condition
    custom layer, unused
    wrapped in a wrapper
    subclass of batch norm
    subclass, own formula
    words from a table
    subclassed Model
    subclassed, dict inputs
    fixed batch of 10
    batch norm on the input
    batch norm of batch norm
    frozen at 0 and 1
    one sample
    any image size
    float64
    mixed_float16
    bfloat16
    legacy .h5, nested
"""

# Neither the size of the batches nor their order, which is another for each of them, matters: one sample, one that
# leaves a rest, nearly all and more than there are.
BATCHES = {
    "shared side by side": [1, 100],
    "nested two deep": [7, 64],
    "masks": [1, 100],
    "several outputs": [64, 100],
}


@pytest.fixture
def trial(tf):
    from benchmarks import trial_keras

    return trial_keras


def convolves_channels_first():
    import tensorflow as tf

    try:
        tf.nn.conv2d(tf.zeros([1, 1, 2, 2]), tf.zeros([1, 1, 1, 1]), 1, "SAME", data_format="NCHW")
    except tf.errors.UnimplementedError:
        return False
    return True


@pytest.mark.parametrize("name", [line.strip() for line in NAMES.strip().splitlines()])
def test_a_model_is_repaired_exactly_or_left_with_its_reason(trial, name, tmp_path):
    if name == "channels first" and not convolves_channels_first():
        pytest.skip(
            "TensorFlow convolves channels first on a CPU only where oneDNN does, so nothing is to compare with"
        )
    case = trial.CASES[name]
    outcome = trial.try_model(name, case, tmp_path, case.batches or BATCHES.get(name, [33]))
    assert outcome.verdict == ("repaired" if case.repaired else "refused"), outcome
    if name == "shared in sequence":  # Sweeps go on until little is left to move.
        assert outcome.error < 5e-6


def test_the_trial_can_fail(trial, tmp_path, monkeypatch):
    """Masked positions that count move the statistics by more than the bar."""
    from ckpt_doctor.capture.keras_door import _Trace

    normalise = _Trace.normalise
    monkeypatch.setattr(_Trace, "normalise", lambda self, layer, name, x, mask: normalise(self, layer, name, x, None))
    outcome = trial.try_model("masks", trial.CASES["masks"], tmp_path, [33])
    assert outcome.verdict == "WRONG"
    assert outcome.error > 0.01


@pytest.mark.parametrize("fails", [False, True])
def test_the_classes_of_keras_are_left_as_they_were(trial, tmp_path, monkeypatch, fails):
    import keras

    from ckpt_doctor.capture.keras_door import _Trace

    kinds = [keras.layers.BatchNormalization, keras.layers.Layer, keras.Model, keras.layers.Dense]
    before = [dict(kind.__dict__) for kind in kinds]
    if fails:
        monkeypatch.setattr(_Trace, "normalise", lambda *_: 1 / 0)
    outcome = trial.try_model("custom layers", trial.CASES["custom layers"], tmp_path, [33])
    assert outcome.verdict == ("WRONG" if fails else "repaired")
    if fails:
        assert "cannot be run at inference" in outcome.remarks
    assert [dict(kind.__dict__) for kind in kinds] == before


MODEL_CODE = """
import keras


class Mine(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.bn = keras.layers.Dense(5), keras.layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((None, 5))

    def call(self, x, training=None):
        return self.bn(self.dense(x), training=training)


def build():
    x = keras.Input((8,), name="in0")
    return keras.Model(x, keras.layers.BatchNormalization()(Mine()(x)))
"""


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_classes_that_are_not_keras_own_come_with_a_function(tf, tmp_path, monkeypatch, suffix):
    import ckpt_doctor
    from ckpt_doctor.errors import RepairRefused

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL_CODE)
    space = {"__name__": "elsewhere"}
    exec(MODEL_CODE, space)
    model = space["build"]()
    source = f"model{suffix}"
    model.save_weights(source) if suffix == ".weights.h5" else model.save(source)
    data = np.random.default_rng(0).normal(2, 3, (50, 8)).astype(np.float32)
    np.savez("data.npz", in0=data)
    options = {"data": "data.npz", "output": f"out{suffix}", "layers": ["*"]}
    with pytest.raises(RepairRefused, match=r"'(elsewhere>)?Mine'.*--model path.py:FUNCTION|pass one with --mo"):
        ckpt_doctor.fix(source, **options)
    result = ckpt_doctor.fix(source, model="mine.py:build", **options)
    assert len(result.layers) == 2
    assert max(layer.residual for layer in result.layers) < 1e-5
    model.load_weights(f"out{suffix}")
    inner = model.layers[1]
    before = np.asarray(inner.dense(data), np.float64)
    np.testing.assert_allclose(inner.bn.moving_mean, before.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inner.bn.moving_variance, before.var(axis=0), rtol=1e-4)
