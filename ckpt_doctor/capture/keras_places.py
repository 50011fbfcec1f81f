"""Where the variables that a repair adds belong in a file, where a live model tells."""

from __future__ import annotations

from collections.abc import Container

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.formats.interface import ObjectPlace
from ckpt_doctor.graphs.facts import ModelFacts


def places_of(
    checkpoint: Checkpoint, values: Container[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, ObjectPlace]]:
    """Return where the variables belong that a repair adds, where a live model tells.

    Args:
        checkpoint: The checkpoint, with what the live model says laid on it.
        values: Names of the variables that are written.

    Returns:
        The `weight_names` of `formats.interface.Changes`, and its `objects`.
    """
    live = checkpoint.descriptions.live
    if not isinstance(live, ModelFacts):
        return {}, {}
    root = checkpoint.attributes.get("root", "")
    orders = {}
    for group, order in live.weight_orders.items():
        before = "/".join(part for part in (root, group) if part)
        stored = {name for name in order if checkpoint.variable(f"{before}/{name}") is not None}
        added = {name for name in order if name not in stored and f"{before}/{name}" in values}
        if added:
            orders[group] = tuple(name for name in order if name in stored | added)
    objects = {}
    for layer in live.layers if checkpoint.layout.restores_objects else ():
        for role in ("moving_mean", "moving_variance"):
            name = getattr(layer, role)
            if name in values and checkpoint.variable(name) is None:
                beside = {own: key for own in ("gamma", "beta") if (key := getattr(layer, own)) is not None}
                objects[name] = ObjectPlace(role, makes_owner=True, beside=beside)
    return orders, objects
