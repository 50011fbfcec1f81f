"""The object graph of a TF2 checkpoint: which variables one object owns.

A batch-norm object has the children `moving_mean` and `moving_variance`; keys in the file are mere shortest paths to a
variable (gamma may lie under `optimizer/_trainable_variables/7`), so only the children say what belongs together.
Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from google.protobuf.message import DecodeError

from ckpt_doctor.graphs.facts import Companion, LayerFacts, ModelFacts
from ckpt_doctor.graphs.object_lists import unshown_layers
from ckpt_doctor.graphs.object_slots import object_slots
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_VALUE = "VARIABLE_VALUE"
VALUE_SUFFIX = f"/.ATTRIBUTES/{_VALUE}"
# Keras' names, then Sonnet 2's.
_GAMMA = ("gamma", "scale")
_BETA = ("beta", "offset")
_RENORM = ("renorm_mean", "renorm_stddev", "moving_stddev")
_OTHER_NORMALIZATION = re.compile(r"layer_?norm|group_?norm|instance_?norm|rms_?norm", re.IGNORECASE)


def describe_objects(data: bytes) -> ModelFacts:
    """Return the batch-norm layers of a serialised `TrackableObjectGraph`."""
    try:
        graph = pb.TrackableObjectGraph.FromString(data)
    except DecodeError:
        return ModelFacts("object-graph", problems=("the object graph is damaged: it is not a TrackableObjectGraph",))
    layers: dict[str, tuple[LayerFacts, str]] = {}
    other: set[str] = set()
    trained = _slotted(graph)
    for node in graph.nodes:
        children = {child.local_name: child.node_id for child in node.children}
        if "moving_mean" not in children or "moving_variance" not in children:
            other |= _other_normalization(graph, children)
            continue
        companions: list[Companion] = []
        mean = _statistic(graph, children["moving_mean"], "moving_mean", companions)
        variance = _statistic(graph, children["moving_variance"], "moving_variance", companions)
        if mean is None and variance is None:
            continue
        for role in _RENORM:
            key = _key(graph, children[role]) if role in children else None
            if key:
                companions.append(Companion(key, role, "layer"))
        gamma = next((key for name in _GAMMA if name in children and (key := _key(graph, children[name]))), None)
        beta = next((key for name in _BETA if name in children and (key := _key(graph, children[name]))), None)
        averaged = any(companion.role in ("hidden", "counter") for companion in companions)
        facts = LayerFacts(
            _owner(mean or variance or ""),
            gamma,
            beta,
            mean,
            variance,
            companions=tuple(companions),
            gradient_trains=bool({children["moving_mean"], children["moving_variance"]} & trained),
            # Sonnet's averages start at 0, and are corrected for it.
            initial="0/0" if averaged else "0/1",
        )
        layers.setdefault(mean or variance or facts.name, (facts, _full_name(graph, children["moving_mean"])))
    return ModelFacts(
        "object-graph",
        layers=tuple(_named(list(layers.values()))),
        other_normalization=frozenset(other),
        stored=frozenset(
            held.checkpoint_key for node in graph.nodes for held in node.attributes if held.name == _VALUE
        ),
        slots=object_slots(graph),
        unshown=tuple(unshown_layers(graph)),
    )


def full_names(data: bytes) -> dict[str, str]:
    """Return the name for people of every key of a serialised `TrackableObjectGraph`, as far as it can be read."""
    try:
        graph = pb.TrackableObjectGraph.FromString(data)
    except DecodeError:
        return {}
    return {held.checkpoint_key: held.full_name for node in graph.nodes for held in node.attributes if held.full_name}


def _named(layers: list[tuple[LayerFacts, str]]) -> list[LayerFacts]:
    """Return the layers, by their names for people where the path of a key is none."""
    spoken = Counter(full_name for _, full_name in layers)
    return [
        replace(facts, name=full_name) if full_name and spoken[full_name] == 1 and _is_place(facts.name) else facts
        for facts, full_name in layers
    ]


def _is_place(name: str) -> bool:
    """Return whether a path ends in a number or passes private lists: Keras 3's `_operations/2`, a `variables/4`."""
    parts = name.split("/")
    return not name or parts[-1].isdigit() or any(part.startswith("_") for part in parts)


def _other_normalization(graph: pb.TrackableObjectGraph, children: dict[str, int]) -> set[str]:
    """Return the scope of an object that is another normalisation by the name of its gamma."""
    for role in _GAMMA:
        node = _node(graph, children[role]) if role in children else None
        if node is not None and node.attributes and _OTHER_NORMALIZATION.search(node.attributes[0].full_name):
            return {_path(node.attributes[0].checkpoint_key).rpartition("/")[0]}
    return set()


def _slotted(graph: pb.TrackableObjectGraph) -> set[int]:
    """Return the nodes of the variables that an optimizer keeps slots for."""
    return {slot.original_variable_node_id for node in graph.nodes for slot in node.slot_variables}


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


def _path(key: str) -> str:
    return key[: -len(VALUE_SUFFIX)] if key.endswith(VALUE_SUFFIX) else key


def _owner(key: str) -> str:
    """Return the path of a layer, from the key of its statistic."""
    path = _path(key)
    return path.rpartition("/moving_")[0] or path


def _full_name(graph: pb.TrackableObjectGraph, number: int) -> str:
    """Return a layer's name for people: its variable's without the role."""
    node = _node(graph, number)
    full_name = node.attributes[0].full_name if node is not None and node.attributes else ""
    return full_name.rpartition("/")[0]
