"""BN105: two copies of one statistic differ.

Some files hold a statistic more than once: a SavedModel of Keras 3 lists every variable twice (`variables/4` and
`_all_variables/17`), training on several devices may keep one copy a tower (`tower_0/bn`, `tower_1/bn`), and weight
averaging keeps a shadow beside the variable. The output of the model depends on which copy a loader uses: in an export,
`tf.saved_model.load` reads the first, a session and TensorFlow Serving read the second.

Exported twins must be equal bit for bit. A tower or shadow has its own history and may be a little off; it is reported
if it still has its initial values next to a trained copy, or is so far off that it belongs to another distribution.

Usual cause: a script that patched one copy and not the other; updates that ran for one tower only (the update ops of a
scope, `get_collection(UPDATE_OPS, scope)`), so that the others never left 0/1.

    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)     # of every tower
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS, "tower_0/")   # of the one that is saved and served

False positives: exported twins are paired by the graph. If it cannot be read (`saved_model.cpb`), they are paired by
the name that TensorFlow shows (`bn/moving_mean`), if no other variable has it. A tower that has seen other data, and a
shadow early in training, differ without a defect.

Repair: `ckpt-doctor fix --method copy --unproven` writes the trained copy over the others.

Repair is unsafe when: the paired variables are not copies of each other: the values of one layer overwrite those of
another. Compare the model's outputs before and after. Two trained twins that differ are refused, as the file does not
tell which is right.

Source: argman/EAST issue 112, tensorflow/models issue 100; keras/src/export/saved_model.py (the two lists).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.checkpoint import Array, same_values
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.agreement import is_beyond
from ckpt_doctor.heuristics.initial_values import at_initial_values, copy_at_initial_values, initial_values
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.interface import Rule, Subject

_STATISTICS = ("moving_mean", "moving_variance")


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        for kind in _kinds(layer):
            message = _twins(layer, kind) if kind.startswith("twin") else _histories(layer, kind)
            if message is None:
                continue
            exact = kind.startswith("twin")
            told = not exact or _is_told(layer, kind)
            finding = rule.finding(
                f"layer {layer.name} ({layer.channels} channels): {message}",
                layer=layer,
                variables=tuple(
                    name
                    for role in _STATISTICS
                    if f"{role}/{kind}" in layer.companions
                    for name in (layer.variables[role], layer.companions[f"{role}/{kind}"])
                    if role in layer.variables
                ),
                severity=None if exact else "warning",
                certainty="likely",
            )
            # Of two trained copies neither is known to be right: only data can give what belongs into both.
            yield finding if told else replace(finding, repair="estimate")


def _is_told(layer: BatchNormLayer, kind: str) -> bool:
    """Return whether the values tell which of two exported copies was trained."""
    return at_initial_values(layer) is not None and copy_at_initial_values(layer, kind) is False


def _kinds(layer: BatchNormLayer) -> tuple[str, ...]:
    """Return the kinds of copies that the file has of the layer's statistics."""
    kinds = {key.rpartition("/")[2]: None for key in layer.companions if key.rpartition("/")[0] in layer.variables}
    return tuple(kind for kind in kinds if kind == "shadow" or kind.startswith(("twin", "tower")))


def _pairs(layer: BatchNormLayer, kind: str) -> Iterator[tuple[str, Array, Array]]:
    for role in _STATISTICS:
        copy = layer.companion_values.get(f"{role}/{kind}")
        if role in layer.values and copy is not None and copy.size == layer.values[role].size:
            yield role, layer.values[role], copy


def _twins(layer: BatchNormLayer, kind: str) -> str | None:
    for role, value, copy in _pairs(layer, kind):
        if not (np.isfinite(value).all() and np.isfinite(copy).all()):
            continue  # BN203 says so of both.
        if not same_values(value.reshape(-1), copy.reshape(-1)):
            apart = float(np.max(np.abs(value.astype(np.float64) - copy.astype(np.float64))))
            return (
                f"{layer.variables[role]} and its exported twin {layer.companions[f'{role}/{kind}']} differ by up to "
                f"{apart:.3g}, and a loader uses only one of them; "
                + (
                    "copy the trained one into both with `fix --method copy --unproven`"
                    if _is_told(layer, kind)
                    else "nothing shows which is right; estimate the statistics from data with --unproven"
                )
            )
    return None


def _histories(layer: BatchNormLayer, kind: str) -> str | None:
    """Return what is wrong with a copy that was averaged on its own, or None."""
    pairs = {role: (value.astype(np.float64), copy.astype(np.float64)) for role, value, copy in _pairs(layer, kind)}
    if len(pairs) < len(_STATISTICS):
        return None
    (mean, mean_copy), (variance, variance_copy) = pairs["moving_mean"], pairs["moving_variance"]
    names = f"{layer.companions[f'moving_mean/{kind}']} and {layer.companions[f'moving_variance/{kind}']}"
    here = initial_values(mean, variance, None) is not None
    there = initial_values(mean_copy, variance_copy, None) is not None
    if here != there:
        which = names if there else f"{layer.variables['moving_mean']} and {layer.variables['moving_variance']}"
        return (
            f"{which} are still exactly 0/1, but their other copies are not; copy those over with `fix --method copy "
            "--unproven`"
        )
    spread = np.maximum(variance, variance_copy)
    known = np.isfinite(spread) & (np.minimum(variance, variance_copy) > 0)
    if here or not known.any():
        return None
    shift = float(np.median(np.abs(mean - mean_copy)[known] / np.sqrt(spread[known])))
    ratio = float(np.median(variance_copy[known] / variance[known]))
    if any(is_beyond(shift, ratio)):
        return (
            f"{names} are far from the plain statistics: means {shift:.2g} standard deviations apart, variances "
            f"{ratio:.2g} times as large (medians); find out which copy is served, and keep it"
        )
    return None


def _beside(kind: str, mean: list[float], variance: list[float]) -> BatchNormLayer:
    values = {f"moving_mean/{kind}": mean, f"moving_variance/{kind}": variance}
    return replace(
        example(moving_mean=[0.4, -0.1, 2.0], moving_variance=[1.7, 0.3, 4.0]),
        companions={key: f"bn/{key}" for key in values},
        companion_values={key: np.asarray(value, np.float32) for key, value in values.items()},
    )


RULE = Rule(
    code="BN105",
    name="aliases-disagree",
    severity="error",
    repair="copy",
    check=_check,
    fixed="proven",
    healthy=(
        lambda: holding(example()),
        lambda: holding(_beside("twin", [0.4, -0.1, 2.0], [1.7, 0.3, 4.0])),
        # A shadow lags behind its variable.
        lambda: holding(_beside("shadow", [0.39, -0.09, 1.9], [1.8, 0.31, 3.8])),
    ),
    sick=(
        lambda: holding(_beside("twin", [0.4, -0.1, 2.0], [1.7, 0.3, 4.000001])),
        lambda: holding(_beside("tower_1", [0, 0, 0], [1, 1, 1])),
        lambda: holding(_beside("shadow", [4, 3, 9], [1.7, 0.3, 4.0])),
        lambda: holding(_beside("shadow", [0.4, -0.1, 2.0], [9, 1.4, 30])),
    ),
)
