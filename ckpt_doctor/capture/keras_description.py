"""What a live Keras model says of the batch norm in a file: which variables are whose, and what stands in front.

The config of a functional or Sequential model says which layer feeds which; it ends at classes of the user's own. What
is inside those, the live objects show: they are followed to the names that their variables have in the file. So files
of all formats are described by the one reader of configs, `graphs.keras_config`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import ROLES
from ckpt_doctor.batchnorm.values import training_steps
from ckpt_doctor.capture.keras_captures import wrapped_variable
from ckpt_doctor.capture.keras_file_names import FileNames, file_names, numbered
from ckpt_doctor.capture.keras_names import batch_norms, identity, is_variable
from ckpt_doctor.checkpoint import Array, Checkpoint, ModelDescriptions, Variable
from ckpt_doctor.graphs.facts import Companion, LayerFacts, LinearInFront, ModelFacts
from ckpt_doctor.graphs.keras_config import describe_keras
from ckpt_doctor.graphs.keras_layers import WRAPPED, NotUnderstood, layers_of, parsed

_log = logging.getLogger(__name__)

_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
# Where Keras 3 keeps the counter of its optimizer.
_COUNTER = "optimizer/vars/0"


def describe_live(
    checkpoint: Checkpoint, model: Any, version: str, called: Mapping[str, str], slotted: Set[str]
) -> ModelFacts:
    """Return what a live model says of the batch norm in a checkpoint.

    Args:
        checkpoint: Weights in a format of Keras, or a checkpoint of objects.
        model: The model, with its weights made.
        version: That of the Keras that made it.
        called: Name of a variable, or of one that is absent, to what the file itself calls its layer.
        slotted: Names of the variables that an optimizer in the file trained; empty where it has none.

    Raises:
        RepairRefused: A checkpoint of objects holds nothing of the model.
    """
    by_objects = checkpoint.layout.restores_objects
    names = file_names(checkpoint, model)
    config = config_of(model)
    live = {} if config is None else dict(_in_config(config, model))
    facts = ModelFacts("config")
    if live:
        facts = describe_keras(_as_saved(checkpoint, live, config, version))
    by_mean = {layer.moving_mean: layer for layer in facts.layers if layer.moving_mean is not None}
    positions = {identity(variable): name for name, variable in live.items()}
    spoken = {name: names.of(variable) for name, variable in live.items()}
    layers: dict[str, LayerFacts] = {}
    for layer in batch_norms(model):
        own = _own_facts(layer, names, called)
        mean = None if own is None else own.moving_mean
        if own is None or mean is None or mean in layers:
            continue
        described = by_mean.get(positions.get(identity(layer.moving_mean), ""))
        if described is not None:
            joined = replace(_joined(described, own, spoken), name=own.name if by_objects else described.name)
            own = _as_trained(joined, slotted)
        layers[mean] = own
    return ModelFacts(
        "config",
        layers=tuple(layers.values()),
        trains=facts.trains,
        names=frozenset(names.names.values()),
        weight_orders=names.orders,
    )


def config_of(model: Any) -> str | None:
    """Return the JSON of a model's config; None where its class has none."""
    try:
        return str(model.to_json())
    # `get_config` is the user's own code in a class of theirs, and may raise anything.
    except Exception as error:  # noqa: BLE001 - the live objects are described all the same
        _log.debug("%s gives no config: %s: %s", type(model).__name__, type(error).__name__, error)
        return None


def _in_config(config: str, model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables of the layers that the config lists, by their places in a Keras 3 file of that config."""
    try:
        found = list(layers_of(parsed(config), (), "", True, 0))
    except NotUnderstood:
        return
    by_path = dict(_by_path(model, ()))
    for entry in found:
        if entry.path in by_path:
            kept = numbered(entry.group, by_path[entry.path])
            yield from ((name, variable) for name, variable in kept if is_variable(variable))


def _by_path(layer: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the layers inside a model or a wrapper by the names around them, as `graphs.keras_layers` gives them."""
    inner = getattr(layer, "layers", None)
    held = inner if isinstance(inner, list) else [getattr(layer, name, None) for name in WRAPPED]
    for child in held:
        name = getattr(child, "name", None)
        if isinstance(name, str):
            yield (*path, name), child
            yield from _by_path(child, (*path, name))


def _as_saved(checkpoint: Checkpoint, live: Mapping[str, Any], config: str | None, version: str) -> Checkpoint:
    """Return the model as a Keras 3 weights file of its config would hold it; nothing is written."""
    variables = [
        Variable(name, tuple(variable.shape), wrapped_variable(variable).dtype.name, 0, _value_of(variable))
        for name, variable in live.items()
    ]
    steps = training_steps(checkpoint)
    if steps is not None:
        variables.append(Variable(_COUNTER, (), "int64", 8, lambda: np.array(steps)))
    return Checkpoint(
        checkpoint.path,
        "keras-weights-v3",
        tuple(variables),
        (),
        0,
        descriptions=ModelDescriptions(keras_config=config),
        attributes={"keras_version": version},
    )


def _value_of(variable: Any) -> Callable[[], Array]:
    return lambda: np.asarray(wrapped_variable(variable).numpy())


def _own_facts(layer: Any, names: FileNames, called: Mapping[str, str]) -> LayerFacts | None:
    """Return what a live batch-norm layer says of itself; None where nothing tells its place in the file."""
    roles = {role: names.of(getattr(layer, role, None)) for role in ROLES}
    mean, variance = roles["moving_mean"], roles["moving_variance"]
    if mean is None or variance is None:
        return None
    name = next((called[one] for one in roles.values() if one is not None and one in called), None)
    companions = tuple(
        Companion(known, role, "layer") for role in _RENORM if (known := names.of(getattr(layer, role, None)))
    )
    return LayerFacts(
        name=name or _scope(mean),
        gamma=roles["gamma"],
        beta=roles["beta"],
        moving_mean=mean,
        moving_variance=variance,
        companions=companions,
        channels=int(np.prod(layer.moving_mean.shape)),
        epsilon=float(layer.epsilon),
        momentum=float(layer.momentum) if isinstance(layer.momentum, (int, float)) else None,
        mode="switch",
        # Whether it was frozen in training, code of today does not say.
        has_update_ops=True,
        # A class of the user's own may call it more often than once in a step.
        updates=None,
        renorm_clipped=bool(getattr(layer, "renorm_clipping", None)) if getattr(layer, "renorm", False) else None,
    )


def _joined(described: LayerFacts, own: LayerFacts, spoken: Mapping[str, str | None]) -> LayerFacts:
    """Return what the config says of a layer, under the names that the file has for its variables.

    Args:
        described: The layer, its variables named as in a Keras 3 file.
        own: What the live layer says.
        spoken: Such a name to the one in the file.
    """
    front = described.front
    if front is not None:
        kernel, bias = (None if one is None else spoken.get(one) for one in (front.kernel, front.bias))
        front = None if kernel is None and bias is None else LinearInFront(kernel, bias, front.axes, front.l2)
    return replace(
        described,
        gamma=own.gamma,
        beta=own.beta,
        moving_mean=own.moving_mean,
        moving_variance=own.moving_variance,
        companions=own.companions,
        channels=own.channels,
        front=front,
    )


def _as_trained(layer: LayerFacts, slotted: Set[str]) -> LayerFacts:
    """Return what is known of how a layer was trained, where a model of today's code is to serve it.

    Code that builds a model for serving may freeze its layers, or call them with `training=False`, whatever was done
    while it was trained. A layer that is frozen was so in training too if the optimizer trained others, and not it.
    """
    if layer.mode != "stored" and layer.trained is not False:
        return layer
    affine = {name for name in (layer.gamma, layer.beta) if name is not None}
    if slotted and affine and not affine & slotted and not layer.has_update_ops:
        return layer
    return replace(layer, mode="switch", trained=None, has_update_ops=True)


def _scope(name: str) -> str:
    """Return what a layer is called by the name of its moving mean: a path in an object graph, a group, a scope."""
    path = name.partition("/.ATTRIBUTES/")[0]
    head = path.rpartition("/vars/")[0]
    return head or path.rpartition("/")[0] or path
