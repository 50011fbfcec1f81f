"""The rules, in report order.

A rule is one file of this folder and one line in `RULES`. The tuple is explicit: its order is visible, and a module
that does not import stops the program instead of making it check less.
"""

from __future__ import annotations

from ckpt_doctor.rules import (
    checksum_mismatch,
    missing_shard,
    not_a_checkpoint,
    stale_checkpoint_state,
    truncated,
    unfinished_save,
)
from ckpt_doctor.rules.interface import Rule

RULES: tuple[Rule, ...] = (
    missing_shard.RULE,
    truncated.RULE,
    checksum_mismatch.RULE,
    not_a_checkpoint.RULE,
    stale_checkpoint_state.RULE,
    unfinished_save.RULE,
)

# Which findings a finding explains, on the layers that both concern; the first match counts.
EXPLAINS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BN301", ("BN101", "BN102")),
    ("BN302", ("BN101", "BN102", "BN201")),
)
