"""Exports of Keras 3, which hold every variable twice: each copy as TensorFlow serves it, before and after a repair."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs import describe
from tests.served import by_objects, by_session

pytestmark = pytest.mark.tensorflow

KEY = "/.ATTRIBUTES/VARIABLE_VALUE"
WIDTH = 4
X = np.random.default_rng(3).normal(2, 3, (64, WIDTH)).astype(np.float32)


def scattered(model):
    """Give every variable a value that no other has, and variances that are positive."""
    random = np.random.default_rng(5)
    for variable in model.variables:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def twins(keras):
    """Return a model of two models, each with a layer called `bn` of the same size."""

    def half(name):
        x = keras.Input((WIDTH,))
        y = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(WIDTH, name="d")(x))
        return keras.Model(x, keras.layers.ReLU()(y), name=name)

    x = keras.Input((WIDTH,))
    return keras.Model(x, keras.layers.Dense(1, name="out")(keras.layers.Concatenate()([half(n)(x) for n in "lr"])))


def subclassed(keras):
    """Return a model all of whose variables have one name for people, `net/kernel`."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = (
                keras.Sequential([keras.layers.Dense(WIDTH), keras.layers.BatchNormalization()]) for _ in range(2)
            )

        def call(self, x, training=None):
            return self.two(self.one(x, training=training), training=training)

    model = Net()
    model(X[:1])
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Give the file with the inputs."""
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=X)
    return str(path)


@pytest.fixture(scope="module", params=[twins, subclassed])
def exported(request, tmp_path_factory):
    """Give the export of a model whose every variable is unlike all others, and the model."""
    import keras

    folder = str(tmp_path_factory.mktemp("exported") / "model")
    model = scattered(request.param(keras))
    model.export(folder, verbose=False)
    return folder, model


@pytest.fixture(scope="module")
def never_updated(exported, tmp_path_factory):
    """Give the same with statistics of 0 and 1, and what the model answers by the moments of its batch."""
    import keras

    _, model = exported
    weights = model.get_weights()
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean * 0)
            layer.moving_variance.assign(layer.moving_variance * 0 + 1)
    folder = str(tmp_path_factory.mktemp("never") / "model")
    model.export(folder, verbose=False)
    answer = np.asarray(model(X, training=True))
    model.set_weights(weights)
    return folder, answer


def changed(folder, target, **values):
    """Write a copy with other values; `variables_4` is the key `variables/4`."""
    checkpoint = open_checkpoint(folder)
    format_of(checkpoint).rewrite(checkpoint, Path(target), Changes(values=values))
    return str(target)


def layers_of(folder):
    (checkpoint,) = scan([str(folder)]).checkpoints
    return checkpoint.batch_norm_layers


def mean_and_twin(folder):
    """Return the keys of the two copies of the first layer's moving mean."""
    own = layers_of(folder)[0].moving_mean
    value = open_checkpoint(folder).variable(own).read()
    (twin,) = (
        variable.name
        for variable in open_checkpoint(folder).variables
        if variable.name != own and variable.shape == value.shape and np.array_equal(variable.read(), value)
    )
    return own, twin


def test_the_graph_pairs_the_copies_of_every_variable(exported):
    folder, model = exported
    variables = open_checkpoint(folder).variables
    assert len(variables) == 2 * len(model.variables)
    copies = describe(open_checkpoint(folder)).copies
    same = {
        variable.name: other.name
        for variable in variables
        for other in variables
        if variable is not other and variable.shape == other.shape and np.array_equal(variable.read(), other.read())
    }
    assert len(same) == len(variables)
    assert copies == {name: other for name, other in same.items() if name.startswith("_all_variables/")}


def test_a_healthy_export_has_its_layers_once_and_no_finding(exported):
    folder, _ = exported
    (checkpoint,) = scan([folder]).checkpoints
    assert (len(checkpoint.batch_norm_layers), checkpoint.findings, checkpoint.not_judged) == (2, (), ())
    assert len({layer.name for layer in checkpoint.batch_norm_layers}) == 2


@pytest.mark.parametrize("exported", [twins], indirect=True)
def test_the_first_copy_is_what_objects_read_and_the_second_what_a_session_reads(exported, tmp_path):
    folder, _ = exported
    answer = by_objects(folder, X)
    assert np.array_equal(by_session(folder, X), answer)
    for key, reads, others in zip(
        mean_and_twin(folder), (by_objects, by_session), (by_session, by_objects), strict=True
    ):
        value = open_checkpoint(folder).variable(key).read()
        patched = changed(folder, tmp_path / key.partition("/")[0], **{key: value + 1})
        assert not np.allclose(reads(patched, X), answer)
        assert np.array_equal(others(patched, X), answer)


def test_a_repair_writes_both_copies_of_the_right_layer(never_updated, data, tmp_path):
    folder, answer = never_updated
    target = tmp_path / "repaired"
    result = fix(folder, data=[data], unproven=True, output=str(target))
    assert (result.complete, len(result.layers)) == (True, 2)
    # The moments of the whole data set are those of the one batch that the model was asked with.
    np.testing.assert_allclose(by_objects(target, X), answer, atol=2e-5)
    assert np.array_equal(by_session(target, X), by_objects(target, X))


@pytest.mark.parametrize("exported", [twins], indirect=True)
def test_one_patched_copy_is_one_finding(exported, tmp_path):
    folder, _ = exported
    own, twin = mean_and_twin(folder)
    patched = changed(folder, tmp_path / "patched", **{twin: open_checkpoint(folder).variable(twin).read() + 1})
    (checkpoint,) = scan([patched]).checkpoints
    (finding,) = checkpoint.findings
    assert (finding.rule, finding.variables[:2]) == ("BN105", (own, twin))


@pytest.mark.parametrize("exported", [twins], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_nan_in_one_copy_is_one_finding_and_taken_from_the_other(exported, tmp_path, which):
    folder, _ = exported
    names = mean_and_twin(folder)
    value = open_checkpoint(folder).variable(names[which]).read().copy()
    value[1] = np.nan
    broken = changed(folder, tmp_path / "broken", **{names[which]: value})
    (checkpoint,) = scan([broken]).checkpoints
    (finding,) = checkpoint.findings
    assert (finding.rule, finding.repair, finding.variables) == ("BN203", "copy", (names[which],))
    assert fix(broken, output=str(tmp_path / "repaired")).clean
    for reads in (by_objects, by_session):
        assert np.array_equal(reads(tmp_path / "repaired", X), reads(folder, X))


@pytest.mark.parametrize("exported", [twins], indirect=True)
def test_a_nan_in_both_copies_is_one_finding_and_needs_data(exported, tmp_path):
    folder, _ = exported
    names = mean_and_twin(folder)
    (checkpoint,) = scan(
        [changed(folder, tmp_path / "broken", **dict.fromkeys(names, np.full(WIDTH, np.nan, "f4")))]
    ).checkpoints
    (finding,) = checkpoint.findings
    assert (finding.rule, finding.repair, finding.variables) == ("BN203", "estimate", names)


@pytest.mark.parametrize("exported", [twins], indirect=True)
def test_statistics_are_not_estimated_behind_a_weight_of_two_versions(never_updated, data, tmp_path):
    folder, _ = never_updated
    checkpoint = open_checkpoint(folder)
    copies = describe(checkpoint).copies
    # That of a layer in front of a batch norm.
    kernel = next(key for key in copies if checkpoint.variable(key).shape == (WIDTH, WIDTH))
    patched = changed(folder, tmp_path / "patched", **{kernel: checkpoint.variable(kernel).read() + 1})
    with pytest.raises(RepairRefused, match="TensorFlow Serving run different models"):
        fix(patched, data=[data], layers=["*"], output=str(tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()


def without(folder, target, names):
    """Write a copy without some of the variables, as a script that copies a selection leaves it."""
    import tensorflow as tf

    shutil.copytree(folder, target)
    reader = tf.train.load_checkpoint(f"{folder}/variables/variables")
    kept = [name for name in reader.get_variable_to_shape_map() if name not in names]
    prefix = f"{target}/variables/variables"
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=kept, shape_and_slices=[""] * len(kept), tensors=list(map(reader.get_tensor, kept))
    )
    return str(target)


def statistics_of(folder):
    """Return the keys of the statistics that objects read, and of those that a session reads."""
    layers = layers_of(folder)
    return {name for layer in layers for name in (layer.moving_mean, layer.moving_variance)}, {
        name for layer in layers for name in layer.companions
    }


def test_both_copies_of_missing_statistics_are_added(never_updated, data, tmp_path):
    folder, answer = never_updated
    own, twins = statistics_of(folder)
    broken = without(folder, tmp_path / "broken", own | twins)
    (checkpoint,) = scan([broken]).checkpoints
    assert {(finding.rule, *finding.variables) for finding in checkpoint.findings} == {
        (rule, name)
        for layer in layers_of(folder)
        for rule, name in (("BN101", layer.moving_mean), ("BN102", layer.moving_variance))
    }
    assert fix(broken, data=[data], output=str(tmp_path / "repaired")).complete
    np.testing.assert_allclose(by_objects(tmp_path / "repaired", X), answer, atol=2e-5)
    np.testing.assert_allclose(by_session(tmp_path / "repaired", X), answer, atol=2e-5)


@pytest.mark.parametrize("exported", [twins], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_copy_is_taken_from_the_other(exported, tmp_path, which):
    folder, _ = exported
    gone = statistics_of(folder)[which]
    broken = without(folder, tmp_path / "broken", gone)
    (checkpoint,) = scan([broken]).checkpoints
    assert [finding.rule for finding in checkpoint.findings] == ["BN104", "BN104"]
    assert {name for finding in checkpoint.findings for name in finding.variables} == gone
    assert fix(broken, output=str(tmp_path / "repaired")).clean
    for reads in (by_objects, by_session):
        assert np.array_equal(reads(tmp_path / "repaired", X), reads(folder, X))
