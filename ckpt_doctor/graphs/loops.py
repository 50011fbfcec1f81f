"""What of a graph runs inside a loop, or in a branch that the data decide.

`tf.while_loop` and `dynamic_rnn` bring tensors into a frame with Enter nodes and out of it with Exit nodes; between
them a tensor has one value for every turn, so it can be neither fed nor fetched from outside. Between the Switch and
the Merge of a `tf.cond` a tensor may have no value at all.
Source: tensorflow/core/ops/control_flow_ops.cc.
"""

from __future__ import annotations

from ckpt_doctor.graphs.graph import Graph

_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
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
