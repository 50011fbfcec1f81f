"""A saver that was extended: TensorFlow imports it, saves and restores by it, and extending again changes nothing."""

import numpy as np
import pytest

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.saver import extend_saver, read_saver
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.independent import read_file, saver_names, write_bundle

pytestmark = pytest.mark.tensorflow

SHAPES = {"w": [3, 2], "bn/gamma": [4], "bn/mean": [4], "bn/variance": [4], "bn/step": []}
SAVED = ("w", "bn/gamma")
ADDED = {name: name for name in SHAPES if name not in SAVED}


def values(offset):
    return {
        name: (np.arange(int(np.prod(shape, dtype=int))) + offset + len(name)).reshape(shape).astype(dtype(name))
        for name, shape in SHAPES.items()
    }


def dtype(name):
    return np.int64 if name == "bn/step" else np.float32


@pytest.fixture(params=["resource", "reference"])
def meta(tf, request, tmp_path):
    """The meta graph of a saver over some of the variables, in both kinds that TensorFlow has."""
    with tf.Graph().as_default():
        for name, shape in SHAPES.items():
            tf.compat.v1.get_variable(name, shape, dtype(name), use_resource=request.param == "resource")
        saved = [variable for variable in tf.compat.v1.global_variables() if variable.op.name in SAVED]
        tf.compat.v1.train.Saver(saved).export_meta_graph(str(tmp_path / "old.meta"))
    return pb.MetaGraphDef.FromString((tmp_path / "old.meta").read_bytes())


@pytest.fixture
def use(tf, tmp_path):
    """Import a meta graph in TensorFlow, restore by its own saver, save by it; return restored and saved values."""

    def use(meta, prefix):
        (tmp_path / "new.meta").write_bytes(meta.SerializeToString())
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            saver = tf.compat.v1.train.import_meta_graph(str(tmp_path / "new.meta"))
            saver.restore(session, str(prefix))
            missing = {name.decode() for name in session.run(tf.compat.v1.report_uninitialized_variables())}
            restored = session.run({v.op.name: v for v in tf.compat.v1.global_variables() if v.op.name not in missing})
            saver.save(session, str(tmp_path / "again"), write_meta_graph=False, latest_filename="state")
        return restored, read_file(tmp_path / "again").values

    return use


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_tensorflow_restores_and_saves_all_by_it(meta, use, tmp_path):
    write_bundle(tmp_path / "whole", values(100))
    restored, saved = use(extend_saver(meta, ADDED), tmp_path / "whole")
    assert same(restored, values(100))
    assert same(saved, values(100))


def test_before_it_did_not(meta, use, tmp_path):
    write_bundle(tmp_path / "whole", values(100))
    restored, saved = use(meta, tmp_path / "whole")
    assert restored.keys() == saved.keys() == set(SAVED)


def test_extending_again_changes_nothing(meta):
    once = extend_saver(meta, ADDED)
    assert extend_saver(once, ADDED) == once
    assert extend_saver(meta, dict.fromkeys(SAVED, "")) == meta
    assert extend_saver(meta, {}) == meta


def test_extending_in_two_steps_saves_and_restores_all(meta, use, tmp_path):
    write_bundle(tmp_path / "whole", values(7))
    first = dict(list(ADDED.items())[:1])
    twice = extend_saver(extend_saver(meta, first), ADDED)
    restored, saved = use(twice, tmp_path / "whole")
    assert same(restored, values(7))
    assert same(saved, values(7))


def test_what_was_given_is_not_changed(meta):
    before = meta.SerializeToString(deterministic=True)
    extended = extend_saver(meta, ADDED)
    assert meta.SerializeToString(deterministic=True) == before
    kept = {node.name for node in meta.graph_def.node}
    assert kept < {node.name for node in extended.graph_def.node}
    # Only the writer and the node that runs the restoring have changed; all else is as it was.
    saver = read_saver(meta, Graph(meta.graph_def))
    old = {node.name: node for node in meta.graph_def.node}
    changed = {node.name for node in extended.graph_def.node if node.name in kept and node != old[node.name]}
    assert changed == {saver.save_node, saver.restore_op}


def test_the_names_in_the_file_may_be_others_than_those_of_the_nodes(meta, use, tmp_path):
    renamed = {f"ema/{name}": name for name in ADDED}
    write_bundle(
        tmp_path / "whole", {(name if name in SAVED else f"ema/{name}"): value for name, value in values(3).items()}
    )
    restored, saved = use(extend_saver(meta, renamed), tmp_path / "whole")
    assert same(restored, values(3))
    assert saved.keys() == {*SAVED, *renamed}


def test_a_variable_that_the_graph_lacks_is_refused(meta):
    with pytest.raises(RepairRefused, match=r"bn/other: the checkpoint's graph has no variable of this name"):
        extend_saver(meta, {"bn/other": "bn/other"})
    with pytest.raises(RepairRefused, match="has no variable of this name"):
        extend_saver(meta, {"save/Const": "save/Const"})


def test_a_graph_without_saver_is_refused(meta):
    meta.ClearField("saver_def")
    with pytest.raises(RepairRefused, match="has no saver of V2 checkpoints"):
        extend_saver(meta, ADDED)


def test_a_sharded_saver_is_extended(tf, tmp_path):
    with tf.Graph().as_default():
        for number, (name, shape) in enumerate(SHAPES.items()):
            with tf.device(f"/job:localhost/task:0/device:CPU:{number % 2}"):
                tf.compat.v1.get_variable(name, shape, dtype(name))
        saved = [variable for variable in tf.compat.v1.global_variables() if variable.op.name in SAVED]
        tf.compat.v1.train.Saver(saved, sharded=True).export_meta_graph(str(tmp_path / "old.meta"))
    meta = extend_saver(pb.MetaGraphDef.FromString((tmp_path / "old.meta").read_bytes()), ADDED)
    (tmp_path / "new.meta").write_bytes(meta.SerializeToString())
    assert saver_names(tmp_path / "new") == (set(SHAPES), set(SHAPES))
