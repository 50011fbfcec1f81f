"""The layers in a Keras model's config, nested and wrapped ones included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

BATCH_NORM_CLASSES = frozenset(
    "BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization TPUBatchNormalization".split()
)
# Attributes under which wrappers keep the layers they wrap (keras/src/layers/rnn/bidirectional.py and wrapper.py).
WRAPPED = ("layer", "forward_layer", "backward_layer", "cell")
# What Keras itself puts around layers, and runs in the mode in which it is run.
_KERAS_CONTAINERS = frozenset("Functional Model Sequential TimeDistributed Bidirectional".split())
# A class of the user's own, derived from Keras' layer.
_DERIVED = re.compile(r"Batch_?Norm")
_DEEPEST = 30


@dataclass(frozen=True)
class Found:
    """One layer of the config.

    Attributes:
        class_name: Its class.
        config: Its own config.
        path: Names of the models and wrappers around it, outermost first, and its own name last.
        group: Its group in a Keras 3 weights file.
        trainable: Whether it and everything around it is trainable.
        inside: What of no class of Keras may run it in a mode of its own: the path of the outermost model or wrapper
            around it, or its own class with all options; empty where there is none.
        own_class: Whether its class is one of the user's own, of whose inside the config says nothing.
    """

    class_name: str
    config: Mapping[str, Any]
    path: tuple[str, ...]
    group: str
    trainable: bool
    inside: str = ""
    own_class: bool = False


class NotUnderstood(Exception):
    """A config is not what Keras writes."""


def parsed(text: str) -> Mapping[str, Any]:
    """Return the config of a model, a JSON object."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(f"{type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise NotUnderstood(f"a JSON object is expected, not {type(config).__name__}")
    return config


def is_batch_norm(class_name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a layer is batch norm: of a class of Keras, or of one that is derived from it.

    A derived class is called so, or its config has what only that of batch norm has.
    """
    name = class_name.rpartition(">")[2]
    if name in BATCH_NORM_CLASSES or "moving_variance_initializer" in config:
        return True
    return _DERIVED.search(name) is not None and "momentum" in config


def _kind_of_batch_norm(class_name: str, config: Mapping[str, Any]) -> str:
    """Return the class of a batch norm with its options, which run the same code under any name; else nothing."""
    options = {key: config[key] for key in sorted(config) if key != "name"}
    return f"{class_name} {json.dumps(options, default=str)}" if is_batch_norm(class_name, config) else ""


def _snake_case(class_name: str) -> str:
    """Return the group name that Keras 3 makes of a class (keras/src/utils/naming.py: `to_snake_case`)."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def layers_of(
    entry: Mapping[str, Any],
    path: tuple[str, ...],
    group: str,
    trainable: bool,
    depth: int,
    inside: str = "",
    listed_twice: Set[str] = frozenset(),
) -> Iterator[Found]:
    """Yield the layers inside a model, or the layer itself and what it wraps.

    Args:
        entry: The model or layer.
        path: Names of the models and wrappers around it, and its own.
        group: Its group in a Keras 3 weights file.
        trainable: Whether everything around it is trainable.
        depth: How many are around it.
        inside: See `Found`.
        listed_twice: Groups of layers that the writer counted twice when it numbered groups.
    """
    if depth > _DEEPEST:
        raise NotUnderstood(f"models are nested more than {_DEEPEST} deep")
    config = entry.get("config") or {}
    if isinstance(config, list):  # Keras 1 and early 2: a Sequential's config is its list of layers.
        config = {"layers": config}
    if not isinstance(config, dict):
        raise NotUnderstood(f"the config of {'/'.join(path) or 'the model'} is a {type(config).__name__}")
    trainable = trainable and bool(config.get("trainable", True))
    class_name = str(entry.get("class_name", ""))
    # A functional model of the user's own class has steps of training of its own; its layers run in one call.
    own_code = class_name.rpartition(">")[2] not in _KERAS_CONTAINERS and not {"input_layers", "output_layers"} <= {
        *config
    }
    inner = config.get("layers")
    if isinstance(inner, list):
        used: dict[str, int] = {}
        for layer in inner:
            if not isinstance(layer, dict):
                raise NotUnderstood(f"{'/'.join(path) or 'the model'} has a layer that is a {type(layer).__name__}")
            snake = _snake_case(str(layer.get("class_name", "")))
            number = used.get(snake, 0)
            name = str(
                (layer["config"].get("name") if isinstance(layer.get("config"), dict) else None)
                or layer.get("name")
                or snake
            )
            child = f"{group}/layers/{snake}{f'_{number}' if number else ''}".lstrip("/")
            # Every batch norm has weights, and a file that lacks those of one was numbered before it did.
            weighty = child in listed_twice or (
                bool(listed_twice) and is_batch_norm(str(layer.get("class_name", "")), {})
            )
            used[snake] = number + (2 if weighty else 1)
            # What a class of the user's own calls its layers with, each in its own way, no file says.
            within = inside or ("/".join((*path, name)) if own_code else "")
            yield from layers_of(layer, (*path, name), child, trainable, depth + 1, within, listed_twice)
        return
    if own_code and (class_name.rpartition(">")[2] not in BATCH_NORM_CLASSES):
        inside = inside or _kind_of_batch_norm(class_name, config) or "/".join(path)
    # Keras writes the registered name of classes that are not its own, from 2.12 on; before, the package in their name.
    # A model that lists no layers is of such a class, too.
    foreign = depth == 0 or bool(entry.get("registered_name")) or ">" in class_name
    yield Found(class_name, config, path or (str(config.get("name", class_name)),), group, trainable, inside, foreign)
    for attribute in WRAPPED:
        wrapped = config.get(attribute)
        if isinstance(wrapped, dict) and "class_name" in wrapped:
            inner_config = wrapped.get("config") or {}
            name = str(inner_config.get("name", attribute)) if isinstance(inner_config, dict) else attribute
            yield from layers_of(
                wrapped, (*path, name), f"{group}/{attribute}", trainable, depth + 1, inside, listed_twice
            )
