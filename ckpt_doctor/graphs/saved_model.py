"""A SavedModel's graph: what its signatures do, with their functions written out.

A SavedModel of TensorFlow 1 holds one graph, as a `.meta` does. One of TensorFlow 2 holds functions: the signature
calls them with the variables as arguments, and so does the saver, whose list of names leads from a variable to its key.
What no signature reaches (a second model, a function that only trains) is known by the object graph alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.exported import bound_keys, copied_variables, copies
from ckpt_doctor.graphs.facts import LayerFacts, ModelFacts
from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph, split_tensor, tensor_name
from ckpt_doctor.graphs.layers import place_of
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.object_graph import describe_objects, full_names
from ckpt_doctor.graphs.replicas import averaged_variable
from ckpt_doctor.graphs.saver import extend_saver
from ckpt_doctor.graphs.specialise import resolve_tensor
from ckpt_doctor.graphs.updates import gradient_updates
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_SERVE = b"serve"
_DEFAULT = "serving_default"
# tensorflow/python/saved_model/constants.py: `INIT_OP_SIGNATURE_KEY`; `MAIN_OP_KEY`, `LEGACY_INIT_OP_KEY`.
_INIT_OP = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
# SaveV2's inputs are prefix, names, slices, then one tensor for each name.
_FIRST_TENSOR = 3
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")


@dataclass(frozen=True)
class Signature:
    """One way in and out of a SavedModel.

    Attributes:
        nodes: Names of the nodes that it needs.
        inputs: Tensor to the name that callers give it.
        outputs: Name that callers know to its tensor.
        name: Its name, empty where there is none.
    """

    nodes: frozenset[str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    name: str = ""


class ServedGraph(MetaGraph):
    """The meta graph of a SavedModel that serves.

    Attributes:
        object_graph: The object graph that lies with its variables, or None.
    """

    def __init__(self, proto: pb.MetaGraphDef, object_graph: bytes | None = None) -> None:
        super().__init__(proto, serves=True)
        self.object_graph = object_graph

    @classmethod
    def parse(cls, data: bytes, object_graph: bytes | None = None) -> ServedGraph:
        """Return the meta graph tagged `serve` in a serialised `SavedModel`, else its first.

        Args:
            data: The bytes of `saved_model.pb`.
            object_graph: The object graph that lies with its variables, or None.

        Raises:
            google.protobuf.message.DecodeError: The bytes are no `SavedModel`.
        """
        graphs = pb.SavedModel.FromString(data).meta_graphs
        return cls(graphs[_chosen(graphs)] if graphs else pb.MetaGraphDef(), object_graph)

    @cached_property
    def signature(self) -> Signature:
        """What the default signature needs, else the first one that gives anything.

        A SavedModel may hold several signatures over the same layers; one is enough to run them.
        """
        found = [key for key in sorted(self.proto.signature_def) if not key.startswith("__saved_model")]
        chosen = next((key for key in (_DEFAULT, *found) if key in self.proto.signature_def), None)
        if chosen is None:
            return Signature(frozenset(), {}, {})
        definition = self.proto.signature_def[chosen]
        outputs = {name: self._inner(info.name) for name, info in definition.outputs.items()}
        nodes = self.inference.ancestors(split_tensor(tensor)[0] for tensor in outputs.values())
        inputs = {tensor_name(info.name): name for name, info in definition.inputs.items()}
        return Signature(frozenset(nodes), inputs, outputs, chosen)

    def _inner(self, tensor: str) -> str:
        """Return the name that a tensor of the stored graph has in `inference`."""
        return resolve_tensor(self.graph, self.switches, self._written.get(tensor_name(tensor), tensor))

    @cached_property
    def keys(self) -> Mapping[str, tuple[str, ...]]:
        """Variable node to its keys in the file: that which `tf.saved_model.load` reads, then those of its saver.

        The saver of a model on several devices may write copies that are made for it (Keras 3, `MirroredStrategy`);
        what they are initialised to is the variable that the signature reads. The `export` of Keras 3 writes such a
        copy beside the variable (see `graphs.exported`).
        """
        found: dict[str, list[str]] = {}
        for node in self.graph.of_op(("SaveV2",)):
            inputs = self.graph.inputs(node)
            names = self.graph.constant(inputs[1]) if len(inputs) > 1 else None
            if names is None or names.dtype != object or names.size != len(inputs) - _FIRST_TENSOR:
                continue
            for name, tensor in zip(names.reshape(-1).tolist(), inputs[_FIRST_TENSOR:], strict=True):
                variable = self.graph.variable(tensor) or averaged_variable(self.graph, tensor)
                if variable is not None:
                    found.setdefault(variable, []).append(name.decode("utf-8", "replace"))
        for copy in list(found):
            for node in self.graph.assignments.get(copy, ()):
                original = self.graph.variable(self.graph.inputs(node)[1])
                if original is not None and original != copy:
                    found.setdefault(original, found[copy])
        for copy, original in copied_variables(self.proto).items():
            if copy in found and original in found:
                found[original] = [*found[copy], *found[original]]
        for captured, key in bound_keys(self.proto, self.object_graph).items():
            found[captured] = [key, *found.get(captured, [])]
        return {variable: tuple(dict.fromkeys(names)) for variable, names in found.items()}

    @cached_property
    def saved_names(self) -> dict[str, str]:
        """Variable node to its key in the file, where the saver writes it, else its own name."""
        own = {node.name: node.name for node in self.graph.of_op(VARIABLE_OPS)}
        return own | {node: names[0] for node, names in self.keys.items()}

    @cached_property
    def copies(self) -> dict[str, str]:
        """Key of every further copy of a variable, to the key of the variable."""
        return copies(self.keys) if self.proto.object_graph_def.nodes else {}


def _chosen(graphs: Sequence[pb.MetaGraphDef]) -> int:
    """Return the place of the meta graph that is looked at."""
    return next((number for number, graph in enumerate(graphs) if _SERVE in graph.meta_info_def.tags), 0)


def extend_saved_model(data: bytes, additions: Mapping[str, str]) -> bytes:
    """Return a SavedModel whose restore op loads further variables.

    All its meta graphs share the variables: those with a saver and the nodes are extended, that which serves must be.

    Args:
        data: The bytes of `saved_model.pb`.
        additions: Name in the file to the name of the variable's node.

    Raises:
        RepairRefused: There is no saver to extend, or a variable is not in the graph.
    """
    result = pb.SavedModel.FromString(data)
    serving = _chosen(result.meta_graphs)
    for number, meta in enumerate(result.meta_graphs):
        if number == serving:
            _refuse_initialised(meta, additions)
            meta.CopyFrom(extend_saver(meta, additions))
            continue
        with suppress(RepairRefused):
            meta.CopyFrom(extend_saver(meta, additions))
    return bytes(result.SerializeToString(deterministic=True))


def _refuse_initialised(meta: pb.MetaGraphDef, additions: Mapping[str, str]) -> None:
    """Refuse variables that a loader sets once more after it has restored them.

    Source: tensorflow/python/saved_model/loader_impl.py, `SavedModelLoader.load`: restore, then the init op.
    """
    graph = Graph(meta.graph_def)
    signature = meta.signature_def[_INIT_OP].outputs if _INIT_OP in meta.signature_def else {}
    names = [info.name for info in signature.values()]
    names += [
        name
        for key in _INIT_COLLECTIONS
        if key in meta.collection_def
        for name in meta.collection_def[key].node_list.value
    ]
    run = graph.ancestors(split_tensor(name)[0] for name in names)
    for name, variable in additions.items():
        for node in graph.assignments.get(variable, ()):
            if node.name in run:
                raise RepairRefused(
                    f"{name}: the SavedModel sets it to its initial value whenever it is loaded (by {node.name}, which "
                    "its init op runs), so a stored value would not count; save the model again with its statistics"
                )


def describe_saved_model(served: ServedGraph, object_graph: bytes | None) -> ModelFacts:
    """Return what a SavedModel says about batch norm.

    Args:
        served: Its graph.
        object_graph: The object graph that lies with its variables, or None.
    """
    labels = full_names(object_graph) if object_graph is not None else {}
    objects = describe_objects(object_graph) if object_graph is not None else None
    if not served.serves:
        # Nothing says what of the graph is used; a graph of TensorFlow 1 may still be read as it is.
        if objects is not None and objects.layers:
            return replace(objects, copies=served.copies)
        return replace(served.facts, names=None, copies=served.copies)
    facts = served.facts
    names = _names(
        [_label(layer, labels) for layer in facts.layers],
        [_place(layer) for layer in facts.layers],
        [layer.name for layer in facts.layers],
    )
    layers = [replace(layer, name=name) for layer, name in zip(facts.layers, names, strict=True)]
    layers = _with_training(served, layers)
    known = {name for layer in layers for name in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)}
    if objects is not None:
        layers += [
            replace(layer, evidence="object-graph")
            for layer in objects.layers
            if not {layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta} & (known - {None})
        ]
    slots = {} if objects is None else objects.slots
    return replace(facts, layers=tuple(layers), saved=None, slots=slots, copies=served.copies)


def _with_training(served: ServedGraph, layers: list[LayerFacts]) -> list[LayerFacts]:
    """Return the layers; of those whose statistics the saver omits, the graph says whether it trains them on these.

    A model that was saved from its training graph, by a saver of its trainable variables, holds the train op.
    """
    saved = () if served.saver is None else served.saver.saved
    lost = [layer for layer in layers if served.saver is not None and not _statistics(layer) <= set(saved)]
    if not lost or not gradient_updates(served.graph):
        return layers
    told = [layer for layer in MetaGraph(served.proto).facts.layers if layer.trained is False]
    stored = {name for layer in told for name in (*_statistics(layer), layer.gamma, layer.beta) if name}
    frozen = {id(layer) for layer in lost if {*_statistics(layer), layer.gamma, layer.beta} & stored}
    return [replace(layer, trained=False) if id(layer) in frozen else layer for layer in layers]


def _statistics(layer: LayerFacts) -> set[str]:
    return {name for name in (layer.moving_mean, layer.moving_variance) if name}


def _label(layer: LayerFacts, labels: Mapping[str, str]) -> str:
    anchor = layer.moving_mean or layer.moving_variance or layer.gamma or layer.beta
    return labels.get(anchor or "", "").rpartition("/")[0]


def _place(layer: LayerFacts) -> str:
    """Return the scope in which a layer computes, without those of calls and of its own arithmetic."""
    return _CALLS.sub("", place_of(layer.sites[0].y)) if layer.sites else ""


def _names(wished: list[str], places: list[str], own: list[str]) -> list[str]:
    """Return a name for each layer, the first that no other has: its variables' for people, where it computes, its own.

    Several layers may have one name: `bn` of two models in a model, all layers of a subclassed model in Keras 3.
    """
    counts, there = Counter(wished), Counter(places)
    return [
        wish if wish and counts[wish] == 1 else place if place and there[place] == 1 else name
        for wish, place, name in zip(wished, places, own, strict=True)
    ]
