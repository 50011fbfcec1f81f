"""What the variables of a live Keras model are called in a file, those that the file lacks included.

Keras 3 stores a layer under the attributes that lead to it, legacy files are loaded by order, TensorFlow follows its
objects: each of the three tells for every class of model, the user's own included, which variable is whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import ROLES, STATISTICS, BatchNormLayer
from ckpt_doctor.capture.keras_names import batch_norms, identity, named
from ckpt_doctor.capture.keras_objects import match_objects
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.formats.temporary import TemporaryFolder

_MARKER = "ckpt_doctor"
# Seen with Keras 3.15.1: a `TrackedList` or `TrackedDict` is not a child of its layer in `tf.train.TrackableView`.
NOT_SHOWN = (
    "Keras 3 does not show TensorFlow the layers that a model holds in a list or a dict, so tf.train.Checkpoint keeps "
    "of them only what an optimizer trains; hold them in a tuple or in attributes, or keep weights with "
    "model.save_weights"
)
_NEVER_RESTORED = f"TensorFlow would not restore what is written for it: {NOT_SHOWN}"


@dataclass(frozen=True, eq=False)
class FileNames:
    """The names of a model's variables in a file.

    Attributes:
        names: `identity` of a variable to its name in the file; what the file lacks has the name that it would have.
        orders: Legacy files only: layer group to all names of its weights in Keras' order, those that it lacks
            included.
        by_optimizer: `identity` of the variables that only an optimizer's list in the file leads to.
        hidden: `identity` of the weights to which TensorFlow finds no way from the model.
        attribute: Objects only: under which attribute of the root the model lies; None where it is the root.
        unplaced: `id` of a batch-norm layer to the reason why its statistics have no place in the file.
    """

    names: Mapping[int, str]
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_optimizer: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    attribute: str | None = None
    unplaced: Mapping[int, str] = field(default_factory=dict)

    def of(self, variable: Any) -> str | None:
        """Return the name of a variable in the file, or None where nothing tells it."""
        return None if variable is None else self.names.get(identity(variable))


def file_names(checkpoint: Checkpoint, model: Any) -> FileNames:
    """Return what the variables of a model are called in a checkpoint.

    Args:
        checkpoint: Weights in a format of Keras, or a checkpoint of objects.
        model: The live model, with its weights made.

    Raises:
        RepairRefused: A checkpoint of objects holds nothing of the model.
    """
    if checkpoint.layout.restores_objects:
        return _of_objects(checkpoint, model)
    if checkpoint.layout.roles_by_position:
        names = {
            identity(variable): name
            for owner, scope in groups_of(model).items()
            for name, variable in numbered(scope, owner)
        }
        return FileNames(names)
    return _of_lists(checkpoint, model)


def _of_objects(checkpoint: Checkpoint, model: Any) -> FileNames:
    matched = match_objects(checkpoint, model)
    names = dict(matched.keys)
    unplaced: dict[int, str] = {}
    for layer in batch_norms(model):
        for role in STATISTICS:
            variable = getattr(layer, role, None)
            if variable is None or identity(variable) in names:
                continue
            key = matched.key_below(layer, role)
            names[identity(variable)] = key or _path(variable)
            if key is None:
                unplaced[id(layer)] = _NEVER_RESTORED
    return FileNames(
        names,
        by_optimizer=matched.by_optimizer,
        hidden=frozenset(identity(one) for one in model.weights if id(one) not in matched.paths),
        attribute=matched.attribute,
        unplaced=unplaced,
    )


def groups_of(model: Any) -> dict[Any, str]:
    """Return the group under which Keras 3 stores each layer of a model, the model itself among them.

    Keras is asked to save the model with a number in the place of each layer's weights, so that this costs the same for
    every size of model.
    """
    import h5py

    owners = [model, *(layer for layer in model._flatten_layers() if layer is not model)]
    numbers = {id(owner): number for number, owner in enumerate(owners)}
    groups: dict[Any, str] = {}
    with TemporaryFolder() as folder, _marking(owners, numbers):
        path = Path(folder) / "markers.weights.h5"
        model.save_weights(path)
        with h5py.File(path) as file:

            def visit(name: str, item: Any) -> None:
                scope, _, last = name.rpartition("/")
                if last == _MARKER and isinstance(item, h5py.Dataset):
                    groups[owners[int(item[()])]] = scope.removesuffix("vars").rstrip("/")

            file.visititems(visit)
    return groups


@contextmanager
def _marking(owners: Sequence[Any], numbers: Mapping[int, int]) -> Iterator[None]:
    """Let layers save their number instead of their weights; classes are left as they were found."""

    def save_own_variables(self: Any, store: Any) -> None:
        if id(self) in numbers:
            store[_MARKER] = np.array(numbers[id(self)])

    kinds = {base for layer in owners for base in type(layer).__mro__}
    originals = {kind: kind.__dict__["save_own_variables"] for kind in kinds if "save_own_variables" in kind.__dict__}
    try:
        for kind in originals:
            setattr(kind, "save_own_variables", save_own_variables)  # noqa: B010
        yield
    finally:
        for kind, original in originals.items():
            setattr(kind, "save_own_variables", original)  # noqa: B010


def numbered(scope: str, layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and variable of what a layer keeps in its own group, in the order of `save_own_variables`.

    Keras 3 and tf_keras alike (keras/src/layers/layer.py, tf_keras/src/engine/base_layer.py).
    """
    trainable = getattr(layer, "_trainable_variables", None)
    others = getattr(layer, "_non_trainable_variables", None)
    if trainable is None:
        trainable, others = layer._trainable_weights, layer._non_trainable_weights
    for number, variable in enumerate((*trainable, *(others or ()))):
        yield f"{scope}/vars/{number}".lstrip("/"), variable


def _of_lists(checkpoint: Checkpoint, model: Any) -> FileNames:
    """Match variables by the order of groups and weights, which is how Keras loads legacy files.

    Names that Keras makes up differ from one model of a process to the next; where the numbers of groups and weights do
    not agree, nothing is matched. Statistics may be missing.
    """
    listed: Mapping[str, Sequence[str]] = checkpoint.attributes.get("weight_names", {})
    layers_listed = checkpoint.attributes.get("layer_names", ())
    groups = [(name, weights) for name, weights in listed.items() if name in layers_listed]
    # keras/src/legacy/saving/legacy_h5_format.py, `_legacy_weights`: trainable ones come first.
    layers = [[*layer.trainable_weights, *layer.non_trainable_weights] for layer in model.layers]
    if len(groups) != len(layers):
        groups = [(name, weights) for name, weights in groups if weights]
        layers = [weights for weights in layers if weights]
    if len(groups) != len(layers):
        return FileNames({})
    root = checkpoint.attributes.get("root", "")
    statistics = {
        identity(variable): role
        for layer in batch_norms(model)
        for role in STATISTICS
        if (variable := getattr(layer, role, None)) is not None
    }
    names: dict[int, str] = {}
    orders: dict[str, tuple[str, ...]] = {}
    for (group, weights), variables in zip(groups, layers, strict=True):
        before = "/".join(part for part in (root, group) if part)
        shapes = {
            weight: None if (held := checkpoint.variable(f"{before}/{weight}")) is None else held.shape
            for weight in weights
        }
        order = _in_order(weights, shapes, variables, statistics)
        if order is None:
            return FileNames({})
        orders[group] = tuple(order)
        names |= {identity(one): f"{before}/{weight}" for weight, one in zip(order, variables, strict=True)}
    return FileNames(names, orders)


def _in_order(
    weights: Sequence[str],
    shapes: Mapping[str, tuple[int, ...] | None],
    variables: Sequence[Any],
    statistics: Mapping[int, str],
) -> list[str] | None:
    """Return the names of all variables of a group in their order, those of missing statistics made; None: unclear.

    Args:
        weights: The names that the group lists.
        shapes: Their shapes; None for one that is listed and not there.
        variables: Those of the live layer, in Keras' order.
        statistics: `identity` of the live statistics to their role.
    """
    if len(weights) == len(variables):
        # In a layer of layers, weights are listed in another order while one of them is frozen.
        fits = all(
            shapes[name] in (None, tuple(one.shape)) and (_last(name) in STATISTICS) <= (identity(one) in statistics)
            for name, one in zip(weights, variables, strict=True)
        )
        return list(weights) if fits else None
    lasting = [one for one in variables if identity(one) not in statistics]
    kept = [name for name in weights if _last(name) not in STATISTICS]
    if len(lasting) != len(kept) or any(
        shapes[name] not in (None, tuple(one.shape)) for name, one in zip(kept, lasting, strict=True)
    ):
        return None
    # Keras numbers scopes in each process from 0; the variables that the file has tell which scope is the layer's.
    scopes: dict[str, set[str]] = {}
    for name, one in zip(kept, lasting, strict=True):
        scopes.setdefault(_path(one).rpartition("/")[0], set()).add(name.rpartition("/")[0])
    suffix = ":0" if any(name.endswith(":0") for name in weights) else ""
    found, order = dict(zip(map(identity, lasting), kept, strict=True)), []
    for one in variables:
        role = statistics.get(identity(one))
        if role is None:
            order.append(found[identity(one)])
            continue
        own = scopes.get(_path(one).rpartition("/")[0], set())
        if len(own) != 1:
            # Without gamma and beta, only the model tells that the layer is there.
            if own or len(kept) != len(weights):
                return None
            own = {_path(one).rpartition("/")[0]}
        order.append(f"{next(iter(own))}/{role}{suffix}".lstrip("/"))
    missing = [name for name in order if name not in weights]
    complete = len(set(order)) == len(order) and len(missing) == len(order) - len(weights)
    return order if complete else None


def _last(weight: str) -> str:
    return weight.partition(":")[0].rpartition("/")[2]


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name).split(":")[0]


def names_in(
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: Any, *, built: bool = False
) -> dict[int, str]:
    """Return `id` of a live batch-norm layer to its name in the inventory.

    Args:
        checkpoint: The file as Keras loaded it; its format says how Keras names what it stores.
        layers: The batch-norm layers of its inventory.
        model: The Keras model with the file's values.
        built: Whether the model does not come from the file. Keras then numbers its layers from another number, and a
            layer may bear the name of another one in the file: Keras loads by order.
    """
    live = batch_norms(model)
    if built:
        found = layer_names(file_names(checkpoint, model), live, owners_of(layers))
        if found:
            return found
    known = {layer.name for layer in layers}
    found = {id(layer): name for name, layer in named(model).items() if name in known}
    others = [layer for layer in live if id(layer) not in found]
    unclaimed = [layer for layer in layers if layer.name not in found.values()]
    if not others or not unclaimed:
        return found
    if not checkpoint.layout.roles_by_position:
        found |= _by_path(others, unclaimed)
    return found | layer_names(file_names(checkpoint, model), others, owners_of(unclaimed))


def _by_path(live: Sequence[Any], stored: Sequence[BatchNormLayer]) -> dict[int, str]:
    """Match layers by the path of their statistics, which legacy files hold as names."""
    found = {}
    for layer in stored:
        own = {role: name for role in STATISTICS if (name := layer.variables.get(role) or layer.absent.get(role))}
        fitting = [
            other
            for other in live
            if own and all(_ends_with(name, _path(getattr(other, role))) for role, name in own.items())
        ]
        if len(fitting) == 1:
            found[id(fitting[0])] = layer.name
    return found


def _ends_with(name: str, path: str) -> bool:
    return f"/{name.split(':')[0]}".endswith(f"/{path}")


def owners_of(layers: Iterable[BatchNormLayer]) -> dict[str, str]:
    """Return the name of each variable, and of each that is absent, to that of its layer."""
    return {name: layer.name for layer in layers for name in (*layer.variables.values(), *layer.absent.values())}


def layer_names(names: FileNames, live: Iterable[Any], owners: Mapping[str, str]) -> dict[int, str]:
    """Return `id` of a live batch-norm layer to its name in an inventory.

    Args:
        names: What its variables are called in the file.
        live: The layers.
        owners: Name of a variable, or of one that is absent, to the layer of the inventory.
    """
    found: dict[int, str] = {}
    for layer in live:
        for role in ROLES:
            owner = owners.get(names.of(getattr(layer, role, None)) or "")
            if owner is not None:
                found[id(layer)] = owner
                break
    return found
