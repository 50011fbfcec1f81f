"""Whose slot is which, by the object graph of a TensorFlow 2 checkpoint.

Optimizers of Keras 3 list the variables that they train, and each kind of slot in the same order; those of tf_keras
name a slot after its variable (`Adam/m/dense/kernel`). Older ones say it in the graph itself (`.OPTIMIZER_SLOT`), which
needs no help from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from ckpt_doctor.graphs.facts import OptimizerSlots
from ckpt_doctor.graphs.object_optimizers import TRAINED, members, optimizers
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Attributes under which optimizers keep their lists (keras/src/optimizers, tf_keras/src/optimizers).
_FIRST = ("_momentums", "momentums", "_m")
_SECOND = ("_velocities", "_v", "_accumulated_grads")
_ROOT = ("_u",)
_RAISED = ("_accumulators",)
_OF_RMSPROP = "_average_gradients"


def object_slots(graph: pb.TrackableObjectGraph) -> dict[str, OptimizerSlots]:
    """Return the slots of every variable that an optimizer of the graph trains, by their keys in the file."""
    found: dict[str, OptimizerSlots] = {}
    by_full_name = _by_full_name(graph)
    for children in optimizers(graph):
        if not {*_FIRST, *_SECOND, *_RAISED} & set(children):
            continue
        first, second, root, raised = (
            next((_members(graph, children[name]) for name in names if name in children), {})
            for names in (_FIRST, _SECOND, _ROOT, _RAISED)
        )
        if _OF_RMSPROP in children:  # Its momentum is of steps that were divided by the root already.
            first = {}
        owners = _members(graph, children.get(TRAINED))
        for place in {*first, *second, *root, *raised}:
            kept = [slots[place] for slots in (first, second, root, raised) if place in slots]
            named = owners.get(place) or next(filter(None, map(by_full_name.get, _owners(kept[0].full_name))), None)
            if named is None:
                continue
            found[named.checkpoint_key] = OptimizerSlots(
                first=first[place].checkpoint_key if place in first else None,
                second=next((slots[place].checkpoint_key for slots in (second, root, raised) if place in slots), None),
                is_root=place in root and place not in second,
                starts_above_zero=place in raised and place not in second,
            )
    return found


_Tensor = pb.TrackableObjectGraph.SerializedTensor


def _members(graph: pb.TrackableObjectGraph, number: int | None) -> Mapping[int, _Tensor]:
    """Return the variables of a list, by their places in it."""
    return {place: graph.nodes[node].attributes[0] for place, node in members(graph, number).items()}


def _by_full_name(graph: pb.TrackableObjectGraph) -> dict[str, _Tensor]:
    """Return the variables by their names for people, where a name is one variable's only."""
    tensors = [node.attributes[0] for node in graph.nodes if node.attributes]
    counts = Counter(tensor.full_name for tensor in tensors)
    return {tensor.full_name: tensor for tensor in tensors if counts[tensor.full_name] == 1}


def _owners(slot: str) -> Iterator[str]:
    """Yield the variables that a slot of tf_keras may be named after: `dense/kernel` of `Adam/m/dense/kernel`.

    Outside of `fit`, the scope of the optimizer is left out.
    """
    for scopes in (2, 1):
        yield slot.split("/", scopes)[-1]
