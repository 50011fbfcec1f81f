"""Which layers a repair may change, by which method, and why the others are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.stored_in_training import lost_and_frozen
from ckpt_doctor.rules import repaired_unasked
from ckpt_doctor.verdict import Verdict

ESTIMATES = ("layerwise", "training")

_TRAINED_ON_STORED = "BN304"
_MISSING = ("BN101", "BN102")
_NEVER_UPDATED = "BN201"
_COLD = "BN202"
_OF_DATA = "BN401"
_FROZEN = (
    "it was trained with its stored statistics (BN304), which this file lacks: 0 and 1 in a network trained from "
    "scratch, those of the original checkpoint in a fine-tuned one; re-estimating them would break the model; if it "
    "was trained from scratch, --method initial restores the initial values; --force re-estimates anyway"
)
_UNTOLD = (
    "its statistics are missing, and nothing shows whether it was trained on batches or on its initial values; the "
    "training graph shows it (--model TRAINING.meta), or --metric FILE.py:FUNCTION can decide; if you know: "
    "--unproven estimates them, --method initial --layers restores the initial values"
)
_SWAPPED = (
    "some of gamma, beta, mean and variance are swapped (BN206), and the values do not show which is which: gamma and "
    "a variance are positive, beta and a mean have both signs; load the file in the order in which it was saved; "
    "--layers with this layer's name estimates its statistics anyway"
)


@dataclass(frozen=True)
class Targets:
    """What is to be repaired, each list in the order of the model.

    Attributes:
        estimated: Layers whose statistics come from data.
        copied: Layers whose statistics, or what belongs to them, are in the file.
        debiased: Layers whose initial value is taken out of their averages.
        initial: Layers that get the initial values of their statistics, which they were trained with.
        left: Layer to the reason why it is not repaired, though something is wrong with it.
    """

    estimated: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    debiased: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that are to be repaired."""
        return tuple(dict.fromkeys([*self.copied, *self.initial, *self.debiased, *self.estimated]))


def choose(
    verdict: Verdict,
    patterns: Sequence[str],
    *,
    method: str,
    has_data: bool,
    unproven: bool,
    force: bool,
) -> Targets:
    """Return what to repair.

    Args:
        verdict: What is wrong with the checkpoint.
        patterns: Globs on layer names; where there are any they decide, healthy layers included.
        method: One of `ckpt_doctor.options.METHODS`.
        has_data: Whether there are data to estimate from.
        unproven: Whether a defect that is not proven is repaired too.
        force: Whether layers that were trained on their stored statistics are repaired too.

    Raises:
        BadRequest: A pattern matches no layer.
        RepairRefused: A pattern asks for a layer whose statistics are right (BN304).
    """
    layers = verdict.analysis.inventory.layers
    names = [layer.name for layer in layers if _has_statistics(layer)]
    unasked = {id(finding) for finding in repaired_unasked(verdict.findings)}
    on_layer: dict[str, list[Finding]] = {}
    for finding in verdict.findings:
        for name in finding.layers:
            on_layer.setdefault(name, []).append(finding)
    inert = {name for name in names if any(finding.rule == _TRAINED_ON_STORED for finding in on_layer.get(name, ()))}
    chosen = _matching(names, patterns) if patterns else names
    frozen = {layer.name for layer in layers if lost_and_frozen(layer)}
    refused = [name for name in chosen if name in inert]
    if patterns and refused and not force:
        raise RepairRefused(
            f"layer {refused[0]}: it was trained with its stored statistics, which are therefore correct (BN304); "
            "re-estimating them would break the model; --force overrides this"
        )
    by_name = {layer.name: layer for layer in layers}
    estimated, copied, debiased, initial, left = [], [], [], [], []
    for name in chosen:
        found = [finding for finding in on_layer.get(name, ()) if finding.repair != "none"]
        sure = [finding for finding in found if unproven or id(finding) in unasked]
        asked = bool(patterns) or (name in inert and force)
        known = any(finding.repair == "initial" for finding in sure)
        if method == "initial" or (known and not force):
            reason = _not_put_back(by_name[name], method, known=known or name in frozen or bool(patterns))
            if reason is None:
                initial.append(name)
            elif found or patterns:
                left.append((name, reason))
            continue
        if name in frozen and not force and method in ("auto", *ESTIMATES):
            left.append((name, _FROZEN))
            continue
        swap = verdict.subject.role_swaps.get(name)
        if swap is not None and not swap.can_be_undone and not patterns:
            left.append((name, _SWAPPED))
            continue
        if method in ("auto", "copy") and any(finding.repair == "copy" for finding in sure):
            copied.append(name)
        cold = [finding for finding in sure if finding.rule == _COLD]
        if method == "debias" or (method == "auto" and not has_data):
            if cold:
                debiased.append(name)
            sure = [finding for finding in sure if finding not in cold]
        estimates = [finding for finding in sure if finding.repair in ("estimate", "initial")]
        if method in ("auto", *ESTIMATES) and (estimates or (asked and (has_data or not found))):
            estimated.append(name)
        elif found and name not in (*copied, *debiased):
            left.append((name, _why_left(found, sure, method)))
    if not patterns:
        measured = set(names)
        left += [
            (name, "nothing shows where its second statistic belongs; pass the model with --model")
            for name, found in on_layer.items()
            if name not in measured and any(finding.repair != "none" for finding in found)
        ]
    return Targets(tuple(estimated), tuple(copied), tuple(debiased), tuple(initial), tuple(left))


def _not_put_back(layer: BatchNormLayer, method: str, *, known: bool) -> str | None:
    """Return why a layer does not get the initial values of its statistics, or None where it does.

    Args:
        layer: The layer.
        method: How it is to be repaired.
        known: Whether it is known, or the user says, that it was trained with them.
    """
    if not layer.absent:
        return "--method initial restores missing statistics, but this layer has its own"
    if method not in ("auto", "initial"):
        return (
            "it was trained with the initial values of its statistics, which --method initial restores; re-estimating "
            "them would break the model; --force overrides this"
        )
    return (
        None
        if known
        else "nothing shows that it was trained with its initial values; if you know it was, name it with --layers"
    )


def _why_left(found: Sequence[Finding], sure: Sequence[Finding], method: str) -> str:
    doubtful = [finding for finding in found if finding not in sure]
    if not sure and all(finding.rule == _OF_DATA for finding in doubtful):
        return (
            "its statistics do not match the data (BN401); if the data are what the model will serve, name the layer "
            "with --layers"
        )
    wanted = next((finding for finding in doubtful if finding.repair == method), doubtful[0] if not sure else None)
    if wanted is not None and wanted.certainty != "unproven" and wanted.rule == _NEVER_UPDATED:
        return (
            "it was never updated (BN201), but nothing shows whether other such layers should have been updated; "
            "repairing only some may make the model worse; --unproven repairs all of them, --layers only those that "
            "match"
        )
    if wanted is not None and wanted.rule in _MISSING:
        return _UNTOLD
    if wanted is not None:
        return f"{wanted.rule} is not proven for this layer; if you know that it applies, pass --unproven"
    return f"--method {method} does not repair {sure[0].rule}, which needs {sure[0].repair}"


def _has_statistics(layer: BatchNormLayer) -> bool:
    roles = {*layer.variables, *layer.absent}
    return "moving_mean" in roles and "moving_variance" in roles


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise BadRequest(f"--layers {pattern}: no batch-norm layer matches; found: {known or 'none'}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
