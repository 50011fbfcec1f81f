"""Small layers for the examples of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.graphs.facts import LayerFacts, Mode, ModelFacts
from ckpt_doctor.rules.interface import Subject

_CHANNELS = 3


def described(
    name: str = "bn",
    mode: Mode = "switch",
    *,
    trained: bool | None = True,
    updates_run: bool | None = True,
    statistics: bool = True,
) -> LayerFacts:
    """Return what a model says of a layer.

    Args:
        name: The layer.
        mode: How it normalises.
        trained: Whether training steps would have changed its statistics.
        updates_run: Whether a training op runs its updates.
        statistics: Whether the model has variables for them.
    """
    return LayerFacts(
        name=name,
        gamma=f"{name}/gamma",
        beta=f"{name}/beta",
        moving_mean=f"{name}/moving_mean" if statistics else None,
        moving_variance=f"{name}/moving_variance" if statistics else None,
        channels=_CHANNELS,
        mode=mode,
        has_update_ops=True,
        updates_run=updates_run,
        trained=trained,
    )


def example(
    name: str = "bn",
    *,
    missing: Sequence[str] = (),
    facts: LayerFacts | None = None,
    epsilon: float | None = 1e-3,
    dtype: Any = np.float32,
    channels: int = _CHANNELS,
    initial: str | None = "0/1",
    **values: Any,
) -> BatchNormLayer:
    """Return a layer of three channels; roles that are not given have healthy values.

    Args:
        name: The layer.
        missing: Roles that the file lacks.
        facts: What its model says.
        epsilon: Added to the variance.
        dtype: Type of the vectors.
        channels: Another number of channels.
        initial: What its averages start at.
        **values: Role to a number for every channel, or to a list of one for each.
    """
    healthy = {"gamma": 1.3, "beta": 0.2, "moving_mean": [0.4, -0.1, 2.0], "moving_variance": [1.7, 0.3, 4.0]}
    given = {**healthy, **values}
    arrays = {role: np.resize(np.asarray(given[role], dtype), channels) for role in given if role not in missing}
    return BatchNormLayer(
        name=name,
        variables={role: f"{name}/{role}" for role in arrays},
        absent={role: f"{name}/{role}" for role in missing if role.startswith("moving_")},
        values=arrays,
        channels=channels,
        shapes={role: value.shape for role, value in arrays.items()},
        initial=initial,
        epsilon=epsilon,
        facts=facts,
        evidence="graph" if facts is not None else "names",
    )


def holding(*layers: BatchNormLayer, saved: frozenset[str] | None = None, trains: bool = True) -> Subject:
    """Return the layers as one checkpoint, with the model that their facts are from."""
    facts = tuple(entry.facts for entry in layers if entry.facts is not None)
    model = ModelFacts("graph", facts, saved=saved, trains=trains) if facts else None
    return Subject(Inventory(layers, model=model))
