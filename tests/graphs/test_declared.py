"""Hand-made batch norm of a training graph, whose statistics nothing but their place ties to it."""

import numpy as np
import pytest

import ckpt_doctor
from tests.independent import read_file

pytestmark = pytest.mark.tensorflow


def train(path, *, resource=False, more=None, mean_starts_at=0.0, scope="net/bn"):
    """Train on the moments of each batch, and save a bundle with its graph.

    Args:
        path: The checkpoint prefix.
        resource: Whether variables are resources.
        more: Called with the graph's mean and variance, and the input of the layer; what else is in the graph.
        mean_starts_at: The initial value of the mean.
        scope: The scope of the statistics.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5], "x")

        def vector(name, start, trainable):
            return v1.get_variable(
                name, [4], initializer=v1.constant_initializer(start), trainable=trainable, use_resource=resource
            )

        z = v1.matmul(x, v1.get_variable("net/fc/kernel", [5, 4], use_resource=resource))
        gamma, beta = vector("net/bn/gamma", 1.0, True), vector("net/bn/beta", 0.0, True)
        mean, variance = vector(f"{scope}/pop_m", mean_starts_at, False), vector(f"{scope}/pop_v", 1.0, False)
        y = v1.nn.relu(v1.nn.batch_normalization(z, *v1.nn.moments(z, [0]), beta, gamma, 1e-3))
        if more is not None:
            more(mean, variance, z)
        step = v1.train.GradientDescentOptimizer(0.05).minimize(v1.reduce_mean((y - 1.0) ** 2))
        session.run(v1.global_variables_initializer())
        for _ in range(20):
            session.run(step, {x: random.normal(1, 2, (16, 5))})
        v1.train.Saver().save(session, str(path), write_state=False)


@pytest.mark.parametrize("resource", [False, True])
def test_statistics_beside_gamma_and_beta_are_those_of_the_layer(tmp_path, resource):
    train(tmp_path / "model", resource=resource)
    [checkpoint] = ckpt_doctor.scan(tmp_path / "model").checkpoints
    assert [layer.name for layer in checkpoint.batch_norm_layers] == ["net/bn"]
    assert {(one.rule, one.certainty) for one in checkpoint.findings} == {("BN201", "proven"), ("BN302", "proven")}

    x = np.random.default_rng(1).normal(1, 2, (200, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert ckpt_doctor.fix(tmp_path / "model", data=tmp_path / "x.npy", output=tmp_path / "out").complete
    values = read_file(tmp_path / "out").values
    z = x.astype(np.float64) @ values["net/fc/kernel"].astype(np.float64)
    assert values["net/bn/pop_m"] == pytest.approx(z.mean(0), abs=1e-5)
    assert values["net/bn/pop_v"] == pytest.approx(z.var(0), rel=1e-5)


def read_elsewhere(mean, variance, z):
    import tensorflow as tf

    tf.identity(z - mean, "centred")


def assigned_elsewhere(mean, variance, z):
    import tensorflow as tf

    placeholder = tf.compat.v1.placeholder(tf.float32, [4])
    tf.compat.v1.assign(mean, placeholder)


def a_third_vector(mean, variance, z):
    import tensorflow as tf

    tf.compat.v1.get_variable("net/bn/third", [4], initializer=tf.compat.v1.zeros_initializer(), trainable=False)


@pytest.mark.parametrize(
    "given",
    [
        {"more": read_elsewhere},
        {"more": assigned_elsewhere},
        {"more": a_third_vector},
        {"mean_starts_at": 1.0},
        {"scope": "net/other"},
    ],
    ids=["read", "assigned", "third", "starts", "scope"],
)
def test_whatever_else_may_be_theirs_ties_nothing(tmp_path, given):
    train(tmp_path / "model", **given)
    [checkpoint] = ckpt_doctor.scan(tmp_path / "model").checkpoints
    assert "BN201" not in {one.rule for one in checkpoint.findings}
