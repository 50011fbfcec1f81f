"""Dropout that is baked on is taken out; left on, it would make the statistics visibly wrong."""

import numpy as np
import pytest

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.dropout import bypass_dropout, random_nodes
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.catalogue import BY_NAME

pytestmark = pytest.mark.tensorflow

NAME = "tf1_training_only/trainable/model.ckpt-600"


@pytest.fixture
def left_on(monkeypatch):
    monkeypatch.setattr("ckpt_doctor.graphs.meta_graph.bypass_dropout", lambda graph: (graph, ()))


def test_random_operations_before_a_layer_are_refused(model, left_on):
    with pytest.raises(RepairRefused, match=r"draws random numbers before a batch-norm layer \(RandomUniform .*--unpr"):
        model(NAME)


def test_left_on_it_makes_the_variance_visibly_wrong(measured, left_on):
    fixture = BY_NAME[NAME]
    found = measured(NAME, whole=True, count=1397, unproven=True)
    ratios = [
        float(np.median(found[layer["name"]].variance / fixture.oracle[f"layerwise/{layer['moving_variance']}"]))
        for layer in fixture.layers
    ]
    assert ratios[0] == pytest.approx(1, abs=1e-5)  # Nothing is dropped before the first.
    assert max(ratios) > 1.1  # A repair may be off by 1e-5.


def test_bypassed_it_does_not(measured):
    fixture = BY_NAME[NAME]
    found = measured(NAME, whole=True, count=1397)
    for layer in fixture.layers:
        truth = fixture.oracle[f"layerwise/{layer['moving_variance']}"]
        np.testing.assert_allclose(found[layer["name"]].variance, truth, rtol=1e-5)


def written_in_2012(tf, x):
    """As `tf.nn.dropout` wrote it before TensorFlow 1.13."""
    mask = tf.floor(0.5 + tf.random.uniform(tf.shape(x)))
    return tf.divide(x, 0.5) * mask


def written_in_2019(tf, x):
    """As it wrote it from 1.13 to 2.10."""
    mask = tf.cast(tf.random.uniform(tf.shape(x)) >= 0.5, x.dtype)
    return x * (1 / (1 - tf.constant(0.5))) * mask


def written_today(tf, x):
    return tf.nn.dropout(x, 0.5)


def stateless(tf, x):
    return tf.nn.experimental.stateless_dropout(x, 0.5, seed=[1, 2])


def with_a_rate_that_is_fed(tf, x):
    keep = tf.compat.v1.placeholder_with_default(0.5, [], name="keep")
    return tf.compat.v1.nn.dropout(x, keep_prob=keep)


def noise(tf, x):
    return x + tf.random.normal(tf.shape(x))


def multiplied_noise(tf, x):
    return x * tf.random.uniform(tf.shape(x))


def masked_by_the_data(tf, x):
    return x * 2 * tf.cast(x >= 0.5, x.dtype)


def run(tf, function, bypass):
    """Return input, output with or without the bypass, and the random operations that are left."""
    data = np.random.default_rng(0).random((4, 50)).astype(np.float32)
    with tf.Graph().as_default() as built:
        x = tf.compat.v1.placeholder(tf.float32, [None, 50], name="x")
        tf.identity(function(tf, x), name="y")
    graph = Graph(pb.GraphDef.FromString(built.as_graph_def().SerializeToString()))
    if bypass:
        graph, _ = bypass_dropout(graph)
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(graph.proto.SerializeToString()), name="")
        with tf.compat.v1.Session(graph=imported) as session:
            result = session.run("y:0", {"x:0": data})
    return data, result, random_nodes(graph, ["y:0"])


@pytest.mark.parametrize(
    "function", [written_in_2012, written_in_2019, written_today, stateless, with_a_rate_that_is_fed]
)
def test_every_way_to_write_it_is_bypassed(tf, function):
    data, dropped, random = run(tf, function, bypass=False)
    assert random
    assert 0.2 < np.mean(dropped == 0) < 0.8
    data, kept, random = run(tf, function, bypass=True)
    assert random == ()
    np.testing.assert_array_equal(kept, data)


@pytest.mark.parametrize("function", [noise, multiplied_noise, masked_by_the_data])
def test_what_only_looks_like_it_stays(tf, function):
    data, result, random = run(tf, function, bypass=True)
    assert bool(random) == (function is not masked_by_the_data)
    assert not np.array_equal(result, data)
