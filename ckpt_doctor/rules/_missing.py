"""What the two rules on missing statistics share: the check, and the layers of their examples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.graphs.facts import LayerFacts
from ckpt_doctor.rules.interface import Rule, Subject

_WORDS = {"moving_mean": "moving mean", "moving_variance": "moving variance"}
_DEFAULT = {"moving_mean": "0", "moving_variance": "1"}


def missing(rule: Rule, subject: Subject, role: str) -> Iterator[Finding]:
    """Yield a finding for every layer that needs the statistic `role` and whose file has no copy of it."""
    for layer in subject.inventory.layers:
        if role not in layer.absent or f"{role}/shadow" in layer.companions:
            continue
        name = layer.absent[role]
        channels = f"{layer.channels} channels" if layer.channels else "channels"
        certainty: Certainty = "proven" if layer.evidence in ("graph", "config", "object-graph") else "likely"
        yield rule.finding(
            f"layer {layer.name} has no {_WORDS[role]} for its {channels}: {name} is not in the file; a loader that "
            f"skips it runs on {_DEFAULT[role]}; estimate it from data",
            layer=layer,
            variables=(name,),
            certainty=certainty,
        )


def _layer(roles: tuple[str, ...], *, facts: LayerFacts | None = None) -> BatchNormLayer:
    present = {role: f"bn/{role}" for role in ("gamma", "beta", *roles)}
    absent = {role: f"bn/{role}" for role in _WORDS if role not in roles}
    values = {role: np.linspace(0.5, 1.5, 4, dtype=np.float32) for role in present}
    return BatchNormLayer("bn", present, absent, values=values, channels=4, facts=facts, evidence="graph")


def healthy_layer() -> Subject:
    """Return a layer with both statistics."""
    return Subject(Inventory((_layer(tuple(_WORDS)),)))


def without(*roles: str) -> Subject:
    """Return a layer without the named statistics."""
    return Subject(Inventory((_layer(tuple(role for role in _WORDS if role not in roles)),)))


def stateless() -> Subject:
    """Return a layer that keeps no statistics by design: the model names no variable for them."""
    facts = LayerFacts("bn", "bn/gamma", "bn/beta", None, None, mode="batch")
    names = {"gamma": "bn/gamma", "beta": "bn/beta"}
    return Subject(Inventory((BatchNormLayer("bn", names, facts=facts, evidence="graph"),)))


def only_shadow(role: str) -> Subject:
    """Return a layer whose statistic survives as its moving-average shadow."""
    layer = _layer(tuple(name for name in _WORDS if name != role))
    shadow = {f"{role}/shadow": f"bn/{role}/ExponentialMovingAverage"}
    return Subject(Inventory((BatchNormLayer("bn", layer.variables, layer.absent, shadow, channels=4),)))
