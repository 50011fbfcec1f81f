"""The rules, in report order.

A rule is one file of this folder and one line in `RULES`. The tuple is explicit: its order is visible, and a module
that does not import stops the program instead of making it check less.
"""

from __future__ import annotations

from ckpt_doctor.rules import (
    checksum_mismatch,
    inference_mode_in_training,
    missing_moving_mean,
    missing_moving_variance,
    missing_shard,
    never_updated,
    non_finite_statistics,
    non_finite_weights,
    not_a_checkpoint,
    saver_omits_statistics,
    stale_checkpoint_state,
    truncated,
    unfinished_save,
    updates_not_run,
)
from ckpt_doctor.rules.interface import Rule

RULES: tuple[Rule, ...] = (
    missing_moving_mean.RULE,
    missing_moving_variance.RULE,
    never_updated.RULE,
    non_finite_statistics.RULE,
    saver_omits_statistics.RULE,
    updates_not_run.RULE,
    inference_mode_in_training.RULE,
    missing_shard.RULE,
    truncated.RULE,
    checksum_mismatch.RULE,
    not_a_checkpoint.RULE,
    stale_checkpoint_state.RULE,
    unfinished_save.RULE,
    non_finite_weights.RULE,
)

# Which findings a finding explains, on the layers that both concern; the first match counts.
EXPLAINS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BN301", ("BN101", "BN102")),
    ("BN302", ("BN101", "BN102", "BN201")),
)
