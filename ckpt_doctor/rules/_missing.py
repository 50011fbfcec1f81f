"""What the rules on missing statistics share."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Certainty, Finding, Repair, Severity
from ckpt_doctor.heuristics.stored_in_training import lost_and_untold, lost_initial_values
from ckpt_doctor.rules.interface import Rule, Subject

_WORDS = {"moving_mean": "moving mean", "moving_variance": "moving variance"}
_DEFAULT = {"moving_mean": "0", "moving_variance": "1"}


def copy_of(layer: BatchNormLayer, role: str) -> str | None:
    """Return the key of the companion that a missing statistic can be copied or computed from, or None."""
    for kind in ("shadow", "drifted"):
        if f"{role}/{kind}" in layer.companions:
            return f"{role}/{kind}"
    debiased = f"{role}/biased" in layer.companions and f"{role}/local_step" in layer.companions
    return f"{role}/biased" if debiased and layer.momentum is not None else None


def certainty_of_absence(layer: BatchNormLayer) -> Certainty:
    """Return how sure it is that a layer needs a statistic that is not in the file.

    A graph, a config or an object graph names the variable; the names of others only suggest it.
    """
    return "likely" if layer.evidence == "names" else "proven"


def missing(rule: Rule, subject: Subject, role: str) -> Iterator[Finding]:
    """Yield a finding for every layer that needs the statistic `role` and whose file has no copy of it."""
    for layer in subject.inventory.layers:
        if role not in layer.absent or copy_of(layer, role) is not None:
            continue
        name = layer.absent[role]
        channels = f"{layer.channels} channels" if layer.channels else "channels"
        certainty = certainty_of_absence(layer)
        severity: Severity | None = None
        advice = f"a lenient loader falls back to {_DEFAULT[role]}; estimate it from data"
        if layer.evidence == "names" and layer.by_company:
            certainty, severity = "unproven", "warning"
            advice = (
                "the name does not show batch norm, but gamma and beta are next to a convolution; if it is batch "
                "norm, estimate the statistics from data"
            )
        elif lost_and_untold(layer, subject.inventory):
            certainty = "unproven"
            advice = (
                f"the serving graph does not show whether it was trained on batches or on {_DEFAULT[role]}; the "
                "training graph does (--meta); if on batches, estimate it from data with --unproven"
            )
        repair: Repair | None = None
        if lost_initial_values(layer) and layer.trained is not None:
            repair = "initial"
            advice = (
                f"it was trained with its initial values ({layer.trained.shown}), so they are right; fix restores "
                "them without data"
            )
        yield rule.finding(
            f"layer {layer.name} has no {_WORDS[role]} for its {channels}: {name} is not in the file; {advice}",
            layer=layer,
            variables=(name,),
            severity=severity,
            certainty=certainty,
            repair=repair,
        )
