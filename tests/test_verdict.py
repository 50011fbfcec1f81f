"""The one verdict: what proves a defect, what only suggests one, and what a description may speak for."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor import graphs
from ckpt_doctor.analysis import analyse
from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import keras_config
from ckpt_doctor.graphs.meta_graph import MetaGraph
from tests.catalogue import BY_NAME, DATA, FIXTURES
from tests.independent import read_file, write_bundle

NOT_RUN = BY_NAME["tf1_no_update_ops/full/model.ckpt-400"].path
BROKEN_TF1 = BY_NAME["tf1_layers/trainable/model.ckpt-400"].path
CHANNELS = 12


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings(path, **options):
    [checkpoint] = ckpt_doctor.scan(path, **options).checkpoints
    return {(one.rule, one.severity, one.certainty) for one in checkpoint.findings}


def layer(scope, random, *, statistics=True):
    """Return the variables of a trained layer."""
    values = {
        f"{scope}/gamma": random.uniform(0.5, 1.5, CHANNELS),
        f"{scope}/beta": random.normal(0, 0.3, CHANNELS),
        f"{scope}/moving_mean": random.normal(0, 1, CHANNELS),
        f"{scope}/moving_variance": random.uniform(0.2, 3, CHANNELS),
    }
    return {name: value.astype(np.float32) for name, value in values.items() if statistics or "moving" not in name}


@pytest.fixture
def random():
    return np.random.default_rng(5)


# What proves nothing.


@pytest.mark.tensorflow
@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("steps", [0, 3])
def test_steps_of_an_optimizer_prove_neither_health_nor_defect(here, capsys, steps, suffix):
    """Statistics at 0 and 1 beside a trained gamma: loaded and compiled again, or trained by a loop of one's own."""
    import keras

    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(CHANNELS, use_bias=False)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.get_layer("bn").gamma.assign(np.linspace(0.5, 2, CHANNELS))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(steps)
    model.save(f"model.{suffix}")
    assert findings(f"model.{suffix}") == {("BN201", "warning", "unproven")}
    assert main(["scan", f"model.{suffix}"]) == 0
    capsys.readouterr()
    np.save("x.npy", np.zeros((8, 6), np.float32))
    before = Path(f"model.{suffix}").read_bytes()
    assert main(["fix", f"model.{suffix}", "--data", "x.npy", "--in-place"]) == 2
    assert "BN201 is not proven" in capsys.readouterr().err
    assert Path(f"model.{suffix}").read_bytes() == before


def test_a_switch_proves_nothing_and_a_repair_needs_to_be_asked_for(here):
    """Without an optimizer's slots, the graph and its switch are all that is left."""
    values = {name: value for name, value in read_file(NOT_RUN).values.items() if "/Momentum" not in name}
    write_bundle(here / "model", dict(values), meta_of=NOT_RUN)
    assert findings("model") == {("BN201", "warning", "unproven"), ("BN302", "warning", "unproven")}
    with pytest.raises(RepairRefused, match="--unproven"):
        ckpt_doctor.fix("model", data=DATA, output=here / "out")


@pytest.mark.tensorflow
def test_gradients_tell_where_a_switch_does_not(here):
    assert findings(NOT_RUN) == {("BN201", "error", "likely"), ("BN302", "error", "likely")}
    assert ckpt_doctor.fix(NOT_RUN, data=DATA, output=here / "out").complete


def test_a_graph_that_always_trains_proves_it(here):
    """Its layers take the moments of the batch whatever is fed, and nothing runs their updates."""
    source = FIXTURES / "zoo" / "tf1" / "hand_sufficient"
    values = dict(read_file(source).values)
    for one in ckpt_doctor.scan(source).checkpoints[0].batch_norm_layers:
        values[one.moving_mean] = np.zeros_like(values[one.moving_mean])
        values[one.moving_variance] = np.ones_like(values[one.moving_variance])
    write_bundle(here / "model", values, meta_of=source)
    assert findings("model") == {("BN201", "error", "proven"), ("BN302", "error", "proven")}


# Descriptions.


def test_a_description_of_another_model_is_not_used(here, random):
    """Its silence must not pass for health: the names go on speaking."""
    write_bundle(
        here / "model", layer("enc/bn1", random, statistics=False) | layer("enc/bn2", random, statistics=False)
    )
    shutil.copy(f"{BROKEN_TF1}.meta", "model.meta")
    assert {rule for rule, _, _ in findings("model")} == {"BN101", "BN102"}
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    assert any("describes another model" in place.reason for place in checkpoint.not_judged)
    assert main(["scan", "model", "--strict", "--fail-on", "never"]) == 1


@pytest.mark.tensorflow
def test_a_description_of_another_model_that_was_named_is_refused(here, random, capsys):
    write_bundle(here / "model", layer("enc/bn1", random))
    assert main(["scan", "model", "--meta", f"{BROKEN_TF1}.meta"]) == 2
    assert "names none of the checkpoint's 4 variables" in capsys.readouterr().err
    with pytest.raises(BadRequest, match="names none of the checkpoint's 4 variables"):
        ckpt_doctor.fix("model", model=f"{BROKEN_TF1}.meta", output="out")


def test_a_model_that_was_named_describes_without_data_too(here):
    """What `fix --model` sees, `scan --model` sees; a file of weights says less of itself than the whole model."""
    whole = BY_NAME["keras_v3/broken.keras"].path
    with zipfile.ZipFile(whole) as archive:
        Path("only.weights.h5").write_bytes(archive.read("model.weights.h5"))
    [alone] = ckpt_doctor.scan("only.weights.h5").checkpoints
    [described] = ckpt_doctor.scan("only.weights.h5", model=whole).checkpoints
    assert {one.evidence for one in alone.batch_norm_layers} == {"names"}
    assert {one.evidence for one in described.batch_norm_layers} == {"config"}


def test_a_description_speaks_only_for_what_it_names(here, random):
    """A second network in the same file, without statistics, is judged by its names."""
    healthy = BY_NAME["tf1_layers/full/model.ckpt-400"].path
    write_bundle(here / "model", read_file(healthy).values | layer("other/bn", random, statistics=False))
    shutil.copy(f"{healthy}.meta", "model.meta")
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    assert {(one.rule, one.layer) for one in checkpoint.findings} == {("BN101", "other/bn"), ("BN102", "other/bn")}


# Everything is read once.


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of what is expensive: a graph taken apart, a config parsed, an inventory taken."""
    counts = dict.fromkeys(("graph", "config"), 0)
    parse, layers = MetaGraph.__init__, keras_config.layers_of

    def counted_graph(self, *arguments, **options):
        counts["graph"] += 1
        parse(self, *arguments, **options)

    def counted_config(entry, path, *arguments, **options):
        counts["config"] += path == ()
        return layers(entry, path, *arguments, **options)

    monkeypatch.setattr(MetaGraph, "__init__", counted_graph)
    monkeypatch.setattr(keras_config, "layers_of", counted_config)
    return counts


@pytest.mark.parametrize("name", ["tf1_layers/trainable/model.ckpt-400", "tf1_slim/trainable/model.ckpt-400"])
def test_a_scan_takes_the_graph_apart_once(calls, name):
    ckpt_doctor.scan(BY_NAME[name].path)
    assert calls == {"graph": 1, "config": 0}


@pytest.mark.parametrize("name", ["keras_v3/broken.keras", "keras_h5/broken.h5"])
def test_a_scan_parses_the_config_once(calls, name):
    ckpt_doctor.scan(BY_NAME[name].path)
    assert calls == {"graph": 0, "config": 1}


@pytest.mark.tensorflow
def test_a_repair_takes_the_graph_apart_once(calls, here):
    """Its saver is extended, and what was written is judged by the description that was made."""
    result = ckpt_doctor.fix(BROKEN_TF1, data=DATA, output=here / "out", samples=64)
    assert result.complete
    assert calls == {"graph": 1, "config": 0}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["keras_v3/broken.keras", "keras_h5/broken.h5"])
def test_a_repair_parses_the_config_once(calls, here, name):
    path = BY_NAME[name].path
    ckpt_doctor.fix(path, data=DATA, output=here / f"out{path.suffix}", samples=64, unproven=True)
    assert calls == {"graph": 0, "config": 1}


def test_a_description_is_read_once_whoever_asks(calls):
    checkpoint = open_checkpoint(BROKEN_TF1)
    assert analyse(checkpoint).graph is graphs.graph_of(checkpoint.descriptions)
    assert calls["graph"] == 1


@pytest.mark.tensorflow
def test_a_graph_as_text_is_judged_as_its_binary_twin(here, random):
    """And one that is not read is not passed over without a word."""
    import tensorflow as tf

    v1 = tf.compat.v1
    for as_text in (False, True):
        folder = f"text_{as_text}"
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, CHANNELS], "x")
            held = [
                v1.get_variable(name, initializer=tf.constant(value))
                for name, value in sorted(layer("bn", random).items())
            ]
            beta, gamma, mean, variance = held
            moments = v1.nn.moments(x, [0])
            y = v1.nn.batch_normalization(x, *moments, beta, gamma, 1e-3)
            for statistic, moment in zip((mean, variance), moments, strict=True):
                v1.add_to_collection("update_ops", v1.assign_sub(statistic, (statistic - moment) * 0.1))
            session.run(v1.global_variables_initializer())
            builder = v1.saved_model.Builder(folder)
            signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
            builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
            builder.save(as_text=as_text)
    assert {rule for rule, _, _ in findings("text_False")} == {"BN303"}
    assert {rule for rule, _, _ in findings("text_True")} == {"BN303"}
    (here / "text_True" / "saved_model.pbtxt").rename(here / "text_True" / "saved_model.cpb")
    [checkpoint] = ckpt_doctor.scan("text_True").checkpoints
    [place] = checkpoint.not_judged
    assert place.where.endswith("saved_model.cpb")
    assert "was not read" in place.reason
    assert main(["scan", "text_True", "--strict"]) == 1


# Names of people's own.


@pytest.mark.parametrize(
    "names",
    [
        "net/b0_gamma net/b0_beta net/b0_mean net/b0_var",
        "net/bn0/gamma net/bn0/beta net/bn0/average_mean net/bn0/average_variance",
        "net/bn0/gamma net/bn0/beta net/bn0/mean net/bn0/var",
    ],
)
def test_statistics_of_any_name_beside_gamma_and_beta(here, random, names):
    written = dict(zip(names.split(), layer("bn", random).values(), strict=True))
    write_bundle(here / "healthy", written)
    [checkpoint] = ckpt_doctor.scan("healthy").checkpoints
    assert [one.moving_mean for one in checkpoint.batch_norm_layers] == [names.split()[2]]
    assert not findings("healthy")
    start = {names.split()[2]: np.zeros(CHANNELS, np.float32), names.split()[3]: np.ones(CHANNELS, np.float32)}
    write_bundle(here / "never", written | start)
    assert findings("never") == {("BN201", "warning", "unproven")}


def test_a_mean_and_a_variance_of_something_else(here, random):
    """No gamma, no beta, and no word for batch norm."""
    write_bundle(
        here / "model", {f"obs_{role}": random.uniform(1, 2, 5).astype(np.float32) for role in ("mean", "var")}
    )
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    assert (checkpoint.batch_norm_layers, checkpoint.not_judged) == ((), ())
