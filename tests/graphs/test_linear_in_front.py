"""Which linear layer a graph shows in front of a batch norm, and what ends it."""

import pytest

from ckpt_doctor.graphs.facts import LinearInFront
from ckpt_doctor.graphs.meta_graph import MetaGraph

pytestmark = pytest.mark.tensorflow

BOTH = LinearInFront("fc/kernel", "fc/bias")


def front_of(build):
    """Return what stands in front of the one batch norm of a graph that `build` makes; it gets the module, and x."""
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        build(v1, v1.placeholder(tf.float32, [None, 5], "x"))
        v1.train.Saver()
        data = v1.train.export_meta_graph().SerializeToString()
    [layer] = MetaGraph.parse(data).facts.layers
    return layer.front


def variable(v1, name, shape, **options):
    return v1.get_variable(name, shape, **options)


def dense(v1, x, *, bias=True, name="fc"):
    product = v1.matmul(x, variable(v1, f"{name}/kernel", [5, 4]))
    return v1.nn.bias_add(product, variable(v1, f"{name}/bias", [4])) if bias else product


def normalise(v1, x, name="bn"):
    mean, variance, gamma, beta = (
        variable(v1, f"{name}/{role}", [4], trainable=not role.startswith("moving"))
        for role in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    return v1.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3, name=name)


def test_a_dense_layer():
    assert front_of(lambda v1, x: normalise(v1, dense(v1, x))) == BOTH
    assert front_of(lambda v1, x: normalise(v1, dense(v1, x, bias=False))) == LinearInFront("fc/kernel", None)


def test_a_bias_that_is_added_by_hand():
    def build(v1, x):
        normalise(v1, dense(v1, x, bias=False) + variable(v1, "fc/bias", [4]))

    assert front_of(build) == BOTH


def test_gradients_and_summaries_are_no_readers():
    def build(v1, x):
        z = dense(v1, x)
        v1.summary.histogram("z", z)
        loss = v1.reduce_mean(v1.nn.relu(normalise(v1, z)) ** 2)
        v1.train.AdamOptimizer().minimize(loss)

    assert front_of(build) == BOTH


@pytest.mark.parametrize("what", ["relu", "dropout", "stop_gradient", "pad"])
def test_what_ends_it(what):
    def build(v1, x):
        z = dense(v1, x)
        if what == "relu":
            z = v1.nn.relu(z)
        elif what == "dropout":
            z = v1.nn.dropout(z, rate=0.5)
        elif what == "stop_gradient":
            z = v1.stop_gradient(z)
        else:
            z = v1.slice(v1.pad(z, [[0, 0], [0, 1]]), [0, 0], [-1, 4])
        normalise(v1, z)

    assert front_of(build) is None


@pytest.mark.parametrize("where", ["sum", "product"])
def test_a_second_reader_ends_it(where):
    def build(v1, x):
        product = dense(v1, x, bias=False)
        z = v1.nn.bias_add(product, variable(v1, "fc/bias", [4]))
        second = z if where == "sum" else product
        v1.identity(normalise(v1, z) + v1.nn.relu(second), "out")

    assert front_of(build) is None


def test_a_skip_connection_ends_it():
    def build(v1, x):
        z = dense(v1, x)
        v1.identity(normalise(v1, z) + z, "out")

    assert front_of(build) is None


def test_copies_and_reshapes_keep_it():
    def build(v1, x):
        normalise(v1, v1.reshape(v1.identity(dense(v1, x)), [-1, 4]))

    assert front_of(build) == BOTH


@pytest.mark.parametrize(
    ("op", "shape", "axes"),
    [
        ("conv2d", [3, 3, 3, 4], (-1,)),
        ("depthwise_conv2d_native", [3, 3, 2, 2], (-2, -1)),
        ("conv2d_transpose", [3, 3, 4, 3], (-2,)),
    ],
)
def test_convolutions_have_their_channels_on_axes_of_their_own(op, shape, axes):
    def build(v1, x):
        images = v1.placeholder("float32", [2, 8, 8, 2 if "depthwise" in op else 3])
        kernel = variable(v1, "fc/kernel", shape)
        more = {"output_shape": [2, 8, 8, 4]} if "transpose" in op else {}
        strides = [1, 1, 1, 1]
        z = getattr(v1.nn, op)(images, kernel, strides=strides, padding="SAME", **more)
        z = v1.nn.avg_pool2d(v1.nn.bias_add(z, variable(v1, "fc/bias", [4])), 2, 2, "SAME")
        normalise(v1, z)

    assert front_of(build) == LinearInFront("fc/kernel", "fc/bias", axes)


def test_the_work_does_not_grow_with_the_network_behind_a_second_reader(monkeypatch):
    """A chain of layers, each read twice: what is walked from one of them ends soon."""
    import tensorflow as tf

    from ckpt_doctor.graphs import linear_in_front
    from ckpt_doctor.graphs.linear_in_front import FrontFinder

    monkeypatch.setattr(linear_in_front, "_WIDEST", 40)
    v1 = tf.compat.v1

    def nodes(layers):
        with tf.Graph().as_default():
            x = v1.placeholder(tf.float32, [None, 4], "x")
            for number in range(layers):
                z = v1.matmul(x, variable(v1, f"fc{number}/kernel", [4, 4]))
                x = v1.nn.relu(normalise(v1, z, f"bn{number}")) + z
            meta = MetaGraph.parse(v1.train.export_meta_graph().SerializeToString())
        visits = 0
        sites = [site for layer in meta.facts.layers for site in layer.sites]
        finder = FrontFinder(meta.inference, sites, {})
        table = meta.inference.consumers

        class Counted(dict):
            def get(self, *key):
                nonlocal visits
                visits += 1
                return table.get(*key)

        meta.inference.__dict__["consumers"] = Counted()
        for site in sites:
            assert finder.of(site) is None
        return visits

    assert nodes(40) < 2.5 * nodes(20)
