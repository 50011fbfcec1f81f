"""TensorFlow loads what was rewritten."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes, ObjectPlace
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.formats.contract import altered

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"
BUNDLES = ("bundle_dtypes", "bundle_shards", "bundle_objects", "bundle_module", "tf1_bundle", "v1", "v1_shards")

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.mark.parametrize("sample", BUNDLES)
@pytest.mark.parametrize("in_place", [False, True])
def test_tensorflow_reads_what_was_rewritten(tmp_path: Path, tf: Any, sample: str, in_place: bool) -> None:
    shutil.copytree(SAMPLES / sample, tmp_path / "in")
    checkpoint = open_checkpoint(tmp_path / "in" / "sample")
    old = {variable.name: variable.read() for variable in checkpoint.variables}
    name = next(name for name, value in old.items() if value.dtype == np.float32 and value.size)
    changes = Changes({name: altered(old[name])})
    form = format_of(checkpoint)
    if in_place:
        form.rewrite_in_place(checkpoint, changes)
        prefix = checkpoint.path
    else:
        form.rewrite(checkpoint, tmp_path / "out", changes)
        prefix = str(tmp_path / "out") + ("-?????-of-00002" if sample == "v1_shards" else "")
    reader = tf.train.load_checkpoint(prefix)
    for known, value in {**old, **changes.values}.items():
        try:
            assert same_values(np.asarray(reader.get_tensor(known)).astype(value.dtype, copy=False), value), known
        except tf.errors.UnimplementedError:  # noqa: PERF203 - some types and slices of V1 files, which only a session restores.
            assert sample.startswith("v1")


@pytest.mark.parametrize("sample", ["bundle_module", "bundle_shards", "v1", "saved_model_tf2"])
@pytest.mark.parametrize("in_place", [False, True])
def test_tensorflow_reads_what_is_only_staged(tmp_path: Path, tf: Any, sample: str, in_place: bool) -> None:
    shutil.copytree(SAMPLES / sample, tmp_path / "in")
    checkpoint = open_checkpoint(tmp_path / "in" / "sample")
    old = {variable.name: variable.read() for variable in checkpoint.variables}
    name = next(name for name, value in old.items() if value.dtype == np.float32 and value.size)
    new = altered(old[name])
    with format_of(checkpoint).stage(
        checkpoint, None if in_place else tmp_path / "out", Changes({name: new})
    ) as staged:
        place = staged.open().place
        if sample.startswith("saved_model"):
            assert tf.saved_model.load(place).signatures
            place = f"{place}/variables/variables"
        reader = tf.train.load_checkpoint(place)
        assert same_values(np.asarray(reader.get_tensor(name)), new)


def test_new_variable_is_restored_and_everything_consumed(tmp_path: Path, tf: Any) -> None:
    """A checkpoint without statistics gets them; the model that has them then finds every value."""

    class Norm(tf.Module):  # type: ignore[misc]
        def __init__(self, statistics: bool) -> None:
            super().__init__()
            self.gamma = tf.Variable([1.0, 2.0])
            if statistics:
                self.moving_mean = tf.Variable([0.0, 0.0], trainable=False)

    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self, statistics: bool) -> None:
            super().__init__()
            self.blocks = [Norm(statistics), Norm(statistics)]

    tf.train.Checkpoint(net=Net(False), step=tf.Variable(1)).write(str(tmp_path / "in"))
    checkpoint = open_checkpoint(tmp_path / "in")
    keys = [f"net/blocks/{number}/moving_mean/.ATTRIBUTES/VARIABLE_VALUE" for number in range(2)]
    sibling = keys[1].replace("moving_mean", "gamma")
    changes = Changes(
        {key: np.array([number, 7], np.float32) for number, key in enumerate(keys)},
        objects={keys[1]: ObjectPlace("moving_mean", sibling, "norm/moving_mean")},
    )
    for in_place in (False, True):
        if in_place:
            format_of(checkpoint).rewrite_in_place(checkpoint, changes)
        else:
            format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", changes)
        net = Net(True)
        restored = tf.train.Checkpoint(net=net, step=tf.Variable(0))
        restored.read(str(tmp_path / ("in" if in_place else "out"))).assert_consumed()
        assert [block.moving_mean.numpy().tolist() for block in net.blocks] == [[0, 7], [1, 7]]


def test_keras_model_whose_weights_lie_with_the_optimizer(tmp_path: Path, tf: Any) -> None:
    """Keras 3, compiled: gamma is reached through the optimizer first, and its layer is found all the same."""
    keras = tf.keras
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    tf.train.Checkpoint(model=model).write(str(tmp_path / "in"))
    checkpoint = open_checkpoint(tmp_path / "in")
    # Take the statistics out, as a program that saves trainable variables only leaves them out.
    graph = pb.TrackableObjectGraph.FromString(checkpoint.descriptions.object_graph or b"")
    places = {}
    for node in graph.nodes:
        children = {child.local_name: child.node_id for child in node.children}
        if {"gamma", "moving_mean"} <= set(children):
            gamma = graph.nodes[children["gamma"]].attributes[0].checkpoint_key
            mean = graph.nodes[children["moving_mean"]].attributes[0].checkpoint_key
            places[mean.replace("moving_mean", "extra")] = ObjectPlace("extra", gamma, "bn/extra")
    assert places
    changes = Changes({key: np.ones(4, np.float32) for key in places}, objects=places)
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", changes)
    written = pb.TrackableObjectGraph.FromString(open_checkpoint(tmp_path / "out").descriptions.object_graph or b"")
    for node in written.nodes:
        children = {child.local_name: child.node_id for child in node.children}
        if {"gamma", "moving_mean"} <= set(children):
            assert written.nodes[children["extra"]].attributes[0].full_name == "bn/extra"
    tf.train.Checkpoint(model=model).restore(str(tmp_path / "out")).expect_partial()


@pytest.mark.parametrize("sample", ["saved_model_tf1", "saved_model_tf2", "saved_model_keras3"])
def test_tensorflow_loads_saved_models(tmp_path: Path, tf: Any, sample: str) -> None:
    checkpoint = open_checkpoint(SAMPLES / sample / "sample")
    # Every copy: Keras 3 writes each variable twice.
    values = {
        variable.name: variable.read() + np.float32(1)
        for variable in checkpoint.variables
        if variable.dtype == "float32" and variable.shape
    }
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes(values))
    outputs = []
    for folder in (SAMPLES / sample / "sample", tmp_path / "out"):
        loaded = tf.saved_model.load(str(folder))
        if sample == "saved_model_tf2":
            outputs.append(loaded(tf.ones((2, 3))).numpy())
        else:
            signature = loaded.signatures["serving_default"]
            (name,) = signature.structured_input_signature[1]
            outputs += [value.numpy() for value in signature(**{name: tf.ones((2, 4))}).values()]
    before, after = outputs
    assert np.isfinite(after).all()
    if sample == "saved_model_tf2":
        np.testing.assert_array_equal(after, before + 2)
    else:
        assert (after > before).all()
    if sample != "saved_model_tf1":
        read = tf.saved_model.experimental.read_fingerprint(str(tmp_path / "out"))
        old = tf.saved_model.experimental.read_fingerprint(str(SAMPLES / sample / "sample"))
        assert read.graph_def_program_hash == old.graph_def_program_hash
        assert read.checkpoint_hash != old.checkpoint_hash


def test_index_is_laid_out_as_tensorflow_does(tmp_path: Path) -> None:
    """Without changes the index that is written is the one that TensorFlow wrote, byte for byte."""
    for sample in ("bundle_dtypes", "bundle_shards", "bundle_objects", "tf1_bundle"):
        checkpoint = open_checkpoint(SAMPLES / sample / "sample")
        format_of(checkpoint).rewrite(checkpoint, tmp_path / sample, Changes())
        assert (tmp_path / f"{sample}.index").read_bytes() == (SAMPLES / sample / "sample.index").read_bytes()


def test_variants_are_verified_and_not_read(tmp_path: Path, tf: Any) -> None:
    handle = tf.raw_ops.TensorListFromTensor(tensor=tf.constant([[1.0], [2.0]]), element_shape=[1])
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "m"), tensor_names=["list"], shape_and_slices=[""], tensors=[handle])
    checkpoint = open_checkpoint(tmp_path / "m")
    (variable,) = checkpoint.variables
    assert variable.dtype == "variant"
    assert not checkpoint.damages
    assert not list(format_of(checkpoint).verify(checkpoint))
    with pytest.raises(UnreadableCheckpoint, match="variant"):
        variable.read()
    data = tmp_path / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert [damage.kind for damage in format_of(checkpoint).verify(checkpoint)] == ["checksum-mismatch"]
