"""What a graph hides in loops that are functions, and in branches that the data decide.

Batch norm there cannot be measured from outside, but its variables can be known, and so what a file lacks of them. For
that alone every such branch is taken once each way, and the body of every loop once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.inline import inline
from ckpt_doctor.graphs.loops import nodes_in_branches
from ckpt_doctor.graphs.sites import FUSED_OPS
from ckpt_doctor.graphs.specialise import specialise

# Op to the input that decides.
_DECIDED = {"Switch": 1, "RefSwitch": 1, "If": 0, "StatelessIf": 0}
# Without one of them nothing in a branch is batch norm: most branches guard assertions.
_OF_BATCH_NORM = frozenset({*FUSED_OPS, "Rsqrt", "Sqrt", "If", "StatelessIf"})


def with_bodies(graph: Graph) -> Graph:
    """Return the graph with the body of every `While` written out once; the graph itself where it has none."""
    proto, written = inline(graph.proto, loops=True)
    return Graph(proto) if written else graph


def undecided(graph: Graph) -> dict[str, bool]:
    """Return the nodes that decide branches in which batch norm may stand; `graph` has no training switches left."""
    inside = nodes_in_branches(graph)
    ifs = any(node.op in ("If", "StatelessIf") for node in graph.order)
    if not ifs and not any(graph.nodes[name].op in _OF_BATCH_NORM for name in inside):
        return {}
    found = {}
    for node in graph.of_op(_DECIDED):
        inputs = graph.inputs(node)
        source = graph.producer(graph.source(inputs[_DECIDED[node.op]])) if len(inputs) > 1 else None
        # A LoopCond turns a loop of its own, whose inside is visible.
        if source is not None and source.op != "LoopCond":
            found[source.name] = True
    return found


def opened_graphs(
    graph: Graph, inference: Mapping[str, bool], training: Mapping[str, bool]
) -> Iterator[tuple[Graph, Graph]]:
    """Yield the graph of inference and that of training, once for each way that the data may decide.

    Args:
        graph: The whole graph, with the bodies of its loops written out.
        inference: The training switches with their values at inference.
        training: The same in training.
    """
    deciding = undecided(specialise(graph, inference))
    for way in (True, False) if deciding else (True,):
        forced = dict.fromkeys(deciding, way)
        yield specialise(graph, {**inference, **forced}), specialise(graph, {**training, **forced})
