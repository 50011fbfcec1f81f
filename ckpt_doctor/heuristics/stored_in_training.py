"""Layers that were trained with their stored statistics, which are therefore right, whatever data say."""

from __future__ import annotations

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer
from ckpt_doctor.heuristics.initial_values import affine_is_trained, at_initial_values, renorm_uses_initial_values


def trained_on_stored(layer: BatchNormLayer) -> bool:
    """Return whether the layer was trained with the statistics that it started with, and still has them."""
    if at_initial_values(layer) is None:
        return False
    return _runs_on_stored(layer) or (renorm_uses_initial_values(layer) and affine_is_trained(layer) is not False)


def lost_and_frozen(layer: BatchNormLayer) -> bool:
    """Return whether the layer was trained with stored statistics that the file lacks.

    In a network that was trained from the start they are the initial values, in a fine-tuned one those of the
    checkpoint that it started from; the statistics of data are neither.
    """
    return _runs_on_stored(layer) and any(role in layer.absent for role in STATISTICS)


def _runs_on_stored(layer: BatchNormLayer) -> bool:
    """Return whether the model trains, and runs the layer with its stored statistics while it does."""
    facts = layer.facts
    return (
        facts is not None
        and layer.evidence in ("graph", "config")
        and facts.mode == "stored"
        and facts.trained is False
    )
