"""The rules, in report order.

A rule is one file of this folder and one line in `RULES`. The tuple is explicit: its order is visible, and a module
that does not import stops the program instead of making it check less.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.rules import (
    aliases_disagree,
    batch_statistics_by_design,
    checksum_mismatch,
    cold_average,
    dead_channels,
    drifted_name,
    fresh_layer,
    half_precision_statistics,
    inference_mode_in_training,
    missing_companion,
    missing_moving_mean,
    missing_moving_variance,
    missing_shard,
    missing_variables,
    negative_variance,
    never_updated,
    non_finite_statistics,
    non_finite_weights,
    not_a_checkpoint,
    saver_omits_statistics,
    scaled_statistics,
    shadow_statistics_only,
    shape_mismatch,
    stale_checkpoint_state,
    stale_statistics,
    statistics_do_not_match_data,
    statistics_trained_by_gradient,
    swapped_roles,
    too_little_data,
    training_mode_in_serving,
    truncated,
    unfinished_save,
    updates_not_run,
)
from ckpt_doctor.rules.interface import Fixed, Rule

RULES: tuple[Rule, ...] = (
    missing_moving_mean.RULE,
    missing_moving_variance.RULE,
    shadow_statistics_only.RULE,
    missing_companion.RULE,
    aliases_disagree.RULE,
    drifted_name.RULE,
    never_updated.RULE,
    cold_average.RULE,
    non_finite_statistics.RULE,
    negative_variance.RULE,
    dead_channels.RULE,
    swapped_roles.RULE,
    scaled_statistics.RULE,
    half_precision_statistics.RULE,
    shape_mismatch.RULE,
    fresh_layer.RULE,
    stale_statistics.RULE,
    saver_omits_statistics.RULE,
    updates_not_run.RULE,
    training_mode_in_serving.RULE,
    inference_mode_in_training.RULE,
    statistics_trained_by_gradient.RULE,
    batch_statistics_by_design.RULE,
    statistics_do_not_match_data.RULE,
    too_little_data.RULE,
    missing_shard.RULE,
    truncated.RULE,
    checksum_mismatch.RULE,
    not_a_checkpoint.RULE,
    stale_checkpoint_state.RULE,
    unfinished_save.RULE,
    missing_variables.RULE,
    non_finite_weights.RULE,
)

_NEVER_UPDATED = "BN201"

_FIXED = {rule.code: rule.fixed for rule in RULES}
_SAFE: dict[Fixed, tuple[Certainty, ...]] = {
    "always": ("proven", "likely", "unproven"),
    "likely": ("proven", "likely"),
    "proven": ("proven",),
    "asked": (),
}


def repaired_unasked(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of a checkpoint that `fix` repairs without being asked to; the others take `--unproven`.

    The default of a rule is not to: a repair on a guess breaks what works. Of layers that were never updated, all are
    repaired or none: where nothing tells how some were trained, a repair of the others alone may make the model worse
    (seen: 0.690 -> 0.677).
    """
    repairable = [finding for finding in findings if finding.repair != "none"]
    sure = [finding.certainty in _SAFE[_FIXED[finding.rule]] for finding in repairable]
    never = {one for finding, one in zip(repairable, sure, strict=True) if finding.rule == _NEVER_UPDATED}
    return [
        finding
        for finding, one in zip(repairable, sure, strict=True)
        if one and (finding.rule != _NEVER_UPDATED or never == {True})
    ]


# Which findings a finding explains, on the layers that both concern; the first match counts.
EXPLAINS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BN301", ("BN101", "BN102")),
    ("BN302", ("BN101", "BN102", "BN201")),
    ("BN208", ("BN203",)),
    ("BN206", ("BN204",)),
    ("BN305", ("BN204",)),
    # What the file itself shows explains what the data show.
    ("BN201", ("BN401",)),
    ("BN202", ("BN401",)),
    ("BN211", ("BN401",)),
)
