"""Which layers share the evidence of how they ran: those that follow others, that one call decides for, that branch."""

from __future__ import annotations

import numpy as np
import pytest

import ckpt_doctor
from tests.independent import read_file
from tests.keras_configs import deciders, entry


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Networks that follow others.


def followed(here, *, moved, assigned=True):
    """Save a student and a teacher, whose weights are averages of the student's."""
    import tensorflow as tf

    v1 = tf.compat.v1
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5], "x")

        def net(scope, on_batch):
            with v1.variable_scope(scope):
                z = v1.matmul(x, v1.get_variable("fc/kernel", [5, 4]))
                start = {"gamma": 1.0, "moving_variance": 1.0}
                mean, variance, gamma, beta = (
                    v1.get_variable(
                        f"bn/{role}",
                        [4],
                        initializer=v1.constant_initializer(start.get(role, 0.0)),
                        trainable=not role.startswith("moving"),
                    )
                    for role in ("moving_mean", "moving_variance", "gamma", "beta")
                )
                moments = v1.nn.moments(z, [0]) if on_batch else (mean, variance)
                updates = [
                    v1.assign_sub(old, (old - new) * 0.1) for old, new in zip((mean, variance), moments, strict=True)
                ]
                return v1.nn.batch_normalization(z, *moments, beta, gamma, 1e-3), updates

        y, updates = net("student", True)
        net("teacher", False)
        train = v1.train.AdamOptimizer(0.05).minimize(v1.reduce_mean((y - 1.0) ** 3))
        weights = {scope: v1.trainable_variables(scope) for scope in ("student", "teacher")}
        with tf.control_dependencies([train, *(updates if moved else [])]):
            pairs = zip(weights["teacher"], weights["student"], strict=True)
            follow = tf.group(*[v1.assign(mine, 0.5 * mine + 0.5 * theirs) for mine, theirs in pairs])
        session.run(v1.global_variables_initializer())
        for _ in range(30):
            session.run(follow if assigned else train, {x: random.normal(1, 2, (16, 5))})
        v1.train.Saver().save(session, str(here / "model"), write_state=False)


@pytest.mark.tensorflow
def test_a_teacher_gets_the_statistics_of_its_student(here):
    followed(here, moved=True)
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    told = {(one.rule, one.layer, one.certainty, one.repair) for one in checkpoint.findings}
    assert told == {("BN201", "teacher/bn", "proven", "copy")}
    assert ckpt_doctor.fix("model", output="out").complete
    before, after = read_file(here / "model").values, read_file(here / "out").values
    for role in ("moving_mean", "moving_variance"):
        assert np.array_equal(after[f"teacher/bn/{role}"], before[f"student/bn/{role}"])
        assert np.array_equal(after[f"student/bn/{role}"], before[f"student/bn/{role}"])


@pytest.mark.tensorflow
def test_a_student_that_was_never_updated_has_nothing_to_give(here):
    followed(here, moved=False)
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    told = {(one.rule, one.layer, one.repair) for one in checkpoint.findings if one.rule == "BN201"}
    assert told == {("BN201", "student/bn", "estimate"), ("BN201", "teacher/bn", "estimate")}


# Who decides.


def test_classes_of_the_users_own_decide_for_what_is_in_them():
    def bn(name, **config):
        return entry("BatchNormalization", name, momentum=0.9, **config)

    found = deciders(
        entry(
            "Functional",
            "model",
            bn("plain"),
            entry("Sequential", "block", bn("nested")),
            entry("TimeDistributed", "td", layer=bn("timed")),
            entry("mine>Wrapper", "fixed", layer=bn("wrapped")),
            entry("mine>Wrapper", "other", layer=bn("wrapped2")),
            entry("mine>BatchNorm2", "derived", momentum=0.9),
            entry("mine>Forgetful", "config", momentum=0.9, moving_variance_initializer="ones"),
            bn("frozen", trainable=False),
        )
    )
    alike = {name for name, decider in found.items() if decider == found["plain"]}
    assert alike == {"plain", "nested", "timed"}
    assert len({found[name] for name in ("wrapped", "wrapped2", "derived", "config", "frozen")}) == 5
    # A model of the user's own may run each of its parts in another mode.
    own = deciders(entry("mine>Trainer", "model", bn("a"), bn("b")))
    assert own["a"] != own["b"]


def test_an_argument_of_the_call_decides():
    def called(name, arguments):
        layer = entry("BatchNormalization", name, momentum=0.9)
        return {**layer, "name": name, "inbound_nodes": [[["x", 0, 0, arguments]]]}

    found = deciders(
        entry(
            "Functional",
            "model",
            called("plain", {}),
            called("same", {}),
            called("off", {"training": False}),
            called("on", {"training": True}),
        )
    )
    assert found["plain"] == found["same"]
    assert len(set(found.values())) == 3


# Branches.


@pytest.mark.tensorflow
@pytest.mark.parametrize("trained_branch", ["batch", "stored"])
def test_a_branch_for_training_and_one_for_inference_are_one_layer(here, trained_branch):
    """Hand-made, nothing assigns the statistics: that the layer normalises with them ties them to it."""
    import tensorflow as tf

    v1 = tf.compat.v1
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5], "x")

        def net(on_batch):
            with v1.variable_scope("net", reuse=v1.AUTO_REUSE):
                z = v1.matmul(x, v1.get_variable("fc/kernel", [5, 4]))
                mean, variance, gamma, beta = (
                    v1.get_variable(
                        f"bn/{role}",
                        [4],
                        initializer=v1.constant_initializer(float(role in ("gamma", "moving_variance"))),
                        trainable=not role.startswith("moving"),
                    )
                    for role in ("moving_mean", "moving_variance", "gamma", "beta")
                )
                statistics = v1.nn.moments(z, [0]) if on_batch else (mean, variance)
                return v1.nn.relu(v1.nn.batch_normalization(z, *statistics, beta, gamma, 1e-3))

        branches = {"batch": net(True), "stored": net(False)}
        loss = v1.reduce_mean((branches[trained_branch] - 1.0) ** 2)
        train = v1.train.GradientDescentOptimizer(0.05).minimize(loss)
        session.run(v1.global_variables_initializer())
        for _ in range(20):
            session.run(train, {x: random.normal(1, 2, (16, 5))})
        v1.train.Saver().save(session, str(here / "model"), write_state=False)
    [checkpoint] = ckpt_doctor.scan("model").checkpoints
    assert [layer.name for layer in checkpoint.batch_norm_layers] == ["net/bn"]
    told = {(one.rule, one.certainty) for one in checkpoint.findings}
    if trained_branch == "stored":
        # Nothing says that the branch on batches was ever used.
        assert ("BN201", "proven") not in told
        return
    assert told == {("BN201", "proven"), ("BN302", "proven")}
    x = random.normal(1, 2, (200, 5)).astype(np.float32)
    np.save("x.npy", x)
    assert ckpt_doctor.fix("model", data="x.npy", output="out").complete
    values = read_file(here / "out").values
    z = x.astype(np.float64) @ values["net/fc/kernel"].astype(np.float64)
    assert values["net/bn/moving_mean"] == pytest.approx(z.mean(0), abs=1e-5)
    assert values["net/bn/moving_variance"] == pytest.approx(z.var(0), rel=1e-5)
