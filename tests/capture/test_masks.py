"""Masks: which positions count is compared with what Keras itself makes of one batch in training mode."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore:Masking is not supported with `fused=True`")]

RANDOM = np.random.default_rng(0)
LENGTHS = RANDOM.integers(2, 7, 60)[:, None]
# Shape of the layer's input, shape of the mask without the batch, channel axis, and what the layer is made with.
LEGAL = {
    "a dimension of one": ((6, 4, 8), (6, 1), -1, {}),
    "all but the channels": ((6, 4, 8), (6, 4), -1, {}),
    "steps of time": ((6, 8), (6,), -1, {}),
    "whole samples, channels in the middle": ((5, 6, 3), (1, 6), 1, {}),
}


def built(keras, shape, mask_shape, axis, options, dtype="bool"):
    """Return a model with a masked batch norm behind a dense layer, and one that gives its input."""
    x, mask = keras.Input(shape, name="x"), keras.Input(mask_shape, dtype=dtype, name="mask")
    hidden = keras.layers.Dense(shape[-1])(x)
    y = keras.layers.BatchNormalization(name="bn", axis=axis, momentum=0.0, **options)(hidden, mask=mask)
    return keras.Model([x, mask], y), keras.Model([x, mask], hidden)


def data(shape, mask_shape, keep=None):
    """Return values and a mask that leaves every sample some positions; `keep` says which samples are not masked."""
    x = RANDOM.normal(4, 3, (60, *shape)).astype(np.float32)
    positions = np.arange(np.prod(mask_shape)).reshape(mask_shape)
    mask = positions[None] < LENGTHS.reshape(-1, *[1] * len(mask_shape))
    if keep is not None:
        mask &= keep.reshape(-1, *[1] * len(mask_shape))
    np.savez("data.npz", x=x, mask=mask)
    return x, mask


def repaired(model, monkeypatch, **options):
    """Repair what the model's weights are, run by the model itself, and return mean and variance of its layer.

    Keras 2 saves in no config that a layer is not fused.
    """
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: model))
    model.save_weights("model.weights.h5")
    ckpt_doctor.fix(
        "model.weights.h5", data="data.npz", output="fixed.weights.h5", layers=["*"], model="ours:build", **options
    )
    model.load_weights("fixed.weights.h5")
    layer = model.get_layer("bn")
    return np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
@pytest.mark.parametrize("case", LEGAL)
def test_masked_positions_do_not_count(module, case, tmp_path, monkeypatch):
    keras = pytest.importorskip(module)
    shape, mask_shape, axis, options = LEGAL[case]
    if module == "tf_keras":
        options = options | {"fused": False}
    monkeypatch.chdir(tmp_path)
    model, before = built(keras, shape, mask_shape, axis, options)
    x, mask = data(shape, mask_shape)
    mean, variance = repaired(model, monkeypatch)
    rows = np.asarray(before([x, mask]), np.float64)
    rows = np.moveaxis(rows, axis, -1)[np.moveaxis(np.broadcast_to(mask[..., None], rows.shape), axis, -1)[..., 0]]
    assert mean == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert variance == pytest.approx(rows.var(axis=0), rel=1e-5)
    # With momentum 0 one step in training mode leaves the moments of its batch, as Keras counts it.
    model([x, mask], training=True)
    layer = model.get_layer("bn")
    assert mean == pytest.approx(np.asarray(layer.moving_mean), abs=1e-4)
    assert variance == pytest.approx(np.asarray(layer.moving_variance), rel=1e-4)


def test_the_fused_kernel_of_keras_2_counts_masked_positions_too(tmp_path, monkeypatch):
    keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    model, before = built(keras, (6, 4, 8), (6, 4), -1, {})
    x, mask = data((6, 4, 8), (6, 4))
    mean, variance = repaired(model, monkeypatch)
    rows = np.asarray(before([x, mask]), np.float64).reshape(-1, 8)
    assert mean == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert variance == pytest.approx(rows.var(axis=0), rel=1e-5)


def test_a_mask_that_differs_by_channel_is_left_with_the_reason(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model, _ = built(keras, (5, 6), (5,), 1, {})
    data((5, 6), (5,))
    with pytest.raises(RepairRefused, match="its mask differs from channel to channel"):
        repaired(model, monkeypatch)


def test_weights_of_keras_2_are_left_with_the_reason(tmp_path, monkeypatch):
    keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    model, _ = built(keras, (6, 8), (6,), -1, {"fused": False}, dtype="float32")
    data((6, 8), (6,))
    with pytest.raises(RepairRefused, match=r"its mask is of float32, whose values are weights"):
        repaired(model, monkeypatch)


@pytest.mark.parametrize("method", ["layerwise", "training"])
def test_a_batch_that_is_masked_altogether_counts_nothing(method, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model, before = built(keras, (6, 8), (6,), -1, {})
    x, mask = data((6, 8), (6,), keep=np.arange(60) == 7)
    mean, variance = repaired(model, monkeypatch, method=method, batch_size=10)
    rows = np.asarray(before([x, mask]), np.float64)[mask]
    assert mean == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert variance == pytest.approx(rows.var(axis=0), rel=1e-5)


def test_data_that_are_masked_altogether_are_refused(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model, _ = built(keras, (6, 8), (6,), -1, {})
    data((6, 8), (6,), keep=np.zeros(60, bool))
    with pytest.raises(RepairRefused, match="layer bn: its mask excludes every position of these data"):
        repaired(model, monkeypatch)
