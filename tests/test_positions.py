"""Files that number variables: a position is a number and a hole a missing variable. What Keras wrote is right."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.naming.positions import read_positions

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
GROUPS = ("layers/batch_normalization", "layers/batch_normalization_1")
MODEL = """
import keras
def model():
    layers = keras.layers
    return keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(6, 2), layers.BatchNormalization(momentum=0.5),
        layers.Conv2D(6, 2), layers.BatchNormalization(momentum=0.5), layers.Flatten(), layers.Dense(2)])
"""
X = np.random.default_rng(0).normal(1, 2, (64, 4, 4, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the weights of a trained model, with optimizer, and what makes the model."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    folder = tmp_path_factory.mktemp("positions")
    (folder / "net.py").write_text(MODEL)
    made: dict[str, object] = {}
    exec(MODEL, made)
    keras.utils.set_random_seed(0)
    model = made["model"]()  # type: ignore[operator]
    model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    y = X.mean((1, 2))
    for _ in range(8):
        model.train_on_batch(X, y)
    model.save_weights(folder / "whole.weights.h5")
    np.savez(folder / "data.npz", X)
    return folder


def without(trained: Path, tmp_path: Path, numbers: tuple[int, ...], *, optimizer: bool = True) -> Path:
    """Return a copy of the weights in which both batch norms lack the variables of these numbers."""
    path = tmp_path / "holes.weights.h5"
    path.write_bytes((trained / "whole.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        for group in GROUPS:
            for number in numbers:
                del file[f"{group}/vars/{number}"]
        if not optimizer:
            del file["optimizer"]
    return path


@pytest.mark.parametrize("optimizer", [True, False])
@pytest.mark.parametrize("numbers", [(), (0,), (1,), (2,), (3,), (2, 3), (0, 2), (1, 2)])
def test_a_role_is_a_number_and_what_is_missing_is_named(trained, tmp_path, numbers, optimizer):
    (checkpoint,) = scan([str(without(trained, tmp_path, numbers, optimizer=optimizer))]).checkpoints
    layers = {layer.name: layer for layer in checkpoint.batch_norm_layers}
    assert set(layers) == set(GROUPS)
    for group in GROUPS:
        for number, role in enumerate(ROLES):
            held = None if number in numbers else f"{group}/vars/{number}"
            assert getattr(layers[group], role) == held, role
    expected = {code for code, number in (("BN101", 2), ("BN102", 3)) if number in numbers}
    assert {finding.rule for finding in checkpoint.findings} & {"BN101", "BN102", "BN204", "BN206"} == expected
    named = {name for finding in checkpoint.findings for name in finding.variables if finding.rule in expected}
    assert named == {f"{group}/vars/{number}" for group in GROUPS for number in numbers if number > 1}
    gone = {item.where for item in checkpoint.not_judged if item.where.startswith("layers/")}
    assert gone == {f"{group}/vars/{number}" for group in GROUPS for number in numbers if number < 2}


def test_a_layer_of_which_one_variable_is_left_is_not_judged(trained, tmp_path):
    (checkpoint,) = scan([str(without(trained, tmp_path, (0, 1, 2), optimizer=False))]).checkpoints
    assert {layer.name for layer in checkpoint.batch_norm_layers} == set(GROUPS)  # The fourth number: four variables.
    (checkpoint,) = scan([str(without(trained, tmp_path, (1, 2, 3), optimizer=False))]).checkpoints
    assert checkpoint.batch_norm_layers == ()
    assert {item.where for item in checkpoint.not_judged} >= {f"{group}/vars/0" for group in GROUPS}


@pytest.mark.parametrize("numbers", [(2,), (3,), (2, 3)])
def test_missing_statistics_are_written_where_keras_finds_them(trained, tmp_path, numbers):
    import keras

    path = without(trained, tmp_path, numbers)
    out = tmp_path / "fixed.weights.h5"
    model = f"{trained / 'net.py'}:model"
    result = fix(str(path), model=model, data=str(trained / "data.npz"), output=str(out))
    assert len(result.layers) == len(GROUPS)
    assert not scan([str(out)]).checkpoints[0].findings
    made: dict[str, object] = {}
    exec(MODEL, made)
    loaded = made["model"]()  # type: ignore[operator]
    loaded.load_weights(out)
    convolved = np.asarray(loaded.layers[0](X), np.float64)
    first = loaded.layers[1]
    if 2 in numbers:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(first.moving_mean), convolved.mean((0, 1, 2)), rtol=1e-4)
    if 3 in numbers:
        variance = keras.ops.convert_to_numpy(first.moving_variance)
        np.testing.assert_allclose(variance, convolved.var((0, 1, 2)), rtol=1e-4)


def numbered(scope: str, values: dict[int, list[float]], label: str | None = None) -> list[Variable]:
    return [
        Variable(f"{scope}/vars/{number}", (len(value),), "float32", 0, lambda value=value: np.float32(value), label)
        for number, value in values.items()
    ]


def test_an_optimizer_that_keeps_more_slots_of_vectors_is_not_asked():
    # Muon: one slot of a matrix, two of a vector (keras/src/optimizers/muon.py). A whole layer without a gamma.
    kernel = [Variable("layers/dense/vars/0", (3, 2), "float32", 0, lambda: np.ones((3, 2)))]
    whole = numbered("layers/batch_normalization", {0: [0.1, -0.2], 1: [1.0, 2.0], 2: [0.5, 0.7]})
    slots = [Variable("optimizer/vars/2", (3, 2), "float32", 0, lambda: np.ones((3, 2)), "muon")]
    slots += numbered("optimizer", {3: [0, 0], 4: [0, 0]}, "muon")
    ((layer,), doubts, _) = read_positions([*kernel, *whole, *slots], numbered=False)
    assert layer.roles == {"moving_mean": whole[1].name, "moving_variance": whole[2].name}
    assert not layer.absent
    assert set(doubts) == {whole[0].name}


@pytest.mark.parametrize(
    ("scope", "values", "label", "known", "doubtful"),
    [
        # TimeDistributed(BatchNormalization(scale=False, name="normalise_me")), as Keras 3.15 writes it.
        ("layers/time_distributed_2/layer", {0: [0.1, -0.2], 1: [1, -2], 2: [0.5, 3]}, "normalise_me", False, True),
        # The same attribute of a model of the user's own.
        ("normalise_me", {0: [0.1, -0.2], 1: [1, -2], 2: [0.5, 3]}, None, False, True),
        # A config calls it something else; a variance is not negative; two vectors are any normalisation.
        ("layers/mine", {0: [0.1, -0.2], 1: [1, -2], 2: [0.5, 3]}, None, True, False),
        ("layers/mine", {0: [0.1, -0.2], 1: [1, -2], 2: [-0.5, 3]}, None, False, False),
        ("layers/mine", {0: [1, 1.5], 1: [0.5, 3]}, None, False, False),
        ("layers/group_norm", {0: [0.1, -0.2], 1: [1, -2], 2: [0.5, 3]}, None, False, False),
    ],
)
def test_three_vectors_without_a_name_are_not_passed_over(scope, values, label, known, doubtful):
    variables = numbered(scope, values, label)
    names = {variable.name for variable in variables}
    found, doubts, left = read_positions(variables, numbered=False, known=names if known else ())
    assert not found
    assert set(doubts) == (names if doubtful else set())
    assert {variable.name for variable in left} == (set() if doubtful else names)
