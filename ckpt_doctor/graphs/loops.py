"""What of a graph runs inside a loop, or in a branch that the data decide.

`tf.while_loop` and `dynamic_rnn` bring tensors into a frame with Enter nodes and out of it with Exit nodes; between
them a tensor has one value for every turn, so it can be neither fed nor fetched from outside. Between the Switch and
the Merge of a `tf.cond` a tensor may have no value at all.
Source: tensorflow/core/ops/control_flow_ops.cc.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_doctor.graphs.graph import Graph, split_tensor

_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_PASSED_ON = _ENTERS | _EXITS | _SWITCHES | _MERGES | {"NextIteration", "RefNextIteration", "Identity"}
# Loops within loops; a damaged graph may lead from one Enter to itself.
_DEEPEST = 10


def nodes_in_loops(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes that stand between the Enter and the Exit of a loop, the Enter included.

    A loop within a loop leaves the inner frame for the outer one, so its Exit does not end the search.
    """
    return _between(graph, _named(graph, _ENTERS), _named(graph, _EXITS))


def nodes_in_branches(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes that stand between a Switch and a Merge, the Switch included.

    In a graph whose training switches are resolved, those are the branches that the data decide. The Switch and the
    Merge that turn a loop are none.
    """
    loops = nodes_in_loops(graph)
    return _between(graph, _named(graph, _SWITCHES) - loops, _named(graph, _MERGES) - loops)


def units(graph: Graph) -> Mapping[str, frozenset[str]]:
    """Return what can only run as a whole: node to all nodes of its loop or branch, with the Exits and Merges behind.

    Nodes outside of loops and branches are not in the table.
    """
    inside = nodes_in_loops(graph) | nodes_in_branches(graph)
    ends = _named(graph, _EXITS | _MERGES) - inside
    found: dict[str, frozenset[str]] = {}
    for start in inside:
        if start in found:
            continue
        members: set[str] = set()
        stack = [start]
        while stack:
            name = stack.pop()
            if name in members:
                continue
            members.add(name)
            stack += {split_tensor(entry)[0] for entry in graph.inputs(graph.nodes[name])} & inside
            # What follows an end is outside; another loop may even begin there.
            followers = () if name in ends else graph.dependents.get(name, ())
            stack += [follower for follower in followers if follower in inside or follower in ends]
        found.update(dict.fromkeys(members, frozenset(members)))
    return found


def array_tensors(graph: Graph) -> frozenset[str]:
    """Return the tensors by which operations on a TensorArray reach it: its handle, and the flow that orders them.

    A handle is valid in one run only. A flow is a number without meaning that all its operations take last
    (tensorflow/core/ops/data_flow_ops.cc): whoever feeds it skips what was written.
    """
    stack: list[str] = []
    for node in graph.order:
        inputs = graph.inputs(node) if node.op.startswith("TensorArray") else []
        stack += [inputs[0], inputs[-1]] if len(inputs) > 1 else []
    found = set()
    while stack:
        tensor = stack.pop()
        producer = graph.producer(tensor)
        if producer is None or tensor in found:
            continue
        found.add(tensor)
        if producer.op in _PASSED_ON:
            # The second input of a Switch is what decides.
            stack += graph.inputs(producer)[:1] if producer.op in _SWITCHES else graph.inputs(producer)
    return frozenset(found)


def _named(graph: Graph, ops: frozenset[str]) -> frozenset[str]:
    return frozenset(node.name for node in graph.of_op(ops))


def _between(graph: Graph, first: frozenset[str], last: frozenset[str]) -> frozenset[str]:
    depth: dict[str, int] = {}
    stack = [(name, 1) for name in first]
    while stack:
        name, frames = stack.pop()
        if depth.get(name, 0) >= min(frames, _DEEPEST):
            continue
        depth[name] = min(frames, _DEEPEST)
        inside = frames - (name in last)
        if inside:
            # An inner one is counted from its own start.
            stack += [(follower, inside + (follower in first)) for follower in graph.dependents.get(name, ())]
    return frozenset(name for name, frames in depth.items() if frames > 1 or name not in last)
