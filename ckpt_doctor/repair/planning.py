"""New statistics to new values: in stored type and shape, with everything that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.keras_places import places_of
from ckpt_doctor.checkpoint import Array, Checkpoint, numpy_dtype
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import extend_saved_model
from ckpt_doctor.graphs.saver import extend_saver
from ckpt_doctor.repair.companions import COPIES, companion_values

_STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What one layer gets.

    Attributes:
        layer: The layer as it is.
        method: How its new values were found.
        values: Role to new value, float64 of shape `(channels,)`; both statistics at least.
        standard_error: Of the means, in standard deviations; None where nothing was estimated.
    """

    layer: BatchNormLayer
    method: str
    values: Mapping[str, Array]
    standard_error: float | None = None


def changes_of(source: Checkpoint, meta: MetaGraph | None, plans: Sequence[LayerPlan]) -> Changes:
    """Return everything that is written for the plans.

    Args:
        source: The checkpoint.
        meta: Its TF1 graph, which says types and shapes of what the file lacks.
        plans: What every layer gets.

    Raises:
        RepairRefused: A value does not fit its variable.
    """
    nodes = {} if meta is None else {saved: node for node, saved in meta.saved_names.items()}
    values: dict[str, Array] = {}
    for plan in plans:
        for name, value in _named_values(source, plan):
            values[name] = _cast(source, meta, nodes, plan.layer, name, value)
    added = {name: nodes[name] for name in values if source.variable(name) is None and name in nodes}
    new_meta = new_model = None
    if meta is not None and added and meta.saver is not None:
        if source.descriptions.meta_graph is not None:
            new_meta = extend_saver(meta.proto, added).SerializeToString()
        elif source.descriptions.saved_model is not None:
            new_model = extend_saved_model(source.descriptions.saved_model, added)
    orders, objects = places_of(source, values)
    return Changes(values=values, meta_graph=new_meta, saved_model=new_model, weight_names=orders, objects=objects)


def _named_values(source: Checkpoint, plan: LayerPlan) -> list[tuple[str, Array]]:
    layer = plan.layer
    named = [
        (name, np.asarray(value, np.float64))
        for role, value in plan.values.items()
        if (name := layer.variables.get(role) or layer.absent.get(role)) is not None
    ]
    statistics = {role: plan.values[role] for role in _STATISTICS}
    for role, name, value in companion_values(layer, statistics, _stored_steps(source, layer)):
        # Statistics that only change their name leave the history beside them as it is.
        if plan.method != "copy" or source.variable(name) is None or role.startswith(COPIES):
            named.append((name, np.asarray(value, np.float64)))
    return named


def _stored_steps(source: Checkpoint, layer: BatchNormLayer) -> dict[str, float]:
    steps = {}
    for key, name in layer.companions.items():
        variable = source.variable(name)
        if key.endswith(("/local_step", "/counter")) and variable is not None:
            steps[name] = float(variable.read().reshape(-1)[0])
    return steps


def _cast(
    source: Checkpoint,
    meta: MetaGraph | None,
    nodes: Mapping[str, str],
    layer: BatchNormLayer,
    name: str,
    value: Array,
) -> Array:
    """Return a value in the type and shape that the file, or else the graph, gives its variable."""
    variable = source.variable(name)
    shape: tuple[int, ...] = value.shape
    dtype = np.dtype(np.float32)
    if variable is not None:
        shape, dtype = variable.shape, numpy_dtype(variable.dtype)
    elif meta is not None and name in nodes:
        text, declared = meta.variable_type(nodes[name])
        shape = declared if all(size >= 0 for size in declared) else shape
        dtype = numpy_dtype(text)
    else:
        sibling = next((source.variable(other) for other in layer.variables.values()), None)
        if sibling is not None:
            dtype = numpy_dtype(sibling.dtype)
            # Sonnet keeps statistics as [1, 1, 1, channels] beside a gamma of the same shape.
            shape = sibling.shape if int(np.prod(sibling.shape)) == value.size and value.ndim else shape
    if int(np.prod(shape)) != value.size:
        raise RepairRefused(
            f"layer {layer.name}: its input has {value.size} channels, but {name} has the shape {list(shape)}"
        )
    with np.errstate(over="ignore"):
        result = value.reshape(shape).astype(dtype)
    if not np.isfinite(result.astype(np.float64)).all():
        raise RepairRefused(f"{name}: the new value {float(value.max()):.6g} does not fit its type {dtype}")
    return result
