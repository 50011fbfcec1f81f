"""The layers of a model in a Keras config, and what each of their calls reads and is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# No model of Keras is nested deeper, and no tensor in an argument.
DEEPEST = 30


class Call(NamedTuple):
    """A call of a layer: the names of the layers that it reads, its other arguments, and those that only mask it."""

    sources: list[str]
    arguments: Mapping[str, Any]
    masks: tuple[str, ...] = ()


def layers_in(entry: object) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Return the names and the entries of the layers in a model, in order; None where the entry is no model.

    Entries without a config are left out.
    """
    config = entry.get("config") if isinstance(entry, dict) else None
    # The config of a Sequential of Keras 1 and early Keras 2 is its list of layers.
    layers = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(layers, list):
        return None
    found = []
    for layer in layers:
        inner = layer.get("config") if isinstance(layer, dict) else None
        if isinstance(inner, (dict, list)):
            own = inner.get("name") if isinstance(inner, dict) else None
            found.append((str(own or layer.get("name") or ""), layer))
    return found


def calls_of(layer: Mapping[str, Any]) -> list[Call]:
    """Return the calls of a layer, by its `inbound_nodes`.

    Keras 3 writes `{"args": [tensor, …], "kwargs": {…}}` for a call, with `{"config": {"keras_history": [layer, call,
    output]}}` for a tensor. Keras 1 and 2 write `[[layer, call, output, {…}], …]`.
    """
    inbound = layer.get("inbound_nodes")
    found = []
    for call in inbound if isinstance(inbound, list) else ():
        sources: list[str] = []
        arguments: dict[str, Any] = {}
        masks: tuple[str, ...] = ()
        if isinstance(call, dict):
            given = call.get("kwargs")
            arguments = given if isinstance(given, dict) else {}
            masks = tuple(_histories(arguments.get("mask")))
            read = {name: value for name, value in arguments.items() if name != "mask"}
            sources = _histories([call.get("args"), read])
        elif isinstance(call, list):
            for one in call if call and isinstance(call[0], list) else [call]:
                if isinstance(one, list) and one and isinstance(one[0], str):
                    sources.append(one[0])
                    if len(one) > 3 and isinstance(one[3], dict):
                        arguments = {**arguments, **one[3]}
        found.append(Call(sources, arguments, masks))
    return found


def input_shapes(layer: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the shapes of the tensors that Keras 3 calls a layer with, as its config has them."""
    inbound = layer.get("inbound_nodes")
    for call in inbound if isinstance(inbound, list) else ():
        if isinstance(call, dict):
            yield from (tensor.get("shape") for tensor in _tensors([call.get("args"), call.get("kwargs")], 0))


def _histories(value: object) -> list[str]:
    """Return the layers whose outputs an argument holds."""
    histories = (tensor.get("keras_history") for tensor in _tensors(value, 0))
    return [str(history[0]) for history in histories if isinstance(history, list) and history]


def _tensors(value: object, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of the tensors in an argument."""
    if depth > DEEPEST:
        return
    if isinstance(value, dict):
        config = value.get("config")
        if isinstance(config, dict) and "keras_history" in config:
            yield config
            return
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _tensors(one, depth + 1)
