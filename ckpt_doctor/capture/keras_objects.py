"""Which variable of an object-based checkpoint belongs to which variable of a live Keras model.

TensorFlow restores by walking the live objects and the object graph of the file side by side, from the root on. What it
does not reach by names it may still reach by an optimizer, which keeps the variables that it trains in their order: in
Keras 3 the layers in a list or a dict are no children of the model for TensorFlow, so gamma and beta of a batch norm
there are saved by way of the optimizer, and its statistics are not saved at all.
Source: tensorflow/python/checkpoint/restore.py, keras/src/backend/tensorflow/trackable.py (3.15.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from ckpt_doctor.capture.keras_names import identity, is_variable
from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.object_graph import VALUE_SUFFIX
from ckpt_doctor.graphs.object_optimizers import TRAINED, is_optimizer, members, optimizers
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb


@dataclass(frozen=True, eq=False)
class Matched:
    """A live model held against the object graph of a checkpoint.

    Attributes:
        attribute: Under which attribute of the checkpoint's root the model lies; None where it is the root.
        keys: `identity` of a variable to the key of its value in the file.
        by_optimizer: `identity` of the variables that only an optimizer's list leads to, and TensorFlow restores only
            with that optimizer.
        paths: `id` of a live object that TensorFlow reaches to the names that lead to it from the checkpoint's root;
            those that the file has where there are any.
    """

    attribute: str | None = None
    keys: Mapping[int, str] = field(default_factory=dict)
    by_optimizer: frozenset[int] = frozenset()
    paths: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def key_below(self, owner: Any, attribute: str) -> str | None:
        """Return the key that a variable has which an object holds; None where TensorFlow does not reach the object."""
        path = self.paths.get(id(owner))
        return None if path is None else "/".join(map(_escaped, (*path, attribute))) + VALUE_SUFFIX


def match_objects(checkpoint: Checkpoint, model: Any) -> Matched:
    """Return what of a model TensorFlow would restore from where in a checkpoint.

    Raises:
        RepairRefused: The file has no object graph, or a damaged one; or no weight of the model is in it.
    """
    graph = _object_graph(checkpoint)
    view = tensorflow().train.TrackableView(model)
    children = _Children(view)
    best, most = Matched(), 0
    alone = _only_model(graph)
    # A compiled model has an optimizer, and so has the root of many files: its variables tell nothing of the place.
    weights = set(map(identity, model.weights))
    for attribute, start in [
        (None, 0),
        *((child.local_name, child.node_id) for child in graph.nodes[0].children if child.node_id < len(graph.nodes)),
    ]:
        found = _side_by_side(graph, attribute, start, children)
        # Where nothing of the model is shown, the one object that may be it is taken for it.
        matched = len(weights.intersection(found.keys))
        if matched > most or (matched == most == 0 and attribute == alone):
            best, most = found, matched
    best = _with_trained(checkpoint, graph, model, best)
    # One that has made no weights yet is refused when it is run, which makes them.
    if weights and not weights.intersection(best.keys):
        raise RepairRefused(f"{checkpoint.path}: none of its variables is where the model of --model has one")
    return best


def _only_model(graph: pb.TrackableObjectGraph) -> str | None:
    """Return under which attribute of the root the only object lies that is no optimizer and no variable.

    None where there is none, so that the root is the model; empty where there are several.
    """
    names = [
        child.local_name
        for child in graph.nodes[0].children
        if 0 <= child.node_id < len(graph.nodes)
        and not graph.nodes[child.node_id].attributes
        and not is_optimizer(graph.nodes[child.node_id])
    ]
    if len(names) > 1:
        return ""
    return names[0] if names else None


def _object_graph(checkpoint: Checkpoint) -> pb.TrackableObjectGraph:
    try:
        graph = pb.TrackableObjectGraph.FromString(checkpoint.descriptions.object_graph or b"")
    except DecodeError as error:
        raise RepairRefused(f"{checkpoint.path}: its object graph is damaged") from error
    if not graph.nodes:
        raise RepairRefused(
            f"{checkpoint.path}: has no object graph; for a TF1 checkpoint, pass its .meta with --model"
        )
    return graph


class _Children:
    """The named children of live objects, asked for once; what TensorFlow makes on the way is kept alive."""

    def __init__(self, view: Any) -> None:
        self.root = view.root
        self._view = view
        self._known: dict[int, dict[str, Any]] = {}
        self._kept: list[Any] = []

    def of(self, item: Any) -> dict[str, Any]:
        if id(item) not in self._known:
            self._kept.append(item)
            self._known[id(item)] = dict(self._view.children(item))
        return self._known[id(item)]

    def paths(self, attribute: str | None) -> dict[int, tuple[str, ...]]:
        """Return the shortest path to every object, breadth first as TensorFlow goes."""
        start: tuple[str, ...] = () if attribute is None else (attribute,)
        found = {id(self.root): start}
        queue = [self.root]
        for item in queue:
            for name, child in self.of(item).items():
                if id(child) not in found:
                    found[id(child)] = (*found[id(item)], name)
                    queue.append(child)
        return found


def _side_by_side(graph: pb.TrackableObjectGraph, attribute: str | None, start: int, children: _Children) -> Matched:
    nodes: dict[int, int] = {id(children.root): start}
    paths: dict[int, tuple[str, ...]] = {id(children.root): () if attribute is None else (attribute,)}
    keys: dict[int, str] = {}
    queue = [children.root]
    for item in queue:
        stored = {child.local_name: child.node_id for child in graph.nodes[nodes[id(item)]].children}
        for name, child in children.of(item).items():
            number = stored.get(name)
            if number is None or id(child) in nodes or not 0 <= number < len(graph.nodes):
                continue
            nodes[id(child)] = number
            paths[id(child)] = (*paths[id(item)], name)
            queue.append(child)
            attributes = graph.nodes[number].attributes
            if attributes and is_variable(child):
                keys[identity(child)] = attributes[0].checkpoint_key
    return Matched(attribute, keys, paths={**children.paths(attribute), **paths})


def _with_trained(checkpoint: Checkpoint, graph: pb.TrackableObjectGraph, model: Any, matched: Matched) -> Matched:
    """Return the match with the variables that only an optimizer leads to, by its list of those that it trains.

    TensorFlow restores them by their places in that list. It is believed only if it is as long as the model's own, all
    shapes are the same, and what the model leads to as well is the same variable there.
    """
    trained = [identity(variable) for variable in model.trainable_variables]
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    if all(one in matched.keys for one in trained):
        return matched
    fitting = []
    for keys in _lists_of_optimizers(graph):
        stored = [None if (variable := checkpoint.variable(key)) is None else variable.shape for key in keys]
        agree = all(matched.keys.get(one, key) == key for one, key in zip(trained, keys, strict=False))
        if stored == shapes and agree and keys not in fitting:
            fitting.append(keys)
    if len(fitting) != 1:
        return matched
    added = {one: key for one, key in zip(trained, fitting[0], strict=True) if one not in matched.keys}
    return Matched(matched.attribute, {**matched.keys, **added}, frozenset(added), matched.paths)


def _lists_of_optimizers(graph: pb.TrackableObjectGraph) -> Iterable[list[str]]:
    """Yield the keys of the variables that each optimizer trains, in its order."""
    for children in optimizers(graph):
        listed = members(graph, children.get(TRAINED))
        entries = graph.nodes[children[TRAINED]].children if listed else ()
        if listed and sorted(listed) == list(range(sum(entry.local_name.isdigit() for entry in entries))):
            yield [graph.nodes[listed[place]].attributes[0].checkpoint_key for place in sorted(listed)]


def _escaped(name: str) -> str:
    """Return a name as keys spell it (tensorflow/python/checkpoint/trackable_utils.py: `escape_local_name`)."""
    return name.replace(".", "..").replace("/", ".S")
