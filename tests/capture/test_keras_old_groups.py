"""Files of TensorFlow 2.12 and 2.13: their groups are numbered by a dictionary that has most layers twice."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.formats import open_checkpoint

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
MODEL = """
import tf_keras
def model():
    layers = tf_keras.layers
    inner = tf_keras.Sequential([tf_keras.Input((4, 4, 3)), layers.Conv2D(3, 2),
        layers.BatchNormalization(momentum=0.5, name="in0"), layers.ReLU(), layers.Conv2D(3, 2),
        layers.BatchNormalization(momentum=0.5, name="in1")], name="inner")
    inputs = tf_keras.Input((5, 5, 2))
    x = layers.Conv2D(3, 2)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5, name="a")(x))
    x = layers.ReLU()(inner(x))
    x = layers.TimeDistributed(layers.BatchNormalization(momentum=0.5, name="w"), name="t")(x)
    x = layers.Conv2D(3, 1)(x)
    x = layers.BatchNormalization(momentum=0.5, scale=False, name="b")(x)
    return tf_keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))
"""
# Group of today to the group in which TensorFlow 2.13.1 wrote the same layer of this very model.
OLD = "_layer_checkpoint_dependencies"
WROTE = {
    "layers/conv2d": f"{OLD}/conv2d",
    "layers/batch_normalization": f"{OLD}/batch_normalization",
    "layers/sequential/layers/conv2d": f"{OLD}/sequential/{OLD}/conv2d",
    "layers/sequential/layers/batch_normalization": f"{OLD}/sequential/{OLD}/batch_normalization",
    "layers/sequential/layers/conv2d_1": f"{OLD}/sequential/{OLD}/conv2d_2",
    "layers/sequential/layers/batch_normalization_1": f"{OLD}/sequential/{OLD}/batch_normalization_2",
    "layers/time_distributed/layer": f"{OLD}/time_distributed/layer",
    "layers/conv2d_1": f"{OLD}/conv2d_2",
    "layers/batch_normalization_1": f"{OLD}/batch_normalization_2",
    "layers/dense": f"{OLD}/dense",
}
LAYERS = {
    "a": f"{OLD}/batch_normalization",
    "in0": f"{OLD}/sequential/{OLD}/batch_normalization",
    "in1": f"{OLD}/sequential/{OLD}/batch_normalization_2",
    "w": f"{OLD}/time_distributed/layer",
    "b": f"{OLD}/batch_normalization_2",
}
X = np.random.default_rng(0).normal(1, 2, (64, 5, 5, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a trained model and its weights as TensorFlow 2.13 wrote them, and what makes the model."""
    tf_keras = pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("old_groups")
    (folder / "net.py").write_text(MODEL)
    np.savez(folder / "data.npz", X)
    made: dict[str, object] = {}
    exec(MODEL, made)
    model = made["model"]()  # type: ignore[operator]
    model.compile(tf_keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    for _ in range(8):
        model.train_on_batch(X, X.mean((1, 2)))
    model.save(folder / "today.keras")
    with zipfile.ZipFile(folder / "today.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    old = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"])) as file, h5py.File(old, "w") as target:
        for today, group in WROTE.items():
            file.copy(f"{today}/vars", target, f"{group}/vars")
        file.copy("optimizer", target, "optimizer")
    members["model.weights.h5"] = old.getvalue()
    members["metadata.json"] = b'{"keras_version": "2.13.1", "date_saved": "2026-11-28@01:29:10"}'
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    (folder / "model.weights.h5").write_bytes(old.getvalue())
    return folder


def test_every_layer_is_there_once_under_its_own_group(saved):
    (checkpoint,) = scan([str(saved / "model.keras")]).checkpoints
    assert not checkpoint.findings
    assert [layer.name for layer in checkpoint.batch_norm_layers] == list(LAYERS)
    for layer in checkpoint.batch_norm_layers:
        roles = ROLES[1:] if layer.name == "b" else ROLES
        for number, role in enumerate(roles):
            assert getattr(layer, role) == f"{LAYERS[layer.name]}/vars/{number}"


def lacking(path: Path, group: str, numbers: tuple[int, ...], target: Path) -> Path:
    """Write a copy of an archive or of bare weights in which a group lacks variables."""
    if path.suffix == ".h5":
        target.write_bytes(path.read_bytes())
        with h5py.File(target, "r+") as file:
            for number in numbers:
                del file[f"{group}/vars/{number}"]
        return target
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "model.weights.h5":
                weights = io.BytesIO(content)
                with h5py.File(weights, "r+") as file:
                    for number in numbers:
                        del file[f"{group}/vars/{number}"]
                content = weights.getvalue()
            copy.writestr(name, content)
    return target


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_missing_statistics_are_measured_and_written_where_they_were(saved, tmp_path, name):
    broken = lacking(saved / name, LAYERS["b"], (1, 2), tmp_path / name)
    out = tmp_path / f"fixed{name[5:]}"
    model = None if name.endswith(".keras") else f"{saved / 'net.py'}:model"
    result = fix(str(broken), data=str(saved / "data.npz"), model=model, output=str(out))
    assert len(result.layers) == 1
    import tf_keras

    whole = tf_keras.models.load_model(saved / "today.keras", compile=False)
    before = np.asarray(tf_keras.Model(whole.input, whole.get_layer("b").input)(X), np.float64)
    written = open_checkpoint(str(out))
    for number, expected in ((1, before.mean((0, 1, 2))), (2, before.var((0, 1, 2)))):
        variable = written.variable(f"{LAYERS['b']}/vars/{number}")
        assert variable is not None
        np.testing.assert_allclose(variable.read(), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_of_which_nothing_is_left_still_counts_twice(saved, tmp_path):
    broken = lacking(saved / "model.keras", LAYERS["a"], (0, 1, 2, 3), tmp_path / "model.keras")
    (checkpoint,) = scan([str(broken)]).checkpoints
    (layer,) = (layer for layer in checkpoint.batch_norm_layers if layer.name == "b")
    assert layer.moving_mean == f"{LAYERS['b']}/vars/1"
    assert {finding.rule for finding in checkpoint.findings} >= {"BN101", "BN102"}
