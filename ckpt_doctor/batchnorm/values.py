"""The values of a layer: read once, as flat vectors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm.layer import BatchNormLayer
from ckpt_doctor.checkpoint import Array, Checkpoint, Variable
from ckpt_doctor.errors import UnreadableCheckpoint

# What counts training steps: TF1's, then those of Keras' optimizers in each of its formats.
_STEPS = re.compile(
    r"(^|/)(global_step|_?iterations?|iter)$|^optimizer/(inner_optimizer/)*vars/0$|"
    r"^optimizer_weights/.*(iterations?|iter)$"
)


def read(variable: Variable) -> Array | None:
    """Return a value; None where it is damaged, which is reported by the rule that is about it, or is text."""
    try:
        return None if variable.dtype == "string" else variable.read()
    except UnreadableCheckpoint:
        return None


def _flat(value: Array) -> Array:
    return value.reshape(-1) if value.ndim > 1 and value.size == max(value.shape) else value


def with_values(checkpoint: Checkpoint, layer: BatchNormLayer) -> BatchNormLayer:
    """Return the layer with the values of its variables, companions and copies, as far as they can be read."""
    values: dict[str, Array] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    deviations = checkpoint.attributes.get("era") == "0.3"
    for role, name in layer.variables.items():
        variable = checkpoint.variable(name)
        assert variable is not None
        shapes[role] = variable.shape
        value = read(variable)
        if value is not None:
            # Keras before 1.0.8 stored the standard deviation.
            values[role] = np.square(_flat(value)) if deviations and role == "moving_variance" else _flat(value)
    related: dict[str, Array] = {}
    for key, name in (*layer.companions.items(), *layer.copies.items()):
        variable = checkpoint.variable(name)
        value = None if variable is None else read(variable)
        if value is not None:
            related[key] = _flat(value)
    return replace(
        layer,
        values=values,
        shapes=shapes,
        companion_values=related,
        channels=layer.channels or _channels(checkpoint, layer),
    )


def _channels(checkpoint: Checkpoint, layer: BatchNormLayer) -> int | None:
    """Return the length of the layer's vectors, or None where it has several or none."""
    names: Iterable[str] = (*layer.variables.values(), *layer.companions.values())
    for name in names:
        variable = checkpoint.variable(name)
        sizes = [size for size in variable.shape if size != 1] or [1] if variable is not None and variable.shape else []
        if len(sizes) == 1:
            return sizes[0]
    return None


def training_steps(checkpoint: Checkpoint) -> int | None:
    """Return the number of training steps that the file's own counters say, the largest of them."""
    found: list[int] = []
    for variable in checkpoint.variables:
        if variable.shape != () or "int" not in variable.dtype:
            continue
        if _STEPS.search(variable.name.partition(":")[0].removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")):
            value = read(variable)
            if value is not None:
                found.append(int(value))
    return max(found, default=None)
