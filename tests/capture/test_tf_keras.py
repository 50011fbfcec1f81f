"""What Keras 2 wrote, and models that come by `--model`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.capture.keras_code import refuse_code
from ckpt_doctor.errors import RepairRefused

pytestmark = pytest.mark.tensorflow


def test_a_keras_archive_of_keras_2_is_loaded_by_keras_2(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    inputs = tf_keras.Input((4,))
    hidden = tf_keras.layers.Dense(3)(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.BatchNormalization(name="bn")(hidden))
    model.save(tmp_path / "model.keras")
    data = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", data)
    result = ckpt_doctor.fix(
        tmp_path / "model.keras", data=str(tmp_path / "x.npy"), output=tmp_path / "fixed.keras", layers=["*"]
    )
    assert result.complete
    values = np.asarray(tf_keras.Model(inputs, hidden)(data), np.float64)
    fixed = tf_keras.models.load_model(tmp_path / "fixed.keras").get_layer("bn")
    assert fixed.moving_mean.numpy() == pytest.approx(values.mean(axis=0), abs=1e-6)
    assert fixed.moving_variance.numpy() == pytest.approx(values.var(axis=0), rel=1e-5)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function, also `ours:build`, that builds a model with code; a folder to work in."""
    tf_keras = pytest.importorskip("tf_keras")

    def build():
        inputs = tf_keras.Input((4,))
        doubled = tf_keras.layers.Lambda(lambda x: 2 * x)(inputs)
        return tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(doubled))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=build))
    return build


@pytest.mark.parametrize("file", ["model.weights.h5", "weights.h5", "weights"])
def test_code_of_the_user_s_own_function_needs_no_leave(file, build):
    build().save_weights(file)
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    assert ckpt_doctor.fix(file, data="x.npy", output=f"fixed_{file}", layers=["*"], model="ours:build").complete


def test_code_in_a_saved_model_is_not_run_where_its_graph_will_do(tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")

    def code(x):
        import pathlib

        pathlib.Path("it ran").touch()
        return 2 * x

    monkeypatch.chdir(tmp_path)
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(tf_keras.layers.Lambda(code)(inputs)))
    model.save("model", save_format="tf")
    Path("it ran").unlink()
    data = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save("x.npy", data)
    assert ckpt_doctor.fix("model", data="x.npy", output="fixed", layers=["*"]).complete
    assert not Path("it ran").exists()
    model.load_weights("fixed")
    assert model.layers[-1].moving_mean.numpy() == pytest.approx((2 * data).mean(axis=0), abs=1e-6)


def test_code_in_a_saved_model_with_masks_runs_only_by_leave(tmp_path, monkeypatch):
    """Its graph does not say which positions are masked."""
    tf_keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    inputs = tf_keras.Input((6,), dtype="int32")
    x = tf_keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = tf_keras.layers.Lambda(lambda x, mask=None: 2 * x, mask=lambda _, mask=None: mask)(x)
    tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(x)).save("model", save_format="tf")
    np.save("x.npy", np.random.default_rng(0).integers(0, 9, (50, 6)))
    options = {"data": "x.npy", "output": "fixed", "layers": ["*"]}
    with pytest.raises(RepairRefused, match=r"model: the model contains Lambda layers.*--allow-code"):
        ckpt_doctor.fix("model", **options)
    assert ckpt_doctor.fix("model", allow_code=True, **options).complete


@pytest.mark.filterwarnings("ignore:Compiled the loaded model")
def test_a_saved_model_of_classes_that_keras_does_not_know_is_run_by_its_graph(tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")

    class Unknown(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.bn = tf_keras.layers.Dense(5), tf_keras.layers.BatchNormalization()

        def call(self, x, training=None):
            return self.bn(self.dense(x), training=training)

    monkeypatch.chdir(tmp_path)
    data = np.random.default_rng(0).normal(1, 2, size=(50, 4)).astype(np.float32)
    np.save("x.npy", data)
    model = Unknown()
    model(data)
    before = np.asarray(model.dense(data), np.float64)
    model.save("model", save_format="tf")
    assert ckpt_doctor.fix("model", data="x.npy", output="fixed", layers=["*"]).complete
    model.load_weights("fixed")
    assert model.bn.moving_mean.numpy() == pytest.approx(before.mean(axis=0), abs=1e-5)
    assert model.bn.moving_variance.numpy() == pytest.approx(before.var(axis=0), rel=1e-5)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_next_step_of_batch_renormalisation_keeps_what_was_repaired(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.BatchNormalization(renorm=True)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.h5")
    data = np.random.default_rng(0).normal(3, 5, (50, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", data)
    ckpt_doctor.fix(tmp_path / "model.h5", data=str(tmp_path / "x.npy"), output=tmp_path / "fixed.h5", layers=["*"])
    fixed = tf_keras.models.load_model(tmp_path / "fixed.h5")
    fixed.fit(data, data, batch_size=50, verbose=0)
    assert fixed.layers[-1].moving_mean.numpy() == pytest.approx(data.mean(axis=0), rel=1e-3)
    assert fixed.layers[-1].moving_variance.numpy() == pytest.approx(data.var(axis=0), rel=1e-3)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("file", ["model.h5", "model.keras", "model"])
def test_operations_that_only_compute_need_no_leave(file, tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")
    tensorflow = pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    inputs = tf_keras.Input((4,))
    x = tensorflow.transpose(tensorflow.nn.relu(2 * inputs + 1)[:, 1:], [0, 1])
    tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(x)).save(file)
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    assert ckpt_doctor.fix(file, data="x.npy", output=f"fixed_{file}", layers=["*"]).complete


@pytest.mark.parametrize("function", ["io.write_file", "compat.v1.io.write_file", "py_function"])
def test_a_file_names_no_function_that_does_more(function):
    config = json.dumps([{"class_name": "TFOpLambda", "config": {"function": function}}])
    with pytest.raises(RepairRefused, match=rf"model\.h5: the model contains a call of tf\.{function}, .*--allow-code"):
        refuse_code("model.h5", config, allow_code=False)
    refuse_code("model.h5", config, allow_code=True)


def test_a_saved_model_is_run_by_the_model_that_is_given(build):
    """So nothing of the code in the file runs."""
    saved = build()
    saved.save("model", save_format="tf")
    data = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save("x.npy", data)
    assert ckpt_doctor.fix("model", data="x.npy", output="fixed", layers=["*"], model="ours:build").complete
    saved.load_weights("fixed")
    assert saved.layers[-1].moving_mean.numpy() == pytest.approx((2 * data).mean(axis=0), abs=1e-6)


def test_batches_of_a_part_of_the_batch(tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")

    def build():
        return tf_keras.Sequential([tf_keras.Input((3, 4)), tf_keras.layers.BatchNormalization(virtual_batch_size=5)])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=build))
    model = build()
    model.save_weights("weights")
    data = np.random.default_rng(0).normal(1, 2, size=(50, 3, 4)).astype(np.float32)
    np.save("x.npy", data)
    assert ckpt_doctor.fix("weights", data="x.npy", output="fixed", layers=["*"], model="ours:build").complete
    model.load_weights("fixed")
    assert model.layers[-1].moving_mean.numpy().ravel() == pytest.approx(data.mean(axis=(0, 1)), abs=1e-6)
    assert model.layers[-1].moving_variance.numpy().ravel() == pytest.approx(data.var(axis=(0, 1)), rel=1e-5)


def test_a_layer_that_is_not_run_has_no_code_of_its_own(tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")

    class Unused(tf_keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm, self.other = (tf_keras.layers.BatchNormalization(name=name) for name in ("norm", "other"))

        def call(self, x):
            self.other(x)
            return self.norm(x)

    def build():
        inputs = tf_keras.Input((4,))
        return tf_keras.Model(inputs, Unused()(inputs))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=build))
    build().save_weights("weights")
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    result = ckpt_doctor.fix("weights", data="x.npy", output="fixed", layers=["*"], model="ours:build")
    assert [left.reason for left in result.left] == ["the model does not run it on the way to its outputs"]
