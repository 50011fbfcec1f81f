"""The optimizers in the object graph of a TensorFlow 2 checkpoint, and the lists of variables that they keep.

Source: keras/src/optimizers/base_optimizer.py, tf_keras/src/optimizers/optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.graphs.graph import is_number
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

TRAINED = "_trainable_variables"
_STEPS = "_iterations"

Node = pb.TrackableObjectGraph.TrackableObject


def is_optimizer(node: Node) -> bool:
    """Return whether an object counts steps."""
    return any(child.local_name == _STEPS for child in node.children)


def optimizers(graph: pb.TrackableObjectGraph) -> Iterator[dict[str, int]]:
    """Yield what each optimizer holds: attribute to the number of a node."""
    for node in graph.nodes:
        if is_optimizer(node):
            yield {child.local_name: child.node_id for child in node.children}


def members(graph: pb.TrackableObjectGraph, number: int | None) -> dict[int, int]:
    """Return the variables of a list that have values in the file: place to the number of a node.

    Args:
        graph: The object graph.
        number: The node of the list; None where there is none.
    """
    if number is None or not 0 <= number < len(graph.nodes):
        return {}
    return {
        int(child.local_name): child.node_id
        for child in graph.nodes[number].children
        if is_number(child.local_name)
        and 0 <= child.node_id < len(graph.nodes)
        and graph.nodes[child.node_id].attributes
    }
