"""Gamma and beta that TensorFlow saved by way of an optimizer only, and what an optimizer trained that is not there.

Keras 3 does not show TensorFlow the layers that a model holds in a list or a dict. Of such a layer a checkpoint keeps
what the optimizer lists, `optimizer/_trainable_variables/7` called `net/gamma`, and nothing that is not trained: no
statistics. The slots bear the whole path, `adam/net_bn0_gamma_momentum`, and tf_keras' `Adam/m/net/bn0/gamma`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ckpt_doctor.graphs.facts import Unshown
from ckpt_doctor.graphs.object_optimizers import TRAINED, is_optimizer, members, optimizers
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_COUNTER = "save_counter"
# keras/src/optimizers/base_optimizer.py names a slot `{optimizer}/{path with _ for /}_{kind of slot}`.
_SLOT_OF_KERAS_3 = re.compile(r"^[^/]+/(?P<layer>.+)_(?P<role>gamma|beta)_[a-z_]+$")
# tf_keras/src/optimizers: `{optimizer}/{kind of slot}/{variable}`, without the optimizer outside of `fit`.
_SLOT_OF_KERAS_2 = re.compile(
    r"^(?:[^/]+/)?(?:m|v|u|vhat|momentum|velocity|average_gradient|accumulator|accumulated_grad|accumulated_delta_var)/"
    r"(?P<layer>.+)/(?P<role>gamma|beta)$"
)


def unshown_layers(graph: pb.TrackableObjectGraph) -> list[Unshown]:
    """Return the pairs of gamma and beta that no object but an optimizer leads to, or whose slots alone are left."""
    lists = set(_lists(graph))
    shown = {
        child.node_id
        for number, node in enumerate(graph.nodes)
        if number not in lists
        for child in node.children
        if not (is_optimizer(node) and child.local_name.startswith("_")) and 0 <= child.node_id < len(graph.nodes)
    }
    found = [one for children in optimizers(graph) for one in _of_optimizer(graph, children, shown)]
    return list(dict.fromkeys(found))


def _of_optimizer(graph: pb.TrackableObjectGraph, children: Mapping[str, int], shown: set[int]) -> Iterator[Unshown]:
    trained = members(graph, children.get(TRAINED))
    spoken: dict[int, tuple[str, str]] = {}
    by_name: dict[tuple[str, str], None] = {}
    for name, number in children.items():
        if name in (TRAINED, "_variables"):
            continue
        for place, slot in members(graph, number).items():
            label = _label(graph, slot)
            said = _SLOT_OF_KERAS_3.match(label) or _SLOT_OF_KERAS_2.match(label)
            if said is not None:
                spoken.setdefault(place, (said["layer"], said["role"]))
                by_name.setdefault((said["layer"], said["role"]))
    alone = {place: number for place, number in trained.items() if number not in shown}
    for place, number in sorted(alone.items()):
        following = alone.get(place + 1)
        if _role(graph, number) != "gamma" or following is None or _role(graph, following) != "beta":
            continue
        own = _label(graph, number).rpartition("/")[0]
        yield Unshown(_key(graph, number), _key(graph, following), (own, spoken.get(place, (own, ""))[0]))
    # Where nothing lists what was trained, the slots alone tell; in a file of an optimizer alone nothing is gone.
    if not trained and any(graph.nodes[number].attributes for number in shown if _label(graph, number) != _COUNTER):
        there = {_spoken(_label(graph, number)) for number, other in enumerate(graph.nodes) if other.attributes}
        for layer in dict.fromkeys(layer for layer, _ in by_name):
            pair = [f"{layer}/{role}" for role in ("gamma", "beta") if (layer, role) in by_name]
            if len(pair) == 2 and not there.intersection(map(_spoken, pair)):
                yield Unshown(None, None, (layer,))


def _spoken(name: str) -> str:
    """Return a name as Keras 3 puts it into that of a slot."""
    return name.replace("/", "_")


def _lists(graph: pb.TrackableObjectGraph) -> Iterator[int]:
    """Yield the lists that optimizers hold."""
    for children in optimizers(graph):
        yield from (number for name, number in children.items() if name.startswith("_"))


def _label(graph: pb.TrackableObjectGraph, number: int) -> str:
    attributes = graph.nodes[number].attributes
    return attributes[0].full_name if attributes else ""


def _key(graph: pb.TrackableObjectGraph, number: int) -> str:
    return graph.nodes[number].attributes[0].checkpoint_key


def _role(graph: pb.TrackableObjectGraph, number: int) -> str:
    return _label(graph, number).rpartition("/")[2]
