"""What the two rules on missing statistics share."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.finding import Certainty, Finding
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
