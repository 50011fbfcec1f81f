"""What the repaired checkpoint shows on the data: residuals, and doubts about the data themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.capture.estimation import residuals
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.targets import ESTIMATES
from ckpt_doctor.repair_result import RepairedLayer
from ckpt_doctor.rules import too_little_data
from ckpt_doctor.rules.interface import Subject

# What layerwise statistics may be off from a plain pass over the same data: float32 leaves 1e-7 to 1e-5, and a network
# that computes in float16 up to 5e-3; a mistake of the estimate is far above.
LARGEST_RESIDUAL = 1e-2


def proven(
    repaired: Sequence[RepairedLayer], after: Inventory, seen: Mapping[str, Observation]
) -> tuple[tuple[RepairedLayer, ...], bool]:
    """Return the layers with their residuals, and whether those of estimated ones are all within tolerance.

    `training` measures every layer behind batches that normalise themselves, so it may be off by what BN401 allows;
    `layerwise` must leave no more than rounding.

    Args:
        repaired: The layers, as planned.
        after: The inventory of what was written.
        seen: What goes into the layers at inference; empty where no data were used.
    """
    by_name = {layer.name: layer for layer in after.layers}
    entries = []
    within = True
    for entry in repaired:
        layer = by_name.get(entry.name)
        if layer is None or entry.name not in seen:
            entries.append(entry)
            # What was estimated must also be seen afterwards, or nothing is proven.
            within = within and (entry.method not in ESTIMATES or not seen)
            continue
        residual, good = residuals(
            seen[entry.name], layer.values["moving_mean"], layer.values["moving_variance"], layer.epsilon
        )
        entries.append(replace(entry, residual=residual))
        within = within and good and (entry.method != "layerwise" or residual <= LARGEST_RESIDUAL)
    return tuple(entries), within


def doubts(inventory: Inventory, seen: Mapping[str, Observation]) -> Iterator[str]:
    """Yield what BN402 says of the data, once for the first layer that it concerns."""
    subject = Subject(inventory, observed=seen)
    findings = list(too_little_data.RULE.check(too_little_data.RULE, subject))
    if findings:
        more = f" (and {len(findings) - 1} more layers)" if len(findings) > 1 else ""
        yield f"BN402 too-little-data: {findings[0].message}{more}"
