"""Functions written out: names, outputs counted over several results, nested calls, branches."""

from __future__ import annotations

from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.inline import inline
from ckpt_doctor.graphs.specialise import resolve_tensor, specialise, training_switches
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

BOOL, FLOAT = 10, 1


def node(graph, name, op, *inputs, **functions):
    made = graph.node.add(name=name, op=op)
    made.input.extend(inputs)
    for attribute, function in functions.items():
        made.attr[attribute].func.name = function
    return made


def function(graph, name, arguments, outputs, *nodes):
    made = graph.library.function.add()
    made.signature.name = name
    for argument in arguments:
        made.signature.input_arg.add(name=argument)
    for output, tensor in outputs.items():
        made.signature.output_arg.add(name=output)
        made.ret[output] = tensor
    for inner, op, inputs in nodes:
        added = made.node_def.add(name=inner, op=op)
        added.input.extend(inputs)
    return made


def normalised() -> pb.GraphDef:
    """Return a graph that calls a function which calls a function with a fused batch norm."""
    graph = pb.GraphDef()
    function(
        graph, "inner", ["x", "mean"], {"y": "bn:y:0", "of_batch": "bn:batch_mean:0"},
        ("bn", "FusedBatchNormV3", ["x", "x", "x", "mean", "mean"]),
    )  # fmt: skip
    outer = function(graph, "outer", ["a", "m"], {"out": "call:output:1"}, ("call", "PartitionedCall", ["a", "m"]))
    outer.node_def[0].attr["f"].func.name = "inner"
    node(graph, "x", "Placeholder")
    node(graph, "mean", "VarHandleOp")
    node(graph, "go", "StatefulPartitionedCall", "x", "mean", f="outer")
    node(graph, "y", "Identity", "go", "^go")
    return graph


def test_calls_within_calls_are_written_out_and_lead_to_the_variables():
    written, alias = inline(normalised())
    graph = Graph(written)
    assert set(graph.nodes) == {"x", "mean", "go/call/bn", "y"}
    assert alias["go:0"] == "go/call/bn:1"
    assert list(graph.nodes["go/call/bn"].input) == ["x", "x", "x", "mean", "mean"]
    assert list(graph.nodes["y"].input) == ["go/call/bn:1", "^go/call/bn"]


def test_a_call_of_a_function_that_is_not_there_stays():
    graph = normalised()
    del graph.library.function[:]
    assert [entry.name for entry in inline(graph)[0].node] == ["x", "mean", "go", "y"]


def test_a_function_that_calls_itself_ends():
    graph = pb.GraphDef()
    own = function(graph, "f", ["x"], {"y": "again:output:0"}, ("again", "PartitionedCall", ["x"]))
    own.node_def[0].attr["f"].func.name = "f"
    node(graph, "x", "Placeholder")
    node(graph, "go", "PartitionedCall", "x", f="f")
    written, _ = inline(graph)
    assert len(written.node) == 2


def branching() -> pb.GraphDef:
    graph = pb.GraphDef()
    function(graph, "train", ["x"], {"y": "m:output:0"}, ("m", "Mean", ["x"]))
    function(graph, "serve", ["x"], {"y": "r:value:0"}, ("r", "ReadVariableOp", ["x"]))
    node(graph, "x", "VarHandleOp")
    node(graph, "is_training", "Placeholder").attr["dtype"].type = BOOL
    node(graph, "if", "If", "is_training", "x", then_branch="train", else_branch="serve")
    node(graph, "y", "Identity", "if")
    return graph


def test_the_live_branch_of_an_if_is_written_out():
    graph = Graph(branching())
    assert training_switches(graph) == ("is_training",)
    for way, inner in ((True, "if/m"), (False, "if/r")):
        live = specialise(graph, {"is_training": way})
        assert list(live.nodes["y"].input) == [inner]
        assert resolve_tensor(graph, {"is_training": way}, "if") == f"{inner}:0"
    assert "if" in specialise(graph, {}).nodes


def test_a_comparison_of_a_fed_mode_is_a_switch():
    graph = pb.GraphDef()
    node(graph, "mode", "Placeholder").attr["dtype"].type = 3
    one = node(graph, "one", "Const")
    one.attr["value"].tensor.dtype = 3
    one.attr["value"].tensor.tensor_shape.SetInParent()
    one.attr["value"].tensor.int_val.append(1)
    node(graph, "is_train", "Equal", "mode", "one")
    node(graph, "switch", "Switch", "mode", "is_train")
    assert training_switches(Graph(graph)) == ("is_train",)


def test_what_a_condition_leaves_beside_it_keeps_its_name():
    """`tf.cond` writes `cond/Identity` beside `cond`, and a branch may hold an `Identity`."""
    graph = pb.GraphDef()
    function(graph, "yes", ["x"], {"y": "Identity:output:0"}, ("Identity", "Identity", ["x"]))
    function(graph, "no", ["x"], {"y": "Neg:y:0"}, ("Neg", "Neg", ["x"]))
    node(graph, "x", "Placeholder")
    node(graph, "way", "Placeholder")
    node(graph, "cond", "If", "way", "x", then_branch="yes", else_branch="no")
    node(graph, "cond/Identity", "Identity", "cond")
    written, alias = inline(graph, lambda node: True)
    names = [node.name for node in written.node]
    assert len(names) == len(set(names))
    inputs = {node.name: list(node.input) for node in written.node}
    assert alias["cond:0"] == "cond_1/Identity:0"
    assert inputs["cond/Identity"] == ["cond_1/Identity"]
    assert inputs["cond_1/Identity"] == ["x"]
