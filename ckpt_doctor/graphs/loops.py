"""What of a graph runs inside a loop.

`tf.while_loop` and `dynamic_rnn` bring tensors into a frame with Enter nodes and out of it with Exit nodes; between
them a tensor has one value for every turn, so it can be neither fed nor fetched from outside.
Source: tensorflow/core/ops/control_flow_ops.cc.
"""

from __future__ import annotations

from ckpt_doctor.graphs.graph import Graph

_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
# Loops within loops; a damaged graph may lead from one Enter to itself.
_DEEPEST = 10


def nodes_in_loops(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes that stand between the Enter and the Exit of a loop, the Enter included.

    A loop within a loop leaves the inner frame for the outer one, so its Exit does not end the search.
    """
    depth: dict[str, int] = {}
    stack = [(node.name, 1) for node in graph.of_op(_ENTERS)]
    while stack:
        name, frames = stack.pop()
        if depth.get(name, 0) >= min(frames, _DEEPEST):
            continue
        depth[name] = min(frames, _DEEPEST)
        op = graph.nodes[name].op
        inside = frames - 1 if op in _EXITS else frames
        if inside:
            followers = graph.dependents.get(name, ())
            stack += [(follower, inside + (graph.nodes[follower].op in _ENTERS)) for follower in followers]
    return frozenset(name for name, frames in depth.items() if frames > 1 or graph.nodes[name].op not in _EXITS)
