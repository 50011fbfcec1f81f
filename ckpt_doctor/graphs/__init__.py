"""What models say about themselves: `.meta`, SavedModels, object graphs, Keras configs. Facts only, no TensorFlow."""

from __future__ import annotations

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.graphs.facts import ModelFacts


def describe(checkpoint: Checkpoint) -> ModelFacts | None:
    """Return what the strongest description that lies with the checkpoint says, or None where there is none."""
    descriptions = checkpoint.descriptions
    if descriptions.meta_graph is not None:
        from google.protobuf.message import DecodeError

        from ckpt_doctor.graphs.meta_graph import MetaGraph

        try:
            return MetaGraph.parse(descriptions.meta_graph).facts
        except DecodeError:
            where = descriptions.meta_graph_path or "the .meta"
            return ModelFacts("graph", problems=(f"{where} is damaged: it is no MetaGraphDef; its model was not read",))
    if descriptions.saved_model is not None:
        from google.protobuf.message import DecodeError

        from ckpt_doctor.graphs.saved_model import describe_saved_model

        labels = {variable.name: variable.label for variable in checkpoint.variables if variable.label}
        try:
            return describe_saved_model(descriptions.saved_model, descriptions.object_graph, labels)
        except DecodeError:
            problem = f"{checkpoint.path}: saved_model.pb is damaged: it is no SavedModel; its model was not read"
            return ModelFacts("graph", problems=(problem,))
    if descriptions.keras_config is not None:
        from ckpt_doctor.graphs.keras_config import describe_keras

        return describe_keras(checkpoint)
    if descriptions.object_graph is not None:
        from ckpt_doctor.graphs.object_graph import describe_objects

        return describe_objects(descriptions.object_graph)
    return None
