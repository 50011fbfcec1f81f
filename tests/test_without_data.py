"""Repairs that need no data: statistics under another name, and averages that are merely cold."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest, RepairRefused
from tests.catalogue import BY_NAME
from tests.independent import read_file, write_bundle

pytestmark = pytest.mark.tensorflow

CHANNELS = 12


def trained(random, *, statistics=True):
    """Return the variables of a layer that was trained."""
    layer = {
        "gamma": random.uniform(0.5, 1.5, CHANNELS),
        "beta": random.normal(0, 0.3, CHANNELS),
        "moving_mean": random.normal(0, 1, CHANNELS),
        "moving_variance": random.uniform(0.2, 3, CHANNELS),
    }
    return {role: value.astype(np.float32) for role, value in layer.items() if statistics or "moving" not in role}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a bundle of layers; give its values as they were written."""
    monkeypatch.chdir(tmp_path)

    def write(layers, **others):
        values = {f"{scope}/{name}": value for scope, layer in layers.items() for name, value in layer.items()}
        values |= {name.replace("__", "/"): np.asarray(value) for name, value in others.items()}
        values |= {
            f"{scope}_conv/kernel": np.ones((3, 3, 4, CHANNELS), np.float32) * 0.1
            for scope in layers
            if "/" not in scope
        }
        write_bundle(tmp_path / "model", values)
        return values

    return write


@pytest.fixture
def random():
    return np.random.default_rng(3)


def repaired(**options):
    result = ckpt_doctor.fix("model", output="out", **options)
    return result, read_file(Path("out")).values


def codes(path="model"):
    return {finding.rule for checkpoint in ckpt_doctor.scan([path]).checkpoints for finding in checkpoint.findings}


def test_a_shadow_takes_the_place_of_what_is_missing(write, random):
    layers = {f"bn{number}": trained(random) for number in range(2)}
    for layer in layers.values():
        for role in ("moving_mean", "moving_variance"):
            layer[f"{role}/ExponentialMovingAverage"] = layer.pop(role)
    before = write(layers)
    assert "BN103" in codes()
    result, after = repaired()
    assert (result.method, [layer.method for layer in result.layers]) == ("copy", ["copy", "copy"])
    for number in range(2):
        for role in ("moving_mean", "moving_variance"):
            shadow = before[f"bn{number}/{role}/ExponentialMovingAverage"]
            np.testing.assert_array_equal(after[f"bn{number}/{role}"], shadow)
    assert any("ExponentialMovingAverage" in note for note in result.notes)
    assert "BN103" not in codes("out")


def test_a_drifted_name_is_put_back(tf, tmp_path, monkeypatch):
    """The graph calls the layer `batch_normalization`, the file `batch_normalization_1`."""
    monkeypatch.chdir(tmp_path)
    v1 = tf.compat.v1
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_resource_variables()
        x = v1.placeholder(tf.float32, [None, CHANNELS], name="x")
        names = {}
        for role, trainable in (("beta", True), ("gamma", True), ("moving_mean", False), ("moving_variance", False)):
            names[role] = v1.get_variable(f"batch_normalization/{role}", [CHANNELS], trainable=trainable)
        tf.nn.batch_normalization(
            x, names["moving_mean"], names["moving_variance"], names["beta"], names["gamma"], 1e-3, name="y"
        )
        session.run(v1.global_variables_initializer())
        v1.train.Saver(v1.global_variables()).save(session, "./model")
    values = {f"batch_normalization/{role}": value for role, value in trained(random, statistics=False).items()}
    values |= {f"batch_normalization_1/{role}": value for role, value in trained(random).items() if "moving" in role}
    write_bundle(tmp_path / "model", values)
    assert "BN106" in codes()
    result, after = repaired()
    assert [layer.method for layer in result.layers] == ["copy"]
    for role in ("moving_mean", "moving_variance"):
        np.testing.assert_array_equal(after[f"batch_normalization/{role}"], values[f"batch_normalization_1/{role}"])


def test_swapped_roles_are_put_back_when_asked(write, random):
    layers = {f"bn{number}": trained(random) for number in range(3)}
    for layer in layers.values():
        layer["moving_mean"], layer["moving_variance"] = layer["moving_variance"], layer["moving_mean"]
    before = write(layers)
    assert "BN206" in codes()
    with pytest.raises(RepairRefused, match="--unproven"):
        repaired(method="copy")
    result, after = repaired(method="copy", unproven=True)
    assert len(result.layers) == 3
    for number in range(3):
        np.testing.assert_array_equal(after[f"bn{number}/moving_mean"], before[f"bn{number}/moving_variance"])
        np.testing.assert_array_equal(after[f"bn{number}/moving_variance"], before[f"bn{number}/moving_mean"])
    assert "BN206" not in codes("out")


DECAY, STEPS = 0.999, 200


def averaged(start, batches, decay=DECAY):
    """Return an exponential moving average as TensorFlow keeps it, in float32."""
    value = np.float32(start)
    for batch in batches:
        value = value - (value - batch) * np.float32(1 - decay)
    return value


@pytest.fixture(scope="module")
def trained_cold(tmp_path_factory):
    """A Keras model trained for 200 steps with a decay of 0.999: 82 % of 0 and 1 is left; its path and its batches."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(CHANNELS, use_bias=False)(inputs)
    outputs = keras.layers.Dense(1)(keras.layers.BatchNormalization(momentum=DECAY, name="bn")(x))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    random = np.random.default_rng(0)
    data = random.normal(0.5, 2, (STEPS * 16, 6)).astype(np.float32)
    model.optimizer.learning_rate = 0.0
    model.fit(data, np.zeros((len(data), 1)), batch_size=16, epochs=1, verbose=0, shuffle=False)
    path = tmp_path_factory.mktemp("cold") / "model.keras"
    model.save(path)
    kernel = np.asarray(model.layers[1].kernel, np.float64)
    return path, (data.astype(np.float64) @ kernel).reshape(STEPS, 16, CHANNELS)


@pytest.fixture
def cold(trained_cold, tmp_path, monkeypatch):
    """Give that model, loaded from a copy of its own, `model.keras`, and the batches."""
    import keras

    path, batches = trained_cold
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "model.keras")
    return keras.models.load_model("model.keras"), batches


def test_debias_takes_the_start_out_of_averages_that_keras_made(cold):
    """Against a second average that starts at 0 with the same batches, divided by what it has seen."""
    model, batches = cold
    share = DECAY**STEPS
    assert share > 0.8
    result = ckpt_doctor.fix("model.keras", output="out.keras", method="debias", unproven=True)
    assert [layer.method for layer in result.layers] == ["debias"]
    assert any("average over training" in note for note in result.notes)
    import keras

    layer = keras.models.load_model("out.keras", compile=False).get_layer("bn")
    mean = averaged(np.zeros(CHANNELS), batches.mean(axis=1)) / (1 - share)
    variance = averaged(np.zeros(CHANNELS), batches.var(axis=1)) / (1 - share)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-3)
    # And that is near the truth, which what was stored is not.
    truth = batches.reshape(-1, CHANNELS).var(axis=0)
    np.testing.assert_allclose(layer.moving_variance, truth, rtol=0.1)
    assert np.abs(np.asarray(model.get_layer("bn").moving_variance) / truth - 1).max() > 0.3


def test_a_counter_does_not_prove_cold_averages_so_nothing_is_debiased_unasked(cold, capsys):
    assert main(["scan", "model.keras", "--fail-on", "warning"]) == 1
    assert "BN202" in capsys.readouterr().out
    assert main(["fix", "model.keras", "--output", "out.keras"]) == 2
    assert "BN202 is not proven" in capsys.readouterr().err
    assert main(["fix", "model.keras", "--output", "out.keras", "--unproven"]) == 0
    assert "not the statistics of the final weights" in " ".join(capsys.readouterr().out.split())


def test_a_receipt_tells_the_next_scan_that_the_start_is_out(cold, capsys):
    """Steps and decay are what they were, and the new variances could be cold averages."""
    argv = ["fix", "model.keras", "--output", "out.keras", "--unproven", "--receipt", "receipt.json"]
    assert main(argv) == 0
    capsys.readouterr()
    assert main(["scan", "out.keras", "--fail-on", "note"]) == 0
    assert "BN202" not in capsys.readouterr().out
    assert main(["fix", "out.keras", "--output", "again.keras"]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    Path("receipt.json").unlink()
    assert main(["scan", "out.keras", "--fail-on", "warning"]) == 1


def test_cold_averages_that_were_estimated_are_repaired(cold):
    _, batches = cold
    random = np.random.default_rng(0)
    np.save("x.npy", random.normal(0.5, 2, (STEPS * 16, 6)).astype(np.float32))
    assert main(["fix", "model.keras", "--data", "x.npy", "--output", "out.keras", "--unproven"]) == 0
    import keras

    layer = keras.models.load_model("out.keras", compile=False).get_layer("bn")
    np.testing.assert_allclose(layer.moving_variance, batches.reshape(-1, CHANNELS).var(axis=0), rtol=1e-5)


def test_steps_that_do_not_fit_the_values_are_no_cold_average(cold):
    """A variance below the share of the 1 that is left cannot be of so many updates."""
    model, _ = cold
    model.get_layer("bn").moving_variance.assign(np.full(CHANNELS, 0.5, np.float32))
    model.save("model.keras")
    assert "BN202" not in codes("model.keras")
    with pytest.raises(BadRequest, match="can only be repaired from data"):
        ckpt_doctor.fix("model.keras", output="out.keras", layers=["bn"])
    assert not Path("out.keras").exists()


def test_estimation_without_data_says_what_to_give(write, random):
    write({"bn": trained(random, statistics=False)})
    with pytest.raises(BadRequest, match=r"can only be repaired from data; pass --data"):
        repaired()


HANDWRITTEN = BY_NAME["tf1_handwritten/full/model.ckpt-400"]


def test_companions_that_are_missing_are_computed(tmp_path, monkeypatch):
    """Without `biased` and `local_step` the graph's saver cannot restore, or the first step would undo it all."""
    monkeypatch.chdir(tmp_path)
    whole = read_file(HANDWRITTEN.path).values
    gone = {name for name in whole if name.endswith(("/biased", "/local_step"))}
    assert gone
    write_bundle(tmp_path / "model", {name: whole[name] for name in whole.keys() - gone}, meta_of=HANDWRITTEN.path)
    assert "BN104" in codes()
    result, after = repaired()
    assert {layer.method for layer in result.layers} == {"copy"}
    assert result.complete
    assert after.keys() == whole.keys()
    for layer in HANDWRITTEN.layers:
        for role in ("moving_mean", "moving_variance"):
            of = [name for name in gone if name in layer["companions"] and f"/{role}/" in name]
            [biased], [step] = ([after[name] for name in of if name.endswith(end)] for end in ("biased", "local_step"))
            share = 1 - layer["momentum"] ** float(step)
            np.testing.assert_allclose(biased / share, whole[layer[role]], rtol=1e-6)
            np.testing.assert_array_equal(after[layer[role]], whole[layer[role]])


def test_a_tower_that_was_trained_stands_in_for_one_that_was_not(write, random):
    """Two copies of a network, one of which never ran its updates."""
    layers = {}
    for number in range(2):
        good = trained(random)
        bad = dict(good, moving_mean=np.zeros(CHANNELS, np.float32), moving_variance=np.ones(CHANNELS, np.float32))
        layers[f"tower_0/bn{number}"], layers[f"tower_1/bn{number}"] = bad, good
    before = write(layers)
    assert "BN105" in codes()
    with pytest.raises(RepairRefused, match="BN105 is not proven"):
        repaired(method="copy")
    _, after = repaired(method="copy", unproven=True)
    for number in range(2):
        for role in ("moving_mean", "moving_variance"):
            np.testing.assert_array_equal(after[f"tower_0/bn{number}/{role}"], before[f"tower_1/bn{number}/{role}"])
