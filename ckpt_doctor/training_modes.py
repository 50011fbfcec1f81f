"""How the layers of a checkpoint ran while they were trained: asked of those whose statistics are missing or untouched.

Layers that train alike share the evidence: one layer with a bias in front speaks for all. They do where one call runs
them (a Keras `fit`, and no class of the user's own between), or one switch (a TensorFlow 1 placeholder). Where two
layers tell different things, none speaks for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer, GradientTrace, Inventory
from ckpt_doctor.batchnorm.traces import SlotFinder, traces
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.heuristics.initial_values import affine_is_trained
from ckpt_doctor.heuristics.training_mode import by_bias, by_scale


def with_training_modes(checkpoint: Checkpoint, inventory: Inventory) -> Inventory:
    """Return the inventory, its layers with how they ran in training, where something tells.

    Args:
        checkpoint: The file; the weights in front of layers and their optimizer slots are read.
        inventory: What it holds.
    """
    if not any(layer.facts is not None and layer.facts.front is not None for layer in inventory.layers):
        return inventory
    asked = [layer for layer in inventory.layers if _is_asked(layer)]
    slots = SlotFinder(checkpoint, inventory)
    told = {
        layer.name: mode
        for layer in asked
        if layer.facts is not None
        and layer.facts.front is not None
        and layer.facts.front.bias is not None
        and (mode := by_bias(layer.name, traces(checkpoint, slots, layer, _roles(layer)), layer.epsilon))
    }
    for group in _alike(asked):
        # A layer whose gamma and beta no step has touched was not trained as the others were.
        silent = [layer for layer in group if layer.name not in told and affine_is_trained(layer) is not False]
        if not silent:
            continue
        known = {mode.ran_on for layer in group if (mode := told.get(layer.name))}
        shared = next((told[layer.name] for layer in group if layer.name in told), None)
        if shared is None:
            shared = by_scale(_scaled(checkpoint, slots, group))
            known = set() if shared is None else {shared.ran_on}
        if shared is not None and len(known) == 1:
            told |= {layer.name: shared for layer in silent}
    return replace(
        inventory,
        layers=tuple(
            replace(layer, trained=told[layer.name]) if layer.name in told else layer for layer in inventory.layers
        ),
    )


def _roles(layer: BatchNormLayer) -> tuple[str, ...]:
    return ("bias", "beta", "gamma" if "gamma" in layer.variables else "kernel")


def _is_asked(layer: BatchNormLayer) -> bool:
    """Return whether the statistics are missing, or one of them is the same in all channels: at its start."""
    if any(role in layer.absent for role in STATISTICS):
        return True
    values = [layer.values.get(role) for role in STATISTICS]
    return any(value is not None and value.size > 0 and bool(np.all(value == value.flat[0])) for value in values)


def _alike(layers: list[BatchNormLayer]) -> list[list[BatchNormLayer]]:
    """Return the layers in groups that train alike."""
    groups: dict[object, list[BatchNormLayer]] = {}
    for layer in layers:
        decided_by = None if layer.facts is None else layer.facts.decided_by
        groups.setdefault(layer.name if decided_by is None else (layer.evidence, decided_by), []).append(layer)
    return list(groups.values())


def _scaled(
    checkpoint: Checkpoint, slots: SlotFinder, layers: list[BatchNormLayer]
) -> dict[str, tuple[Mapping[str, GradientTrace], Sequence[int], float]]:
    return {
        layer.name: (
            traces(checkpoint, slots, layer, ("kernel", "bias", "gamma")),
            layer.facts.front.axes,
            layer.facts.front.l2 or 0.0,
        )
        for layer in layers
        if layer.facts is not None and layer.facts.front is not None and layer.facts.front.kernel is not None
    }
