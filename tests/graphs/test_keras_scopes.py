"""The second model of a TensorFlow 1 session: its scopes are numbered, its layers are not, and Keras loads by order."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.keras_scopes import numbered_scopes

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.mark.parametrize(
    ("paths", "scopes", "expected"),
    [
        # As TensorFlow 1.15.5 wrote them, the second time in a session.
        ([("nb",)], ["nb_1"], ["nb_1"]),
        ([("t2", "w_bn")], ["t2_1"], ["t2_1"]),
        ([("inner", "bn"), ("inner", "bn_1")], ["bn_2", "bn_1_1"], ["bn_2", "bn_1_1"]),
        # The same with `bn` frozen: Keras lists trainable weights first.
        ([("inner", "bn"), ("inner", "bn_1")], ["bn_1_3", "bn_4"], ["bn_4", "bn_1_3"]),
        # The first model of the session had no `bn_1`: the scope `bn_1` is that of `bn`.
        ([("inner", "bn"), ("inner", "bn_1")], ["bn_1", "bn_1_1"], ["bn_1", "bn_1_1"]),
        # What fits, and what fits in no one way, is left as it is.
        ([("inner", "bn"), ("inner", "bn_1")], ["bn", "bn_1"], None),
        ([("inner", "a", "bn"), ("inner", "b", "bn")], ["bn_1", "bn_2"], None),
        ([("inner", "bn"), ("inner", "bn_1")], ["bn_2"], None),
        ([("inner", "bn"), ("inner", "other")], ["bn_2", "norm"], None),
    ],
)
def test_scopes_belong_to_layers_in_the_only_way_there_is(paths, scopes, expected):
    found = numbered_scopes(paths, {paths[0][0]: scopes})
    assert found == ({} if expected is None else dict(zip(paths, expected, strict=True)))


X = np.random.default_rng(0).normal(2, 3, (64, 5, 5, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained model of tf_keras under the names that TensorFlow 1.15.5 gives to the second of a session."""
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    inner = tf_keras.Sequential(
        [
            tf_keras.Input((5, 5, 2)),
            layers.Conv2D(4, 2, name="c"),
            layers.BatchNormalization(momentum=0.5, name="bn"),
            layers.Conv2D(4, 2, name="d"),
            layers.BatchNormalization(momentum=0.75, epsilon=0.01, name="bn_1"),
        ],
        name="inner",
    )
    model = tf_keras.Sequential(
        [
            tf_keras.Input((5, 5, 2)),
            inner,
            layers.Conv2D(3, 1, name="e"),
            layers.BatchNormalization(momentum=0.25, name="top"),
        ]
    )
    model.compile("adam", "mse", run_eagerly=True)
    for _ in range(12):
        model.train_on_batch(X, np.zeros((64, 3, 3, 3)))
    path = tmp_path_factory.mktemp("second") / "model.h5"
    model.save(path)
    scopes = {"c": "c_1", "bn": "bn_2", "d": "d_1", "bn_1": "bn_1_1", "e": "e_1", "top": "top_1"}
    with h5py.File(path, "r+") as file:
        for group in file["model_weights"].values():
            listed = list(group.attrs["weight_names"])
            if not listed:
                continue
            for old in [name for name in group if name in scopes]:
                group.move(old, f"_{scopes[old]}")
            for moved in [name for name in group if name.startswith("_")]:
                group.move(moved, moved[1:])
            names = [name.decode() if isinstance(name, bytes) else name for name in listed]
            renamed = ["/".join((scopes[name.split("/")[0]], *name.split("/")[1:])) for name in names]
            group.attrs["weight_names"] = [name.encode() for name in renamed]
    tf_keras.models.load_model(path)  # Keras loads by order, whatever the names are.
    return path


LAYERS = {"bn": ("inner/bn_2", 0.5), "bn_1": ("inner/bn_1_1", 0.75), "top": ("top/top_1", 0.25)}


def test_every_layer_is_there_once_and_has_what_the_config_says(second):
    (checkpoint,) = scan([str(second)]).checkpoints
    assert not checkpoint.findings
    assert {layer.name: layer.momentum for layer in checkpoint.batch_norm_layers} == {
        name: momentum for name, (_, momentum) in LAYERS.items()
    }
    for layer in checkpoint.batch_norm_layers:
        for role in ROLES:
            assert getattr(layer, role) == f"model_weights/{LAYERS[layer.name][0]}/{role}:0"


def test_the_linear_layer_in_front_is_found(second):
    facts = describe(open_checkpoint(str(second)))
    assert facts is not None
    (front,) = (layer.front for layer in facts.layers if layer.name == "top")
    assert front is not None
    assert front.bias == "model_weights/e/e_1/bias:0"
    assert front.kernel == "model_weights/e/e_1/kernel:0"


def test_missing_statistics_are_repaired_where_keras_loads_them(second, tmp_path):
    import tf_keras

    broken, out = tmp_path / "broken.h5", tmp_path / "fixed.h5"
    broken.write_bytes(second.read_bytes())
    with h5py.File(broken, "r+") as file:
        group = file["model_weights/top"]
        names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["weight_names"]]
        group.attrs["weight_names"] = [name.encode() for name in names if "moving" not in name]
        del group["top_1/moving_mean:0"], group["top_1/moving_variance:0"]
    np.savez(tmp_path / "x.npz", X)
    fix(str(broken), data=str(tmp_path / "x.npz"), output=str(out))
    assert not scan([str(out)]).checkpoints[0].findings
    model = tf_keras.models.load_model(out)
    before = np.asarray(model.layers[1](model.layers[0](X)), np.float64)
    np.testing.assert_allclose(model.layers[2].moving_mean, before.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.layers[2].moving_variance, before.var((0, 1, 2)), rtol=1e-4)
