"""Which layer of a model is which layer of a file."""

import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import ckpt_doctor

pytestmark = pytest.mark.tensorflow


def three_norms(library):
    """Return a model whose layers the library names."""
    inputs = x = library.Input((4,))
    for _ in range(3):
        x = library.layers.BatchNormalization()(library.layers.Dense(4)(x))
    return library.Model(inputs, x)


def truth(model, data):
    """Return the mean and variance of what each layer sees, with all the data as one batch, in float64."""
    found, x = [], data.astype(np.float64)
    for dense in model.layers[1::2]:
        x = x @ np.asarray(dense.kernel, np.float64) + np.asarray(dense.bias, np.float64)
        found.append((x.mean(axis=0), x.var(axis=0)))
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
    return found


# Names that are shifted are those that mislead. Where names are all the same, or all others, each library has one file
# that names its layers and one that counts them.
FILES = ("model.h5", "model.keras", "model.weights.h5")
SAVED = [*(("keras", file) for file in FILES), *(("tf_keras", file) for file in (*FILES, "weights.h5"))]
BY_NAME_AND_BY_NUMBER = [("keras", "model.h5"), ("keras", "model.weights.h5")]
BY_NAME_AND_BY_NUMBER += [("tf_keras", "weights.h5"), ("tf_keras", "model.keras")]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(
    ("library", "file", "others"),
    [pytest.param(*saved, 1, id=f"{saved[0]}-{saved[1]}-shifted_by_one") for saved in SAVED]
    + [
        pytest.param(*saved, others, id=f"{saved[0]}-{saved[1]}-{how}")
        for saved in BY_NAME_AND_BY_NUMBER
        for others, how in ((0, "as_they_were"), (7, "all_others"))
    ],
)
def test_names_that_keras_makes_up_do_not_tell_which_layer_is_which(library, file, others, tmp_path, monkeypatch):
    """Keras loads by order; layers of `--model` have other numbers than in the process that saved."""
    library = pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: three_norms(library)))
    library.backend.clear_session()
    for _ in range(others):
        library.layers.Dense(1)(library.layers.BatchNormalization()(library.Input((2,))))
    model = three_norms(library)
    model.save_weights(file) if "weights" in file else model.save(file)
    data = np.random.default_rng(0).normal(1, 2, (50, 4)).astype(np.float32)
    np.save("x.npy", data)
    library.backend.clear_session()
    result = ckpt_doctor.fix(file, data="x.npy", output=f"fixed_{file}", layers=["*"], model="ours:build")
    assert result.complete
    assert len(result.layers) == 3
    model.load_weights(f"fixed_{file}")
    for layer, (mean, variance) in zip(model.layers[2::2], truth(model, data), strict=True):
        assert np.asarray(layer.moving_mean) == pytest.approx(mean, abs=1e-5)
        assert np.asarray(layer.moving_variance) == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize("others", [0, 1, 7], ids="as_they_were shifted_by_one all_others".split())
def test_statistics_that_are_missing_come_to_the_layers_that_lack_them(others, tmp_path, monkeypatch):
    tf_keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: three_norms(tf_keras)))
    tf_keras.backend.clear_session()
    for _ in range(others):
        tf_keras.layers.Dense(1)(tf_keras.layers.BatchNormalization()(tf_keras.Input((2,))))
    model = three_norms(tf_keras)
    model.save_weights("weights.h5")
    with h5py.File("weights.h5", "r+") as file:
        for layer in model.layers[2::2]:
            group = file[layer.name]
            group.attrs["weight_names"] = group.attrs["weight_names"][:2]
            del group[f"{layer.name}/moving_mean:0"], group[f"{layer.name}/moving_variance:0"]
    data = np.random.default_rng(0).normal(1, 2, (50, 4)).astype(np.float32)
    np.save("x.npy", data)
    tf_keras.backend.clear_session()
    assert ckpt_doctor.fix("weights.h5", data="x.npy", output="fixed.h5", model="ours:build").complete
    model.load_weights("fixed.h5")
    for layer, (mean, variance) in zip(model.layers[2::2], truth(model, data), strict=True):
        assert np.asarray(layer.moving_mean) == pytest.approx(mean, abs=1e-5)
        assert np.asarray(layer.moving_variance) == pytest.approx(variance, rel=1e-5)
