"""What the batch-norm layers of a live Keras model are called in the inventory of their file.

The config names most of them. It does not look into custom layers; what those hold is found where Keras itself would
store it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.graphs.keras_layers import BATCH_NORM_CLASSES

_MARKER = "ckpt_doctor"
_STATISTICS = ("moving_mean", "moving_variance")


def names_in(
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: Any, *, built: bool = False
) -> dict[int, str]:
    """Return `id` of a live batch-norm layer to its name in the inventory.

    Args:
        checkpoint: The file as Keras loaded it; its format says how Keras names what it stores.
        layers: The batch-norm layers of its inventory.
        model: The Keras model with the file's values.
        built: Whether the model does not come from the file. The names that Keras made up for its layers then count
            from another number, and a layer may bear the name of another one in the file: Keras loads by order.
    """
    if built:
        live = batch_norms(model)
        positional = checkpoint.layout.roles_by_position
        found = _by_group(model, live, layers) if positional else _by_order(checkpoint, model, live, layers)
        if found:
            return found
    known = {layer.name for layer in layers}
    found = {id(layer): name for name, layer in named(model).items() if name in known}
    others = [layer for layer in batch_norms(model) if id(layer) not in found]
    unclaimed = [layer for layer in layers if layer.name not in found.values()]
    if not others or not unclaimed:
        return found
    if checkpoint.layout.roles_by_position:
        return found | _by_group(model, others, unclaimed)
    return found | _by_path(others, unclaimed) | _by_order(checkpoint, model, others, unclaimed)


def batch_norms(model: Any) -> list[Any]:
    """Return the batch-norm layers of a model, those inside custom layers and of derived classes included."""
    return [layer for layer in model._flatten_layers() if is_batch_norm(type(layer))]


def is_batch_norm(kind: type) -> bool:
    """Return whether a class is Keras' batch normalisation, or derived from it."""
    return any(base.__name__ in BATCH_NORM_CLASSES for base in kind.__mro__)


def named(model: Any) -> dict[str, Any]:
    """Return the batch-norm layers of a model by the names that `graphs.keras_config` gives them."""
    found: list[tuple[tuple[str, ...], Any]] = []
    everything: list[str] = []

    def visit(layer: Any, path: tuple[str, ...]) -> None:
        inner = getattr(layer, "layers", None)
        if isinstance(inner, list) and type(layer).__name__ not in BATCH_NORM_CLASSES:
            for child in inner:
                visit(child, (*path, child.name))
            return
        everything.append(path[-1])
        if is_batch_norm(type(layer)):
            found.append((path, layer))
        for attribute in ("layer", "forward_layer", "backward_layer"):
            child = getattr(layer, attribute, None)
            if child is not None and hasattr(child, "name"):
                visit(child, (*path, child.name))

    for layer in model.layers:
        visit(layer, (layer.name,))
    return {path[-1] if everything.count(path[-1]) == 1 else "/".join(path): layer for path, layer in found}


def _by_group(model: Any, live: Sequence[Any], stored: Sequence[BatchNormLayer]) -> dict[int, str]:
    """Match layers by the group under which Keras stores them.

    Keras is asked to save the model with a number in the place of each layer's weights, and with nothing in the place
    of all others, so that this costs the same for every size of model.
    """
    import h5py

    numbers = {id(layer): number for number, layer in enumerate(live)}
    groups: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ckpt-doctor-") as folder, _marking(model, numbers):
        path = Path(folder) / "markers.weights.h5"
        model.save_weights(path)
        with h5py.File(path) as file:

            def visit(name: str, item: Any) -> None:
                scope, _, last = name.rpartition("/")
                if last == _MARKER and isinstance(item, h5py.Dataset):
                    groups[scope] = live[int(item[()])]

            file.visititems(visit)
    found = {}
    for layer in stored:
        scopes = {name.rpartition("/")[0] for name in (*layer.variables.values(), *layer.absent.values())}
        for scope in scopes & set(groups):
            found[id(groups[scope])] = layer.name
    return found


@contextmanager
def _marking(model: Any, numbers: Mapping[int, int]) -> Iterator[None]:
    """Let layers save their number instead of their weights; classes are left as they were found."""

    def save_own_variables(self: Any, store: Any) -> None:
        if id(self) in numbers:
            store[_MARKER] = np.array(numbers[id(self)])

    kinds = {base for layer in (model, *model._flatten_layers()) for base in type(layer).__mro__}
    originals = {kind: kind.__dict__["save_own_variables"] for kind in kinds if "save_own_variables" in kind.__dict__}
    try:
        for kind in originals:
            setattr(kind, "save_own_variables", save_own_variables)  # noqa: B010
        yield
    finally:
        for kind, original in originals.items():
            setattr(kind, "save_own_variables", original)  # noqa: B010


def _by_path(live: Sequence[Any], stored: Sequence[BatchNormLayer]) -> dict[int, str]:
    """Match layers by the path of their statistics, which legacy files hold as names."""
    found = {}
    for layer in stored:
        own = {role: name for role in _STATISTICS if (name := layer.variables.get(role) or layer.absent.get(role))}
        fitting = [
            other
            for other in live
            if own and all(_ends_with(name, _path(getattr(other, role))) for role, name in own.items())
        ]
        if len(fitting) == 1:
            found[id(fitting[0])] = layer.name
    return found


def _by_order(
    checkpoint: Checkpoint, model: Any, live: Sequence[Any], stored: Sequence[BatchNormLayer]
) -> dict[int, str]:
    """Match layers by the order of groups and weights, which is how Keras loads legacy files.

    Names that Keras makes up differ from one model of a process to the next; where the numbers of groups and weights
    do not agree, nothing is matched.
    """
    listed: Mapping[str, Sequence[str]] = checkpoint.attributes.get("weight_names", {})
    groups = [(name, weights) for name, weights in listed.items() if weights]
    # keras/src/legacy/saving/legacy_h5_format.py, `_legacy_weights`: trainable ones come first.
    layers = [[*layer.trainable_weights, *layer.non_trainable_weights] for layer in model.layers]
    layers = [weights for weights in layers if weights]
    if [len(weights) for _, weights in groups] != [len(weights) for weights in layers]:
        return {}
    root = checkpoint.attributes.get("root", "")
    names = {
        id(variable): "/".join(part for part in (root, group, weight) if part)
        for (group, weights), variables in zip(groups, layers, strict=True)
        for weight, variable in zip(weights, variables, strict=True)
    }
    owners = {name: layer.name for layer in stored for name in (*layer.variables.values(), *layer.absent.values())}
    found = {id(layer): owners.get(names.get(id(layer.moving_mean), "")) for layer in live}
    return {key: name for key, name in found.items() if name is not None}


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name).split(":")[0]


def _ends_with(name: str, path: str) -> bool:
    return f"/{name.split(':')[0]}".endswith(f"/{path}")
