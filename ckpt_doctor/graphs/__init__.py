"""What models say about themselves: `.meta`, SavedModels, object graphs, Keras configs. Facts only, no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckpt_doctor.checkpoint import Checkpoint, Damage, ModelDescriptions
from ckpt_doctor.graphs.facts import ModelFacts

if TYPE_CHECKING:
    from ckpt_doctor.graphs.meta_graph import MetaGraph


# A SavedModel's graph as text, and in chunks (tensorflow/tools/proto_splitter).
_UNREAD = (".pbtxt", ".cpb")


@dataclass(frozen=True, eq=False)
class Description:
    """A model's description, read once.

    Attributes:
        facts: What it says about batch norm.
        graph: The graph of a `.meta` or a SavedModel, taken apart; None where the description is another.
        damages: What is damaged of it, and can be told.
    """

    facts: ModelFacts
    graph: MetaGraph | None = None
    damages: tuple[Damage, ...] = ()


def describe(checkpoint: Checkpoint) -> ModelFacts | None:
    """Return what the strongest description that lies with the checkpoint says, or None where there is none."""
    found = read_description(checkpoint)
    return None if found is None else found.facts


def read_description(checkpoint: Checkpoint) -> Description | None:
    """Return the strongest description that lies with the checkpoint, or None where there is none; read once."""
    if "_description" not in checkpoint.__dict__:
        # A frozen object may remember what follows from it.
        object.__setattr__(checkpoint, "_description", _read_description(checkpoint))
    found: Description | None = checkpoint.__dict__["_description"]
    return found


def _read_description(checkpoint: Checkpoint) -> Description | None:
    found, unread = _strongest(checkpoint), checkpoint.descriptions.unread
    if unread is None:
        return found
    facts = ModelFacts("names") if found is None else found.facts
    where = next((file for file in checkpoint.files if file.endswith(_UNREAD)), checkpoint.path)
    reason = (
        f"its graph was not read: {unread}; it is unknown whether training ran the updates, and in which mode the "
        "graph serves"
    )
    facts = replace(facts, not_judged=(*facts.not_judged, (where, reason)))
    return Description(facts, None if found is None else found.graph)


def _strongest(checkpoint: Checkpoint) -> Description | None:
    descriptions = checkpoint.descriptions
    if descriptions.meta_graph is not None or descriptions.saved_model is not None:
        return _read_graph(checkpoint)
    if isinstance(descriptions.live, ModelFacts):
        from ckpt_doctor.graphs.live_layers import with_live_layers

        return Description(with_live_layers(_of_file(checkpoint), descriptions.live))
    facts = _of_file(checkpoint)
    return None if facts is None else Description(facts)


def _of_file(checkpoint: Checkpoint) -> ModelFacts | None:
    """Return what a config or an object graph in the file says."""
    descriptions = checkpoint.descriptions
    if descriptions.keras_config is not None:
        from ckpt_doctor.graphs.keras_config import describe_keras

        return describe_keras(checkpoint)
    if descriptions.object_graph is not None:
        from ckpt_doctor.graphs.object_graph import describe_objects

        return describe_objects(descriptions.object_graph)
    return None


def _is_text_mode_copy(data: bytes) -> bool:
    """Return whether these bytes are a `MetaGraphDef` of which a copy in text mode made CR LF of every LF."""
    from google.protobuf.message import DecodeError

    from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

    lines = data.count(b"\n")
    if lines == 0 or lines != data.count(b"\r\n"):
        return False
    try:
        pb.MetaGraphDef.FromString(data.replace(b"\r\n", b"\n"))
    except DecodeError:
        return False
    return True


def _read_graph(checkpoint: Checkpoint) -> Description:
    from google.protobuf.message import DecodeError

    from ckpt_doctor.graphs.graph import TooMuchWork
    from ckpt_doctor.graphs.saved_model import ServedGraph, describe_saved_model

    descriptions = checkpoint.descriptions
    try:
        graph = graph_of(descriptions)
    except DecodeError:
        where = f"{checkpoint.path}: saved_model.pb is damaged: it is not a SavedModel"
        if descriptions.meta_graph is not None:
            where = f"{descriptions.meta_graph_path or 'the .meta'} is damaged: it is not a MetaGraphDef"
            if _is_text_mode_copy(descriptions.meta_graph):
                damage = Damage(
                    "not-a-checkpoint",
                    descriptions.meta_graph_path or checkpoint.path,
                    "a MetaGraphDef whose line ends a copy in text mode has changed: CR LF for every LF; copy it again "
                    "in binary mode. Its model was not read",
                )
                return Description(ModelFacts("graph"), damages=(damage,))
        return Description(ModelFacts("graph", problems=(f"{where}; its model was not read",)))
    except TooMuchWork as error:
        return _given_up(descriptions, error)
    assert graph is not None
    try:
        if not isinstance(graph, ServedGraph):
            return Description(graph.facts, graph)
        return Description(describe_saved_model(graph, descriptions.object_graph), graph)
    except TooMuchWork as error:
        return _given_up(descriptions, error)


def _given_up(descriptions: ModelDescriptions, error: Exception) -> Description:
    """Return that a graph was not read, and why; the variables are judged by their names."""
    where = "saved_model.pb" if descriptions.meta_graph is None else descriptions.meta_graph_path or "the .meta"
    return Description(ModelFacts("graph", problems=(f"the graph of {where} was not read: {error}",)))


def graph_of(descriptions: ModelDescriptions) -> MetaGraph | None:
    """Return the graph of a `.meta` or a SavedModel, or None where there is neither; it is parsed once.

    Raises:
        google.protobuf.message.DecodeError: It is damaged.
        TooMuchWork: To follow it would take more steps than any graph of TensorFlow.
    """
    known: MetaGraph | None = descriptions.__dict__.get("_graph")
    if known is None:
        if descriptions.meta_graph is not None:
            from ckpt_doctor.graphs.meta_graph import MetaGraph

            known = MetaGraph.parse(descriptions.meta_graph)
        elif descriptions.saved_model is not None:
            from ckpt_doctor.graphs.saved_model import ServedGraph

            known = ServedGraph.parse(descriptions.saved_model, descriptions.object_graph)
        object.__setattr__(descriptions, "_graph", known)
    return known
