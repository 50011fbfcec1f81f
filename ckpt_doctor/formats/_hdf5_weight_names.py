"""Where a new weight goes in Keras' ordered lists of names.

The legacy format is loaded by order: the k-th name of `weight_names` fills the k-th of `layer.weights`. For one layer
that order is fixed. A nested model or a wrapper keeps all its weights in one list, trainable ones first, then the
others; where a layer inside is frozen the list follows the layers instead (keras-team/keras#12470).
"""

from __future__ import annotations

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats._json import parsed_or_none
from ckpt_doctor.formats.interface import Changes

# The order of one batch-norm layer's weights in every version from 1.0 on.
_STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
_ROLES = ("gamma", "beta", *_STATISTICS)
_TRAINABLE = frozenset(
    (
        "alpha",
        "beta",
        "bias",
        "depthwise_kernel",
        "embeddings",
        "gamma",
        "kernel",
        "pointwise_kernel",
        "recurrent_kernel",
    )
)


def plan_weight_names(checkpoint: Checkpoint, changes: Changes) -> dict[str, tuple[str, ...]]:
    """Return the new `weight_names` of every layer group that gets new weights.

    Args:
        checkpoint: A legacy Keras file, as read.
        changes: Its new values, and the order of the names where the default does not do.

    Returns:
        Path of the layer group → all its weight names, in Keras' order.

    Raises:
        RepairRefused: A new variable belongs to no layer group; or the group holds several layers, the file does not
            show that none is frozen, and `changes.weight_names` does not say the order.
    """
    root = checkpoint.attributes["root"]
    listed: dict[str, tuple[str, ...]] = checkpoint.attributes["weight_names"]
    new: dict[str, list[str]] = {}
    for name in changes.values:
        if checkpoint.variable(name) is None:
            layer = _layer_of(name, root, listed, checkpoint.path)
            prefix = f"{root}/{layer}/" if root else f"{layer}/"
            new.setdefault(layer, []).append(name[len(prefix) :])
    plan = {}
    for layer in dict.fromkeys((*new, *changes.weight_names)):
        if layer not in listed:
            raise RepairRefused(f"{checkpoint.path}: has no layer group {layer!r}")
        added = [name for name in new.get(layer, []) if name not in listed[layer]]
        wanted = changes.weight_names.get(layer)
        if wanted is None:
            config = _layer_config(checkpoint.descriptions.keras_config, layer)
            wanted = _default_order(listed[layer], added, config, f"{checkpoint.path}:{layer}")
        elif sorted(wanted) != sorted((*listed[layer], *added)):
            raise RepairRefused(
                f"{checkpoint.path}:{layer}: the given order does not contain every weight exactly once"
            )
        if wanted != listed[layer]:
            plan[f"{root}/{layer}" if root else layer] = tuple(wanted)
    return plan


def _layer_of(name: str, root: str, listed: dict[str, tuple[str, ...]], path: str) -> str:
    """Return the layer group that a new variable belongs to: the longest one that its name starts with."""
    prefix = f"{root}/" if root else ""
    below = name[len(prefix) :] if name.startswith(prefix) else ""
    fitting = [layer for layer in listed if below.startswith(f"{layer}/")]
    if not fitting:
        raise RepairRefused(f"{path}: the new variable {name!r} is not in any layer group of the file")
    return max(fitting, key=len)


def _default_order(names: tuple[str, ...], added: list[str], config: object, where: str) -> tuple[str, ...]:
    """Return old and new names in Keras' order, where that is certain.

    Args:
        names: What the group lists.
        added: What it gets.
        config: The config of the group's layer; None where the file has none.
        where: The group, for messages.
    """
    if not added:
        return names
    scopes = list(dict.fromkeys(_scope(name) for name in names if _role(name) in _ROLES))
    of_one_layer = {_scope(name) for name in added} | {_scope(name) for name in names}
    if len(of_one_layer) == 1 and all(_role(name) in _ROLES for name in (*names, *added)):
        return tuple(sorted((*names, *added), key=_rank))
    certain = (
        # Nothing but trainable weights is there, and nothing is frozen: the statistics follow, layer by layer.
        all(_role(name) in _TRAINABLE for name in names)
        and all(_role(name) in _STATISTICS and _scope(name) in scopes for name in added)
        # Without a config, the layer's own weights must come last: then both orders are the same.
        and (_is_trainable(config) or {_scope(name) for name in added} == {_scope(names[-1])})
    )
    if not certain:
        raise RepairRefused(
            f"{where}: holds several layers, some of which may be frozen; the order of their weights then depends on "
            f"the code that loads the file, so {added[0]!r} cannot be added; load the file in Keras, "
            "save the model as .keras and repair that"
        )
    return (*names, *sorted(added, key=lambda name: (scopes.index(_scope(name)), _rank(name))))


def _scope(name: str) -> str:
    """Return `bn` for `bn/gamma:0`."""
    return name.rpartition("/")[0]


def _role(name: str) -> str:
    """Return `gamma` for `bn/gamma:0`."""
    return name.rpartition("/")[2].partition(":")[0]


def _rank(name: str) -> int:
    """Return the place of a weight within its batch-norm layer."""
    return _ROLES.index(_role(name))


def _is_trainable(config: object) -> bool:
    """Return whether a layer's config is known and no layer in it has `trainable` off."""

    def frozen(part: object) -> bool:
        if isinstance(part, dict):
            return part.get("trainable") is False or any(frozen(value) for value in part.values())
        return isinstance(part, list) and any(frozen(value) for value in part)

    return config is not None and not frozen(config)


def _layer_config(text: str | None, layer: str) -> object:
    """Return the config of a model's direct layer; None where the file has none.

    `Sequential` was a bare list of layers until Keras 2.2.
    """
    config = parsed_or_none(text)
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    for entry in layers if isinstance(layers, list) else ():
        own = entry.get("config") if isinstance(entry, dict) else None
        if isinstance(own, dict) and own.get("name") == layer:
            return entry
    return None
