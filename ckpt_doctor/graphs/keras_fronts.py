"""Which linear layer of a Keras model stands in front of which batch norm, by the connections in the config.

See `graphs.linear_in_front` for what such a layer tells, and when it tells nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_doctor.graphs.keras_calls import DEEPEST, Call, calls_of, layers_in
from ckpt_doctor.graphs.keras_layers import is_batch_norm

# Class to the axes of its last kernel that are the channels of its output, counted from the end: keras/src/layers of
# Keras 3 and tf_keras. Classes of Keras 1 are left out: the order of their axes depends on the backend.
_LINEAR: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Dense", "Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D"), (-1,)),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), (-2, -1)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), (-2,)),
}
# What keeps a constant that is added to a channel: averages of equal numbers, and repetition.
_KEEPS_CONSTANTS = frozenset(
    "AveragePooling1D AveragePooling2D AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
    "GlobalAveragePooling3D UpSampling1D UpSampling2D UpSampling3D Cropping1D Cropping2D".split()
)
_SUM = "Add"
_WRAPPER = "TimeDistributed"
_LONGEST = 20

Path = tuple[str, ...]


@dataclass(frozen=True)
class KerasFront:
    """A linear layer in front of a batch norm.

    Attributes:
        path: Names of the models and wrappers around it, outermost first, and its own last.
        has_bias: Whether it has a bias.
        axes: The axes of its kernel that are the channels of its output; empty where no gradient of it is to be used.
        l2: The factor of an L2 penalty on its kernel.
    """

    path: Path
    has_bias: bool
    axes: tuple[int, ...]
    l2: float = 0.0


@dataclass
class _Node:
    """A layer of one model.

    Attributes:
        class_name: Its class, inside a wrapper that applies it to each step of time.
        config: Its own config.
        path: See `KerasFront`.
        calls: Its calls.
        readers: The layers that read its outputs, one entry a call.
        rank: Number of dimensions of its input, the batch among them; 0 where the config does not say.
    """

    class_name: str
    config: Mapping[str, Any]
    path: Path
    calls: list[Call] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    rank: int = 0


def fronts(config: Mapping[str, Any]) -> dict[Path, KerasFront]:
    """Return the linear layer in front of each batch norm, by the path of the batch norm.

    Args:
        config: The model, `{"class_name": …, "config": …}`.
    """
    found: dict[Path, KerasFront] = {}
    for nodes, outputs in _models(config, (), 0):
        for node in nodes.values():
            if is_batch_norm(node.class_name, node.config) and len(node.calls) == 1:
                front = _front(node, nodes, outputs)
                if front is not None:
                    found[node.path] = front
    return found


def given_modes(config: Mapping[str, Any]) -> dict[Path, tuple[bool, ...]]:
    """Return what the calls of each layer give as `training`, by its path; nothing of layers whose calls give none.

    One entry for each mode that is given; a call that gives none has the mode of the model.
    """
    found: dict[Path, tuple[bool, ...]] = {}
    for nodes, _ in _models(config, (), 0):
        for node in nodes.values():
            modes = {call.arguments.get("training") for call in node.calls}
            known = tuple(sorted(bool(mode) for mode in modes if isinstance(mode, (bool, int))))
            if known:
                found[node.path] = known if len(modes) == 1 else (False, True)
    return found


def _front(batch_norm: _Node, nodes: Mapping[str, _Node], outputs: frozenset[str]) -> KerasFront | None:
    def normalised(name: str) -> bool:
        reader = nodes.get(name)
        return reader is not None and is_batch_norm(reader.class_name, reader.config)

    allowed: set[str] = set()
    between: list[str] = []
    current = batch_norm
    for _ in range(_LONGEST):
        sources = current.calls[0].sources
        if len(sources) != 1 and not (current.class_name == _SUM and sources):
            return None
        candidates = [nodes.get(name) for name in sources]
        here = next(
            (
                one
                for one in candidates
                if one is not None
                and len(one.calls) == 1
                and _name(one) not in outputs
                and all(reader in allowed or normalised(reader) for reader in one.readers)
                and (one.class_name in _LINEAR or len(candidates) == 1)
            ),
            None,
        )
        if here is None:
            return None
        if here.class_name in _LINEAR:
            plain = here.config.get("activation") in (None, "linear") and _is_on_channels(batch_norm, here, between)
            return _described(here) if plain else None
        between.append(here.class_name)
        if here.class_name not in _KEEPS_CONSTANTS and here.class_name != _SUM:
            return None
        allowed.add(_name(here))
        current = here
    return None


def _is_on_channels(batch_norm: _Node, linear: _Node, between: Sequence[str]) -> bool:
    """Return whether a batch norm normalises along the axis of the channels that a linear layer makes."""
    axis = batch_norm.config.get("axis", -1)
    axes = axis if isinstance(axis, list) else [axis]
    if len(axes) != 1 or not isinstance(axes[0], int):
        return False
    dimensions = re.search(r"(\d)D", linear.class_name)
    wrapped = ("_outer" in linear.config) - ("_outer" in batch_norm.config)
    if any(name.startswith("Global") for name in between):
        # Samples and channels are left, and steps of time where only the linear layer is inside a wrapper.
        rank, channels = 2 + wrapped, 1 + wrapped
    elif dimensions is None:
        # A dense layer of an input of any rank. What is built of two axes says 1 for the last.
        rank = batch_norm.rank or (2 if axes[0] == 1 else 0)
        return axes[0] == -1 or (rank > 0 and axes[0] == rank - 1)
    else:
        first = linear.config.get("data_format") == "channels_first"
        rank = int(dimensions[1]) + 2 + wrapped
        channels = 1 + wrapped if first else rank - 1
    return axes[0] in (channels, channels - rank)


def _name(node: _Node) -> str:
    """Return the name by which the connections of its model know a layer: that of the wrapper around it."""
    return str(node.config.get("_outer") or node.path[-1])


def _described(node: _Node) -> KerasFront | None:
    config = node.config
    if config.get("trainable") is False:
        return None
    penalty = config.get("kernel_regularizer") or config.get("depthwise_regularizer")
    l2: float | None = 0.0
    if penalty:
        inner = penalty.get("config") if isinstance(penalty, dict) else None
        inner = inner if isinstance(inner, dict) else {}
        known = not inner.get("l1") and isinstance(inner.get("l2"), (int, float))
        l2 = float(inner["l2"]) if known else None
    use_bias = config.get("use_bias", True)
    axes = _LINEAR[node.class_name] if l2 is not None else ()
    return KerasFront(node.path, bool(use_bias), axes, l2 or 0.0)


def _models(entry: Any, path: Path, depth: int) -> Iterator[tuple[dict[str, _Node], frozenset[str]]]:
    """Yield the layers of every model in a config, with the names of its output layers."""
    layers = layers_in(entry)
    if layers is None or depth > DEEPEST:
        return
    nodes: dict[str, _Node] = {}
    previous: str | None = None
    sequential = not any("inbound_nodes" in layer for _, layer in layers)
    for name, layer in layers:
        yield from _models(layer, (*path, name), depth + 1)
        node = _node(layer, (*path, name))
        nodes[name] = node
        if not sequential:
            node.calls = calls_of(layer)
        elif previous is not None:
            node.calls = [Call([previous], {})]
        previous = name
    for name, node in nodes.items():
        for call in node.calls:
            for source in (*call.sources, *call.masks):
                if source in nodes:
                    nodes[source].readers.append(name)
    config = entry["config"]
    yield nodes, frozenset(_names(config.get("output_layers") if isinstance(config, dict) else None))


def _node(layer: Mapping[str, Any], path: Path) -> _Node:
    class_name = str(layer.get("class_name", "")).rpartition(">")[2]
    config: Mapping[str, Any] = layer["config"] if isinstance(layer["config"], dict) else {}
    inner = config.get("layer")
    if class_name == _WRAPPER and isinstance(inner, dict) and isinstance(inner.get("config"), dict):
        own = dict(inner["config"])
        # The connections of the model know the wrapper.
        own["_outer"] = path[-1]
        return _Node(str(inner.get("class_name", "")).rpartition(">")[2], own, (*path, str(own.get("name", "layer"))))
    built = layer.get("build_config")
    shape = built.get("input_shape") if isinstance(built, dict) else None
    return _Node(class_name, config, path, rank=len(shape) if isinstance(shape, list) else 0)


def _names(outputs: Any, depth: int = 0) -> Sequence[str]:
    """Return the layers of `output_layers`: `[layer, call, output]`, or a list of such."""
    if not isinstance(outputs, (list, dict)) or depth > DEEPEST:
        return []
    if isinstance(outputs, dict):
        return [name for one in outputs.values() for name in _names(one, depth + 1)]
    if outputs and isinstance(outputs[0], str):
        return [outputs[0]]
    return [name for one in outputs for name in _names(one, depth + 1)]
