"""A SavedModel in text form says what its binary twin says; TensorFlow writes both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import fix, scan
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats._saved_model_text import ENUMERATIONS, saved_model_of
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

X = np.random.default_rng(0).normal(1, 2, (64, 4)).astype(np.float32)


def write(folder: Path, *, text: bool, training: bool) -> Path:
    """Write a served graph, with batch norm on the moments of the batch or on its stored ones, as TensorFlow 1 does."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        gamma, beta, mean, variance = (
            v1.get_variable(f"bn/{name}", [4], initializer=tf.constant_initializer(start), trainable=name[0] != "m")
            for name, start in (("gamma", 1.5), ("beta", 0.5), ("moving_mean", 0.25), ("moving_variance", 2.0))
        )
        moments = tf.nn.moments(x, [0]) if training else (mean, variance)
        y = tf.nn.batch_normalization(x, *moments, beta, gamma, 1e-3)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save(as_text=text)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
def test_the_text_says_what_the_binary_says(tmp_path, training):
    binary = write(tmp_path / "binary", text=False, training=training)
    text = write(tmp_path / "text", text=True, training=training)
    expected = pb.SavedModel.FromString((binary / "saved_model.pb").read_bytes())
    expected.DiscardUnknownFields()
    read = pb.SavedModel.FromString(saved_model_of((text / "saved_model.pbtxt").read_bytes()))
    assert read.meta_graphs[0].signature_def == expected.meta_graphs[0].signature_def
    nodes = [
        # The name of the temporary folder that a saver writes to has a random part.
        {node.name: node for node in model.meta_graphs[0].graph_def.node if "save" not in node.name}
        for model in (read, expected)
    ]
    assert len(nodes[0]) > 20
    assert nodes[0] == nodes[1]
    found = [scan([str(folder)]).checkpoints[0] for folder in (text, binary)]
    rules = [{(finding.rule, finding.layers) for finding in checkpoint.findings} for checkpoint in found]
    assert rules[0] == rules[1]
    assert ("BN306" in {rule for rule, _ in rules[0]}) is training
    assert found[0].producer == found[1].producer


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_text_is_repaired(tmp_path):
    source = write(tmp_path / "text", text=True, training=False)
    np.savez(tmp_path / "x.npz", x=X)
    out = tmp_path / "fixed"
    fix(str(source), data=str(tmp_path / "x.npz"), layers=["bn"], output=str(out))
    assert (out / "saved_model.pbtxt").read_bytes() == (source / "saved_model.pbtxt").read_bytes()
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(out))
        mean, variance = session.run(
            [f"bn/{name}/Read/ReadVariableOp:0" for name in ("moving_mean", "moving_variance")]
        )
    np.testing.assert_allclose(mean, X.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(variance, X.var(0, np.float64), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("saved_model.pbtxt", b"meta_graphs {\n graph_def {\n", "is not a SavedModel in text form"),
        ("saved_model.pbtxt", b"\xff\xfe", "is not a SavedModel in text form"),
        ("saved_model.pbtxt", b"meta_graphs { saver_def { version: V9\n } }", "is not a SavedModel in text form"),
        ("saved_model.pbtxt", b"#" * ((32 << 20) + 1), "longer than 32 MB"),
        ("saved_model.cpb", b"anything", "in chunks"),
    ],
)
def test_a_graph_that_is_not_read_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert open_checkpoint(str(tmp_path)).descriptions.saved_model is None
    (checkpoint,) = scan([str(tmp_path)]).checkpoints
    assert [reason in item.reason for item in checkpoint.not_judged] == [True]
    assert not checkpoint.findings


def test_names_of_types_are_those_of_tensorflow():
    from tensorflow.core.framework import types_pb2, variable_pb2
    from tensorflow.core.protobuf import saver_pb2

    theirs = dict(saver_pb2.SaverDef.CheckpointFormatVersion.items())
    theirs |= dict(variable_pb2.VariableSynchronization.items()) | dict(variable_pb2.VariableAggregation.items())
    types = dict(types_pb2.DataType.items())
    assert {name: types.get(name) for name in ENUMERATIONS if name in types} == {
        name: number for name, number in ENUMERATIONS.items() if name in types
    }
    assert {name: number for name, number in ENUMERATIONS.items() if not name.startswith("DT_")} == theirs
    assert set(types) - set(ENUMERATIONS) <= {name for name in types if "FLOAT4" in name or "INT1" in name}
