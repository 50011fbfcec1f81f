"""The object graph of a TF2 checkpoint: which variables one object owns.

A batch-norm object has the children `moving_mean` and `moving_variance`; keys in the file are mere shortest paths to a
variable (gamma may lie under `optimizer/_trainable_variables/7`), so only the children say what belongs together.
Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ckpt_doctor.graphs.facts import Companion, LayerFacts, ModelFacts
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Keras' names, then Sonnet 2's.
_GAMMA = ("gamma", "scale")
_BETA = ("beta", "offset")


def describe_objects(data: bytes) -> ModelFacts:
    """Return the batch-norm layers of a serialised `TrackableObjectGraph`."""
    try:
        graph = pb.TrackableObjectGraph.FromString(data)
    except DecodeError:
        return ModelFacts("object-graph", problems=("the object graph is damaged: it is no TrackableObjectGraph",))
    layers: dict[str, LayerFacts] = {}
    for node in graph.nodes:
        children = {child.local_name: child.node_id for child in node.children}
        if "moving_mean" not in children or "moving_variance" not in children:
            continue
        companions: list[Companion] = []
        mean = _statistic(graph, children["moving_mean"], "moving_mean", companions)
        variance = _statistic(graph, children["moving_variance"], "moving_variance", companions)
        if mean is None and variance is None:
            continue
        gamma = next((_key(graph, children[name]) for name in _GAMMA if name in children), None)
        beta = next((_key(graph, children[name]) for name in _BETA if name in children), None)
        owner = _owner(graph, children["moving_mean"], mean or variance or "")
        layers.setdefault(
            mean or variance or owner,
            LayerFacts(owner, gamma, beta, mean, variance, companions=tuple(companions)),
        )
    return ModelFacts("object-graph", layers=tuple(layers.values()))


def _node(graph: pb.TrackableObjectGraph, number: int) -> pb.TrackableObjectGraph.TrackableObject | None:
    return graph.nodes[number] if 0 <= number < len(graph.nodes) else None


def _key(graph: pb.TrackableObjectGraph, number: int) -> str | None:
    node = _node(graph, number)
    return node.attributes[0].checkpoint_key if node is not None and node.attributes else None


def _statistic(graph: pb.TrackableObjectGraph, number: int, role: str, companions: list[Companion]) -> str | None:
    """Return the key of a statistic: the variable itself, or the `average` of a Sonnet moving average."""
    node = _node(graph, number)
    if node is None:
        return None
    if node.attributes:
        return node.attributes[0].checkpoint_key
    members = {child.local_name: child.node_id for child in node.children}
    for local_name, kind in (("_hidden", "hidden"), ("_counter", "counter")):
        key = _key(graph, members[local_name]) if local_name in members else None
        if key:
            companions.append(Companion(key, kind, role))
    return _key(graph, members["average"]) if "average" in members else None


def _owner(graph: pb.TrackableObjectGraph, number: int, key: str) -> str:
    """Return a layer's name: its variable's name for people without the role, or the path of its key."""
    node = _node(graph, number)
    full_name = node.attributes[0].full_name if node is not None and node.attributes else ""
    path = key[: -len(_SUFFIX)] if key.endswith(_SUFFIX) else key
    parent = path.rpartition("/moving_")[0]
    return parent or full_name.rpartition("/")[0] or path
