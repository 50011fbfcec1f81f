"""The object graph of a TF2 checkpoint: which objects hold which variables.

The string tensor `_CHECKPOINTABLE_OBJECT_GRAPH` is a `TrackableObjectGraph`: nodes, their named children, and for each
variable the key of its value and its `full_name`. TensorFlow restores by walking it, so a variable that is added to a
checkpoint is found only if it hangs in the graph.

Source: tensorflow/core/protobuf/trackable_object_graph.proto, tensorflow/python/checkpoint/checkpoint.py.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats.interface import ObjectPlace
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
CONFIG_SUFFIX = "/.ATTRIBUTES/OBJECT_CONFIG_JSON"
_VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def labels(serialised: bytes) -> dict[str, str]:
    """Return the `full_name` of every checkpoint key; nothing where the graph cannot be parsed."""
    try:
        graph = pb.TrackableObjectGraph.FromString(serialised)
    except DecodeError:
        return {}
    return {
        attribute.checkpoint_key: attribute.full_name
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.full_name
    }


def with_variables(serialised: bytes, places: dict[str, ObjectPlace | None]) -> bytes:
    """Return the graph with new variables hung into it; those that hang in it already stay where they are.

    Args:
        serialised: The graph.
        places: For each new checkpoint key, where it belongs; None: where its key says.

    Raises:
        RepairRefused: The graph has no object that could own a variable.
    """
    try:
        graph = pb.TrackableObjectGraph.FromString(serialised)
    except DecodeError as error:
        raise RepairRefused("the object graph of the checkpoint cannot be parsed; variables cannot be added") from error
    known = {held.checkpoint_key for node in graph.nodes for held in node.attributes}
    for key, place in places.items():
        if key in known:
            continue
        owner, attribute = _owner(graph, key, place)
        _hold(graph, owner, place)
        held = _child(graph, owner, attribute)
        if held is not None and not graph.nodes[held].attributes:
            # The object is there, and only its value was not saved.
            graph.nodes[held].attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
            continue
        node = graph.nodes.add()
        node.attributes.add(
            name="VARIABLE_VALUE", checkpoint_key=key, full_name=place.full_name if place and place.full_name else ""
        )
        graph.nodes[owner].children.add(node_id=len(graph.nodes) - 1, local_name=attribute)
    return bytes(graph.SerializeToString(deterministic=True))


def _hold(graph: pb.TrackableObjectGraph, owner: int, place: ObjectPlace | None) -> None:
    """Let an object hold what is beside a new variable, as far as it does not."""
    lacking = {
        key: attribute
        for attribute, key in (place.beside.items() if place is not None else ())
        if _child(graph, owner, attribute) is None
    }
    for number, node in enumerate(graph.nodes):
        for held in node.attributes:
            if held.checkpoint_key in lacking:
                graph.nodes[owner].children.add(node_id=number, local_name=lacking.pop(held.checkpoint_key))
    if lacking:
        raise RepairRefused(
            f"{min(lacking)} is not in the object graph of the checkpoint, so nothing can be put beside it"
        )


def _owner(graph: pb.TrackableObjectGraph, key: str, place: ObjectPlace | None) -> tuple[int, str]:
    """Return the number of the node that owns a new variable, and the attribute under which it does."""
    attribute = place.attribute if place else None
    if place is not None and place.sibling is not None:
        holders = {
            number
            for number, node in enumerate(graph.nodes)
            if any(held.checkpoint_key == place.sibling for held in node.attributes)
        }
        for number, node in enumerate(graph.nodes):
            # An optimizer and a layer's list of weights hold it by a number; its layer holds it by a name.
            if any(child.node_id in holders and not child.local_name.isdigit() for child in node.children):
                return number, place.attribute
    if key.endswith(_VALUE_SUFFIX):
        *parents, last = (_unescape(part) for part in key[: -len(_VALUE_SUFFIX)].split("/"))
        owner = _walk(graph, parents, makes=place is not None and place.makes_owner)
        if owner is not None:
            return owner, attribute or last
    raise RepairRefused(f"{key}: no object of the checkpoint's object graph can own it")


def _walk(graph: pb.TrackableObjectGraph, names: list[str], *, makes: bool = False) -> int | None:
    """Return the number of the node to which names lead from the root, made where it is lacking; None without."""
    if not graph.nodes:
        return None
    number = 0
    for name in names:
        following = _child(graph, number, name)
        if following is None and makes:
            graph.nodes.add()
            following = len(graph.nodes) - 1
            graph.nodes[number].children.add(node_id=following, local_name=name)
        if following is None:
            return None
        number = following
    return number


def _child(graph: pb.TrackableObjectGraph, number: int, name: str) -> int | None:
    """Return the number of the node that a node holds under a name, or None."""
    found = next((child.node_id for child in graph.nodes[number].children if child.local_name == name), None)
    return found if found is not None and 0 <= found < len(graph.nodes) else None


def _unescape(name: str) -> str:
    """Return a name as in the graph; in keys `/` is written `.S` and `.` as `..`."""
    out = []
    position = 0
    while position < len(name):
        if name[position] == "." and position + 1 < len(name):
            out.append("/" if name[position + 1] == "S" else name[position + 1])
            position += 2
        else:
            out.append(name[position])
            position += 1
    return "".join(out)
