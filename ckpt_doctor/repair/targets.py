"""Which layers a repair may change, and why the others are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.finding import Finding

# Findings on the values of a layer that new statistics cure, and that are repaired without more ado.
_MISSING = ("BN101", "BN102")
# `fix` has nothing to do with these: they are explained by findings above, or are no defect.
_TRAINED_ON_STORED = "BN304"


@dataclass(frozen=True)
class Targets:
    """What is to be repaired.

    Attributes:
        layers: Names of the layers whose statistics are estimated, in the order of the model.
        left: Layer to the reason why it is not, though something is wrong with it.
    """

    layers: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()


def choose(
    inventory: Inventory, findings: Sequence[Finding], patterns: Sequence[str], *, unproven: bool, force: bool
) -> Targets:
    """Return what to repair.

    Args:
        inventory: The checkpoint's batch norm.
        findings: What the rules say.
        patterns: Globs on layer names; where there are any they decide, healthy layers included.
        unproven: Whether a defect that is not proven is repaired too.
        force: Whether layers that were trained on their stored statistics are repaired too.

    Raises:
        BadRequest: A pattern matches no layer.
        RepairRefused: A pattern asks for a layer whose statistics are right (BN304).
    """
    inert = {name for finding in findings if finding.rule == _TRAINED_ON_STORED for name in finding.layers}
    sick: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.repair == "estimate" and finding.layer is not None:
            sick.setdefault(finding.layer, []).append(finding)
    names = [layer.name for layer in inventory.layers if _has_statistics(layer)]
    if patterns:
        chosen = _matching(names, patterns)
        refused = [name for name in chosen if name in inert]
        if refused and not force:
            raise RepairRefused(
                f"layer {refused[0]}: it was trained with its stored statistics, which are therefore right (BN304); "
                "estimating them would break the model; --force overrides this"
            )
        return Targets(tuple(chosen))
    layers, left = [], []
    for name in names:
        if name in inert and force:
            layers.append(name)
        if name not in sick:
            continue
        found = sick[name]
        if unproven or any(finding.rule in _MISSING or finding.certainty == "proven" for finding in found):
            layers.append(name)
        else:
            left.append((name, f"{found[0].rule} is not proven for it; if you know that it is so, give --unproven"))
    return Targets(tuple(layers), tuple(left))


def _has_statistics(layer: BatchNormLayer) -> bool:
    roles = {*layer.variables, *layer.absent}
    return "moving_mean" in roles and "moving_variance" in roles


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise BadRequest(f"--layers {pattern}: no batch-norm layer of this name; there are {known or 'none'}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
