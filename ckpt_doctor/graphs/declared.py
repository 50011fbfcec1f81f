"""Statistics that a graph has beside a batch norm, and that nothing in it reads or updates.

Batch norm that is written by hand, with one graph for training and one for serving, normalises with the moments of its
batch in the former. Where its author forgot the updates, nothing ties the statistics to the layer but their place: two
vectors that start at 0 and 1, in the scope of gamma and beta, that the graph only initialises and saves.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph, tensor_name
from ckpt_doctor.graphs.layers import Gathered, scope_of
from ckpt_doctor.graphs.updates import initial_value

_READS = frozenset({"Identity", "ReadVariableOp"})
_KEEPS = frozenset(
    {"Save", "SaveSlices", "SaveV2", "MergeV2Checkpoints", "IsVariableInitialized", "VarIsInitializedOp"}
)
_ASSIGNS = frozenset({"Assign", "AssignVariableOp"})
_RESTORES = frozenset({"Restore", "RestoreSlice", "RestoreV2"})


def add_declared(graph: Graph, layers: Iterable[Gathered]) -> None:
    """Give layers that run on batches and keep no statistics those that are declared beside them.

    Args:
        graph: The whole graph.
        layers: Its layers; changed in place.
    """
    lonely = [item for item in layers if not (item.moving_mean or item.moving_variance) and item.mode == "batch"]
    scopes = {scope_of(name) for item in lonely for name in (item.gamma, item.beta) if name}
    if not scopes:
        return
    beside: dict[str, list[str]] = {}
    for node in graph.of_op(VARIABLE_OPS):
        if scope_of(node.name) in scopes:
            beside.setdefault(scope_of(node.name), []).append(node.name)
    for item in lonely:
        affine = [name for name in (item.gamma, item.beta) if name]
        owners = [other for other in lonely if {scope_of(name) for name in affine} & _scopes(other)]
        if len(owners) != 1 or len(_scopes(item)) != 1:
            continue  # Two layers in one scope: nothing tells whose the statistics are.
        shape = graph.nodes[affine[0]].attr["shape"].shape.SerializeToString()
        starts = {
            name: initial_value(graph, name)
            for name in beside[scope_of(affine[0])]
            if graph.nodes[name].attr["shape"].shape.SerializeToString() == shape and _is_idle(graph, name)
        }
        if sorted(start for start in starts.values() if start is not None) == [0.0, 1.0] and len(starts) == 2:
            item.moving_mean, item.moving_variance = sorted(starts, key=lambda name: starts[name] or 0.0)


def _scopes(item: Gathered) -> set[str]:
    return {scope_of(name) for name in (item.gamma, item.beta) if name}


def _is_idle(graph: Graph, variable: str) -> bool:
    """Return whether a graph only initialises, saves and restores a variable."""
    initialisers = 0
    for node in graph.assignments.get(variable, ()):
        maker = graph.producer(graph.source(graph.inputs(node)[1]))
        if node.op not in _ASSIGNS:
            return False
        initialisers += maker is None or maker.op not in _RESTORES
    todo = [tensor_name(variable)]
    while todo:
        for node, _ in graph.consumers.get(todo.pop(), ()):
            if node.op in _READS:
                todo.append(tensor_name(node.name))
            elif node.op not in _KEEPS and node.op not in _ASSIGNS:
                return False
    return initialisers == 1
