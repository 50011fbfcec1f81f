"""SavedModels that lack the statistics which their graph reads, before and after a repair, as TensorFlow loads them."""

from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.served import by_objects, by_session

pytestmark = pytest.mark.tensorflow

EPSILON = 1e-3
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(3, 2, (64, 3)).astype(np.float32)
KERNEL = RANDOM.normal(size=(3, 4)).astype(np.float32)
# What batch norm is, in float64: the statistics of all samples are those of X @ KERNEL.
INPUT = X.astype(np.float64) @ KERNEL
ANSWER = (INPUT - INPUT.mean(0)) / np.sqrt(INPUT.var(0) + EPSILON)


@pytest.fixture
def saved(tmp_path):
    """Give a function that saves a TF1 model by a saver of its trainable variables; it returns the folder."""
    import tensorflow as tf

    v1 = tf.compat.v1

    def saved(*, resource=False, init=False, train=False, tags=(("serve",),)):
        folder = str(tmp_path / "saved")
        with tf.Graph().as_default(), v1.Session() as session, v1.variable_scope("bn", use_resource=resource):
            x = v1.placeholder(tf.float32, [None, 3], name="x")
            gamma, beta, mean, variance = (
                v1.get_variable(
                    name, [4], initializer=v1.constant_initializer(start), trainable=name in ("gamma", "beta")
                )
                for name, start in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1))
            )
            h = tf.matmul(x, v1.get_variable("kernel", initializer=KERNEL))
            y = tf.nn.batch_normalization(h, mean, variance, beta, gamma, EPSILON)
            if train:
                v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(y))
            session.run(v1.global_variables_initializer())
            info = v1.saved_model.utils.build_tensor_info
            signatures = {
                "serving_default": v1.saved_model.signature_def_utils.build_signature_def(
                    {"x": info(x)}, {"y": info(y)}
                )
            }
            saver = v1.train.Saver(v1.trainable_variables())
            first, *more = tags
            builder = v1.saved_model.Builder(folder)
            builder.add_meta_graph_and_variables(
                session,
                list(first),
                signatures,
                saver=saver,
                main_op=v1.variables_initializer([mean, variance]) if init else None,
            )
            for further in more:
                builder.add_meta_graph(list(further), signatures, saver=saver)
            builder.save()
        return folder

    return saved


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=X)
    return str(path)


@pytest.mark.parametrize("resource", [False, True])
def test_the_restore_op_loads_what_the_repair_adds(saved, data, tmp_path, resource):
    import tensorflow as tf

    folder = saved(resource=resource, tags=(("serve",), ("serve", "gpu")))
    with pytest.raises(tf.errors.FailedPreconditionError):
        by_session(folder, X)
    (checkpoint,) = scan([folder]).checkpoints
    assert {finding.rule for finding in checkpoint.findings} == {"BN101", "BN102"}
    target = tmp_path / "repaired"
    assert fix(folder, data=[data], output=str(target)).clean
    for answer in (by_session(target, X), by_session(target, X, tags=("serve", "gpu")), by_objects(target, X)):
        np.testing.assert_allclose(answer, ANSWER, atol=1e-5)


def test_in_place_the_old_model_is_kept_beside_the_new_one(saved, data):
    folder = saved()
    old = Path(folder, "saved_model.pb").read_bytes()
    result = fix(folder, data=[data], in_place=True)
    assert result.clean
    assert {Path(backup).name for backup in result.backups} == {"saved_model.pb.bak", "variables.index.bak"}
    (kept,) = (Path(backup) for backup in result.backups if "saved_model" in backup)
    assert kept.read_bytes() == old
    np.testing.assert_allclose(by_session(folder, X), ANSWER, atol=1e-5)


def test_only_the_saver_of_the_model_grows(saved, data, tmp_path):
    folder = saved()
    fix(folder, data=[data], output=str(tmp_path / "repaired"))
    before, after = (
        pb.SavedModel.FromString(Path(place, "saved_model.pb").read_bytes()).meta_graphs[0]
        for place in (folder, tmp_path / "repaired")
    )
    nodes = {node.name: node for node in after.graph_def.node}
    changed = [node.name for node in before.graph_def.node if nodes.pop(node.name) != node]
    # The saver stands where the test made it.
    assert {name.split("/")[1] for name in (*changed, *nodes)} == {"save"}
    after.graph_def.CopyFrom(before.graph_def)
    assert after == before


def test_what_the_model_initialises_after_loading_is_not_added(saved, data, tmp_path):
    """The init op runs behind the restore op: it would set the new statistics to 0 and 1."""
    folder = saved(init=True)
    np.testing.assert_allclose(by_session(folder, X), INPUT / np.sqrt(1 + EPSILON), rtol=1e-5, atol=1e-5)
    with pytest.raises(RepairRefused, match="its init op runs"):
        fix(folder, data=[data], output=str(tmp_path / "repaired"))
    assert not (tmp_path / "repaired").exists()


def test_a_fingerprint_of_the_graph_is_not_made_a_lie(saved, data, tmp_path):
    folder = saved()
    Path(folder, "fingerprint.pb").write_bytes(b"\x08\x01")
    with pytest.raises(RepairRefused, match="remove the file"):
        fix(folder, data=[data], output=str(tmp_path / "repaired"))


def test_a_model_that_its_graph_trains_on_stored_statistics_gets_no_others(saved, data, tmp_path):
    """The train op differentiates through the stored 0 and 1, so these are what the weights fit."""
    with pytest.raises(RepairRefused, match="it was trained with its stored statistics"):
        fix(saved(train=True), data=[data], output=str(tmp_path / "repaired"))
    assert not (tmp_path / "repaired").exists()
