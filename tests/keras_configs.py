"""Configs of Keras models by hand, and what decides how the batch norm in them runs."""

from __future__ import annotations

import json

from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions
from ckpt_doctor.graphs.keras_config import describe_keras


def deciders(config):
    """Return what decides for each batch norm of a Keras config."""
    said = ModelDescriptions(keras_config=json.dumps(config))
    facts = describe_keras(Checkpoint("x.keras", "keras-v3", (), (), 0, descriptions=said))
    return {layer.name: layer.decided_by for layer in facts.layers}


def entry(class_name, name, *layers, **config):
    inner = {"layers": list(layers)} if layers else {}
    return {"class_name": class_name, "config": {"name": name, **inner, **config}}
