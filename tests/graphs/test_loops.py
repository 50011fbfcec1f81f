"""What stands inside loops, on graphs made of names only."""

from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.loops import array_tensors, nodes_in_branches, nodes_in_loops, units
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb


def graph(*lines):
    """Make a graph of lines like `name op input input`."""
    proto = pb.GraphDef()
    for line in lines:
        name, op, *inputs = line.split()
        proto.node.add(name=name, op=op, input=inputs)
    return Graph(proto)


LOOP = (
    "x Placeholder",
    "enter Enter x",
    "merge Merge enter next",
    "switch Switch merge condition",
    "condition LoopCond merge",
    "body Mul switch:1",
    "next NextIteration body",
    "exit Exit switch",
    "after Mul exit",
)


def test_between_enter_and_exit():
    assert nodes_in_loops(graph(*LOOP)) == {"enter", "merge", "switch", "condition", "body", "next"}


def test_a_constant_that_waits_for_the_loop_is_inside():
    assert "step" in nodes_in_loops(graph(*LOOP, "step Const ^switch"))


def test_leaving_an_inner_loop_is_not_leaving_the_outer_one():
    inner = ("in_enter Enter switch:1", "in_body Mul in_enter", "in_exit Exit in_body", "between Mul in_exit")
    found = nodes_in_loops(graph(*LOOP, *inner))
    assert {"in_enter", "in_body", "in_exit", "between"} <= found
    assert not {"exit", "after", "x"} & found


def test_a_graph_without_loops_has_nothing_inside():
    assert nodes_in_loops(graph("x Placeholder", "y Mul x")) == frozenset()


def test_a_damaged_loop_that_never_leaves_ends():
    assert nodes_in_loops(graph("a Enter b", "b Enter a")) == {"a", "b"}


COND = (
    "data Placeholder",
    "less Less data",
    "branch Switch data less",
    "no Mul branch",
    "yes Mul branch:1",
    "whole Merge no yes",
    "behind Mul whole",
)


def test_between_switch_and_merge():
    assert nodes_in_branches(graph(*COND)) == {"branch", "no", "yes"}


def test_a_loop_is_no_branch():
    assert nodes_in_branches(graph(*LOOP)) == frozenset()
    in_branch = [line.replace("x Placeholder", "x Mul branch") for line in LOOP]
    assert {"body", "merge", "after"} <= nodes_in_branches(graph(*COND, *in_branch))


def test_a_branch_in_a_branch_does_not_end_it():
    inner = ("deeper Switch yes less", "left Mul deeper", "right Mul deeper:1", "joined Merge left right")
    found = nodes_in_branches(graph(*COND[:-2], *inner, "whole Merge no joined", "behind Mul whole"))
    assert {"deeper", "left", "right", "joined"} <= found
    assert not {"whole", "behind"} & found


def test_a_loop_runs_as_a_whole_with_its_exits():
    second = (
        "enter2 Enter exit",
        "merge2 Merge enter2",
        "switch2 Switch merge2 condition2",
        "condition2 LoopCond merge2",
    )
    found = units(graph(*LOOP, *second, "exit2 Exit switch2"))
    first = {"enter", "merge", "switch", "condition", "body", "next", "exit"}
    assert {name: found[name] for name in first} == dict.fromkeys(first, first)
    assert found["exit2"] == {"enter2", "merge2", "switch2", "condition2", "exit2"}
    assert not {"x", "after"} & found.keys()


def test_a_branch_runs_as_a_whole_with_its_merge():
    """Nothing but the Merge joins the sides."""
    sides = ("s Switch x p", "a Mul s", "t Switch x p", "b Sub t:1", "m Merge a b")
    for lines in (sides, sides[::-1]):
        found = units(graph("x P", "p P", *lines, "y Mul m"))
        assert found == dict.fromkeys("satbm", frozenset("satbm"))


def test_an_array_is_reached_through_the_loop():
    array = ("size P", "array TensorArrayV3 size", "values P", "write TensorArrayScatterV3 array index values array:1")
    loop = ("in Enter write", "merge Merge in next", "to Switch merge go", "next NextIteration to:1", "out Exit to")
    found = array_tensors(graph(*array, *loop, "read TensorArrayGatherV3 array index out"))
    flow = {"out:0", "to:0", "to:1", "merge:0", "in:0", "next:0", "write:0", "array:1"}
    assert found == {"array:0"} | flow
