"""Graphs that no TensorFlow writes, small in bytes and endless to follow: given up, and said."""

from __future__ import annotations

import pytest

from ckpt_doctor.graphs import graph as graphs
from ckpt_doctor.graphs import inline as inlining
from ckpt_doctor.graphs.graph import Graph, TooMuchWork, constant_of, split_tensor
from ckpt_doctor.graphs.inline import inline
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.sites import find_sites
from ckpt_doctor.graphs.specialise import specialise
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.graphs.test_inline import node

FLOAT = 1


def constant(graph: pb.GraphDef, name: str, shape: tuple[int, ...] = (), value: float = 0.001) -> pb.NodeDef:
    made = node(graph, name, "Const")
    tensor = made.attr["value"].tensor
    tensor.dtype = FLOAT
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.append(value)
    return made


def doubling(levels: int, *, works: bool) -> pb.GraphDef:
    """Return a graph of functions each of which calls the next one twice."""
    graph = pb.GraphDef()
    for level in range(levels):
        function = graph.library.function.add()
        function.signature.name = f"f{level}"
        function.signature.input_arg.add(name="x")
        function.signature.output_arg.add(name="y")
        function.ret["y"] = "x"
        for name in ("a", "b") if level + 1 < levels else ():
            call = function.node_def.add(name=name, op="PartitionedCall", input=["x"])
            call.attr["f"].func.name = f"f{level + 1}"
        if works:
            function.node_def.add(name="work", op="Identity", input=["x"])
    node(graph, "x", "Placeholder")
    node(graph, "go", "PartitionedCall", "x", f="f0")
    return graph


def formula(op: str, width: int, depth: int) -> pb.GraphDef:
    """Return `(x - s) * rsqrt(s + epsilon)` where s is sums of sums of a variable."""
    graph = pb.GraphDef()
    node(graph, "sum0", "VariableV2").attr["shape"].shape.dim.add(size=4)
    for level in range(1, depth):
        node(graph, f"sum{level}", op, *[f"sum{level - 1}"] * width)
    constant(graph, "epsilon")
    node(graph, "x", "Placeholder")
    node(graph, "guarded", "Add", f"sum{depth - 1}", "epsilon")
    node(graph, "root", "Rsqrt", "guarded")
    node(graph, "centred", "Sub", "x", f"sum{depth - 1}")
    node(graph, "y", "Mul", "centred", "root")
    return graph


def steps(graph: Graph) -> int:
    return graphs._STEPS + graphs._STEPS_A_NODE * len(graph.nodes) - graph._steps_left


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr(inlining, "_ANYWAY", 2000)


@pytest.mark.parametrize("works", [True, False])
def test_functions_that_call_the_next_one_twice_are_not_written_out(works):
    assert len(inline(doubling(8, works=works))[0].node) == (256 if works else 1)
    with pytest.raises(TooMuchWork, match="with every call written out"):
        inline(doubling(40, works=works))


def test_what_a_graph_hides_in_functions_without_end_is_not_judged():
    meta = pb.MetaGraphDef()
    meta.graph_def.CopyFrom(doubling(40, works=True))
    with pytest.raises(TooMuchWork):
        MetaGraph.parse(meta.SerializeToString())


def test_a_wait_for_calls_of_calls_is_followed_once():
    graph = doubling(10, works=True)
    for number in range(100):
        node(graph, f"after{number}", "NoOp", "^go")
    written, _ = inline(graph)
    assert len(written.node) == 1 + 1023 + 100


@pytest.mark.parametrize("op", ["AddN", "Mul"])
def test_a_formula_reads_each_tensor_once(op):
    graph = Graph(formula(op, 2 if op == "Mul" else 30, 12))
    (found,) = find_sites(graph)
    assert found.statistics == "stored"
    assert steps(graph) < 500


def test_constants_made_of_constants_are_computed_once():
    graph = pb.GraphDef()
    constant(graph, "c0", value=1.0)
    for number in range(1, 20):
        node(graph, f"c{number}", "Add", f"c{number - 1}", f"c{number - 1}")
    walked = Graph(graph)
    assert walked.scalar("c19:0") == 2.0**19
    assert steps(walked) <= 19


def test_a_chain_of_copies_is_followed_once_for_all_that_is_on_it():
    graph = pb.GraphDef()
    node(graph, "n0", "Placeholder")
    for number in range(1, 900):
        node(graph, f"n{number}", "Identity", f"n{number - 1}")
    walked = Graph(graph)
    assert {walked.source(f"n{number}:0") for number in range(900)} == {"n0:0"}
    assert steps(walked) < 1000


def test_a_scale_that_everything_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(graphs, "_STEPS", 20_000)
    graph = formula("Mul", 2, 1)
    for number in range(300):
        node(graph, f"product{number}", "Mul", "x", "root")
        node(graph, f"shift{number}", "Sub", "sum0", f"product{number}")
    with pytest.raises(TooMuchWork, match="operations are so entangled"):
        find_sites(Graph(graph))


def test_what_a_switch_does_not_touch_is_shared_and_not_copied():
    graph = formula("Mul", 2, 4)
    node(graph, "training", "Placeholder").attr["dtype"].type = 10
    node(graph, "switch", "Switch", "y", "training")
    node(graph, "on", "Identity", "switch:1")
    node(graph, "off", "Identity", "switch")
    whole = Graph(graph)
    live = specialise(whole, {"training": False})
    assert live.nodes["y"] is whole.nodes["y"]
    assert list(live.nodes["off"].input) == ["y"]
    assert "on" not in live.nodes
    assert list(whole.nodes["off"].input) == ["switch"]
    assert [entry.name for entry in live.proto.node] == [entry.name for entry in live.order]


def test_a_tensor_that_is_no_number_is_none():
    assert split_tensor("x:²") == ("x:²", 0)
    assert split_tensor("x:" + "9" * 5000)[1] == 0
    assert split_tensor("a/b:12") == ("a/b", 12)


def constant_tensor(dtype: int, shape: tuple[int, ...], **values: object) -> pb.Tensor:
    tensor = pb.Tensor(dtype=dtype, **values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize("shape", [(-1, -4), (1 << 32, 1 << 32), (1 << 27,), (1,) * 40])
def test_a_constant_that_declares_what_is_not_there_has_no_value(shape):
    assert constant_of(constant_tensor(FLOAT, shape, float_val=[1.0])) is None


def test_numbers_beyond_their_type_are_those_that_fit():
    assert constant_of(constant_tensor(4, (2,), int_val=[300, -1])).tolist() == [44, 255]
    assert constant_of(constant_tensor(19, (1,), half_val=[1 << 20])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("op", "left", "right"), [("Sub", (2,), (3,)), ("Mul", (4096, 1), (1, 4096)), ("RealDiv", (2,), (2,))]
)
def test_arithmetic_of_damaged_constants_does_not_fail(op, left, right):
    graph = pb.GraphDef()
    constant(graph, "left", left, 1.0)
    constant(graph, "right", right, 0.0)
    node(graph, "result", op, "left", "right")
    value = Graph(graph).constant("result:0")
    assert value is None or value.shape == left == right


def test_a_text_that_is_cast_to_a_number_is_none():
    graph = pb.GraphDef()
    text = node(graph, "text", "Const")
    text.attr["value"].tensor.dtype = 7
    text.attr["value"].tensor.string_val.append(b"x")
    node(graph, "cast", "Cast", "text").attr["DstT"].type = FLOAT
    assert Graph(graph).constant("cast:0") is None
