"""A graph that does more than compute is refused before anything of it runs, and runs with --allow-code."""

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.capture import keras_models
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.side_effects import side_effects, side_effects_of_model
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.capture.small_graphs import IMAGES, Model, moments

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def net(v1, tmp_path):
    return Model(v1, tmp_path)


def zero(tf, text):
    """Return 0.0, whatever the text is."""
    return tf.cast(tf.strings.length(text), tf.float32) * 0.0


def reads(tf, canary, x):
    return zero(tf, tf.io.read_file(str(canary.with_name("data.npz"))))


def matches(tf, canary, x):
    return tf.cast(tf.size(tf.io.matching_files("/*")), tf.float32) * 0.0


def restores(tf, canary, x):
    tensors = tf.raw_ops.RestoreV2(prefix="/x", tensor_names=["w"], shape_and_slices=[""], dtypes=["float"])
    return tf.reduce_sum(tensors[0])


def calls_python(tf, canary, x):
    def run():
        canary.write_text("ran")
        return np.float32(0)

    value = tf.compat.v1.py_func(run, [], tf.float32)
    value.set_shape([])
    return value


def writes_in_a_function(tf, canary, x):
    @tf.function
    def innocent():
        tf.io.write_file(str(canary), "ran")
        return tf.constant(0.0)

    return innocent()


def writes_in_a_branch(tf, canary, x):
    @tf.function
    def innocent(total):
        y = total * 0.0
        if total > -1e9:
            tf.io.write_file(str(canary), "ran")
            y = total - total
        return y

    return innocent(tf.reduce_sum(x))


def prints_to_a_file(tf, canary, x):
    @tf.function
    def innocent():
        tf.print("ran", output_stream=f"file://{canary}")
        return tf.constant(0.0)

    return innocent()


def reads_a_dataset(tf, canary, x):
    @tf.function
    def innocent():
        total = tf.constant(0.0)
        for line in tf.data.TextLineDataset([str(canary.with_name("lines"))]):
            total += zero(tf, line)
        return total

    canary.with_name("lines").write_text("a\nb\n")
    return innocent()


ATTACKS = {
    reads: "reads files (ReadFile",
    matches: "reads files (MatchingFiles",
    restores: "reads files (RestoreV2",
    calls_python: "calls Python (PyFunc",
    writes_in_a_branch: "writes files (WriteFile",
    reads_a_dataset: "reads files (TextLineDataset",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_it_is_refused_and_nothing_runs(tf, net, tmp_path, attack):
    canary = tmp_path / "canary"
    x = net.images()
    net.norm(x + attack(tf, canary, x), "bn")
    net.save(net.v1.global_variables()[:1])
    with pytest.raises(RepairRefused) as refusal:
        net.fix()
    assert ATTACKS[attack] in str(refusal.value)
    assert str(refusal.value).endswith("if you trust it, allow it with --allow-code")
    assert not canary.exists()
    assert not (tmp_path / "repaired.ckpt.index").exists()


@pytest.mark.parametrize("attack", [reads, writes_in_a_branch, reads_a_dataset], ids=lambda attack: attack.__name__)
def test_it_runs_by_the_users_leave(tf, net, tmp_path, attack):
    canary = tmp_path / "canary"
    x = net.images()
    net.norm(x + attack(tf, canary, x), "bn")
    net.save(net.v1.global_variables()[:1])
    _, values = net.fix(allow_code=True)
    np.testing.assert_allclose(values["bn/moving_mean"], moments(IMAGES)[0], rtol=1e-5)
    assert canary.exists() == (attack is writes_in_a_branch)


@pytest.mark.parametrize("attack", [writes_in_a_function, prints_to_a_file], ids=lambda attack: attack.__name__)
def test_what_gives_nothing_to_the_layers_is_not_run(tf, net, tmp_path, attack):
    """Functions are written out without what only has side effects."""
    canary = tmp_path / "canary"
    x = net.images()
    net.norm(x + attack(tf, canary, x), "bn")
    net.save(net.v1.global_variables()[:1])
    _, values = net.fix()
    np.testing.assert_allclose(values["bn/moving_mean"], moments(IMAGES)[0], rtol=1e-5)
    assert not canary.exists()


def test_scan_with_data_says_so_and_runs_nothing(tf, net, tmp_path):
    canary = tmp_path / "canary"
    x = net.images()
    net.norm(x + writes_in_a_branch(tf, canary, x), "bn")
    net.save(net.v1.global_variables())
    result = ckpt_doctor.scan([str(net.prefix)], data=str(tmp_path / "data.npz"))
    told = [place.reason for one in result.checkpoints for place in one.not_judged]
    assert any("--allow-code" in text for text in (*told, *(error.message for error in result.errors)))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("RpcCall", "uses the network"),
        ("DataServiceDatasetV4", "uses the network"),
        ("RemoteCall", "uses the network"),
        ("Abort", "ends the process"),
        ("EagerPyFunc", "calls Python"),
        ("PyFuncStateless", "calls Python"),
        ("SaveV2", "writes files"),
        ("MergeV2Checkpoints", "writes files"),
        ("CreateSummaryFileWriter", "writes files"),
        ("DebugIdentityV2", "writes files"),
        ("ImmutableConst", "reads files"),
        ("ExperimentalLMDBDataset", "reads files"),
        ("DecodeProtoV2", "reads files"),
    ],
)
def test_the_kinds(op, kind):
    assert side_effects(pb.GraphDef(node=[pb.NodeDef(name="n", op=op)])) == (f"{kind} ({op} n)",)


@pytest.mark.parametrize(
    "op", "MatMul Identity RestoreState Savez PyFunction ReadVariableOp Rsqrt Print Assert".split()
)
def test_what_only_computes(op):
    assert side_effects(pb.GraphDef(node=[pb.NodeDef(name="n", op=op)])) == ()


def test_what_no_data_pass_through_is_not_looked_at(tf, net, tmp_path):
    """Every training graph saves itself and writes summaries."""
    writes_in_a_function(tf, tmp_path / "canary", None)
    net.v1.summary.scalar("loss", net.v1.constant(1.0))
    net.norm(net.images(), "bn")
    net.save(net.v1.global_variables()[:1])
    _, values = net.fix()
    np.testing.assert_allclose(values["bn/moving_mean"], moments(IMAGES)[0], rtol=1e-5)


def test_a_model_that_keras_2_saved_and_that_only_computes_is_none(tf, tmp_path):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,)), tf_keras.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.save(tmp_path / "model", save_format="tf")
    saved = pb.SavedModel.FromString((tmp_path / "model" / "saved_model.pb").read_bytes())
    assert [side_effects_of_model(one.graph_def) for one in saved.meta_graphs] == [()]


def test_a_model_that_keras_2_saved_is_looked_through_whole(tf, tmp_path):
    """Keras may call any function of it, by any name."""
    import tf_keras

    canary = tmp_path / "canary"

    class Spy(tf_keras.layers.Layer):
        def call(self, x):
            tf.io.write_file(str(canary), "ran")
            return x

    model = tf_keras.Sequential(
        [tf_keras.layers.Dense(3, input_shape=(2,)), Spy(), tf_keras.layers.BatchNormalization(name="bn")]
    )
    model.save(tmp_path / "model", save_format="tf")
    canary.unlink(missing_ok=True)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 2)).astype("f4"))
    checkpoint = open_checkpoint(tmp_path / "model")
    with pytest.raises(RepairRefused, match=r"writes files \(WriteFile .*--allow-code"):
        keras_models.load_keras(
            checkpoint, take_inventory(checkpoint, describe(checkpoint)).layers, None, allow_code=False
        )
    # Its graph, without Keras, gives the layers all they need; what only writes is no part of that.
    options = {"data": str(tmp_path / "x.npy"), "unproven": True, "method": "layerwise", "layers": ["*"]}
    ckpt_doctor.fix(tmp_path / "model", output=tmp_path / "out", **options)
    assert not canary.exists()


def test_functions_that_save_are_looked_at_where_another_calls_them():
    graph = pb.GraphDef()
    saving = graph.library.function.add()
    saving.signature.name = "__inference__traced_save_12"
    saving.node_def.add(name="w", op="WriteFile")
    assert side_effects_of_model(graph) == ()
    other = graph.library.function.add()
    other.signature.name = "__inference_call_3"
    call = other.node_def.add(name="c", op="PartitionedCall")
    call.attr["f"].func.name = "__inference__traced_save_12"
    assert side_effects_of_model(graph) == ("writes files (WriteFile w)",)


def test_a_function_that_calls_itself_ends():
    graph = pb.GraphDef()
    function = graph.library.function.add()
    function.signature.name = "f"
    function.node_def.add(name="again", op="f")
    graph.node.add(name="start", op="f")
    assert side_effects(graph) == ()
