"""Which keys of a SavedModel's file hold one and the same variable.

A SavedModel of TensorFlow 2 is loaded in two ways. `tf.saved_model.load` makes objects, restores each by its key in the
bundle's object graph, and hands those that a function has captured to the function (`bound_inputs`). A session, and
with it TensorFlow Serving, runs the restore op of the graph. The `export` of Keras 3 keeps every variable as two
objects, one in `variables`, one in `_all_variables`, with a key each; the function is bound to the first, and the graph
restores the second. So each of the two ways reads another copy.
Source: tensorflow/python/saved_model/load.py, `_setup_function_captures`; tensorflow/cc/saved_model/loader.cc,
`RunRestore`; keras/src/export/saved_model_export_archive.py, `_all_variables`. TensorFlow 2.21 and Keras 3.15 serve
accordingly, each copy changed in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError

from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_VALUE = "VARIABLE_VALUE"


def bound_keys(meta: pb.MetaGraphDef, object_graph: bytes | None) -> dict[str, str]:
    """Return the node of every variable that a signature's function captures, to the key that it is loaded from.

    Args:
        meta: The meta graph of a SavedModel.
        object_graph: The object graph beside its variables, or None; without it nothing is known.
    """
    saved = meta.object_graph_def
    if object_graph is None or not saved.nodes:
        return {}
    try:
        stored = pb.TrackableObjectGraph.FromString(object_graph)
    except DecodeError:
        return {}
    keys = dict(_keys(saved, stored))
    graph = Graph(meta.graph_def)
    found: dict[str, str] = {}
    for call in meta.graph_def.node:
        function = call.attr["f"].func.name if "f" in call.attr else ""
        if function not in saved.concrete_functions:
            continue
        captured = list(saved.concrete_functions[function].bound_inputs)
        inputs = graph.inputs(call)
        # What a function captures follows its arguments.
        for tensor, number in zip(inputs[max(len(inputs) - len(captured), 0) :], captured, strict=False):
            node = split_tensor(tensor)[0]
            if number in keys and node in graph.nodes and graph.nodes[node].op in VARIABLE_OPS:
                found.setdefault(node, keys[number])
    return found


def _keys(saved: pb.SavedObjectGraph, stored: pb.TrackableObjectGraph) -> Iterator[tuple[int, str]]:
    """Yield the number of every object that holds a value, and its key: a loader walks both graphs by their names."""
    stack, seen = [(0, 0)], {0}
    while stack:
        number, twin = stack.pop()
        if not (0 <= number < len(saved.nodes) and 0 <= twin < len(stored.nodes)):
            continue
        for attribute in stored.nodes[twin].attributes:
            if attribute.name == _VALUE:
                yield number, attribute.checkpoint_key
        children = {child.local_name: child.node_id for child in stored.nodes[twin].children}
        for child in saved.nodes[number].children:
            if child.local_name in children and child.node_id not in seen:
                seen.add(child.node_id)
                stack.append((child.node_id, children[child.local_name]))


def copied_variables(meta: pb.MetaGraphDef) -> dict[str, str]:
    """Return the node of every variable that saving has made, to that of the variable that it is a copy of.

    An object that wraps a variable, as those of Keras 3 do, is saved as a variable of its own, whose initial value is
    read from the wrapped one (keras/src/backend/tensorflow/core.py, `_export_to_saved_model_graph`). What users assign
    to each other stands inside functions, and under another name.
    """
    if not meta.object_graph_def.nodes:
        return {}
    graph = Graph(meta.graph_def)
    found: dict[str, str] = {}
    for name, nodes in graph.assignments.items():
        for node in nodes:
            original = graph.variable(graph.inputs(node)[1])
            if node.name == f"{name}/Assign" and original is not None and original != name:
                found[name] = original
    return found


def copies(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return every further key of a variable, to its first.

    Args:
        keys: Variable's node to its keys, the one that counts first.
    """
    firsts = {names[0] for names in keys.values() if names}
    found: dict[str, str] = {}
    for names in keys.values():
        for name in names[1:]:
            if name not in firsts:
                found.setdefault(name, names[0])
    return found
