"""CK102: a file is shorter than its index expects.

The tensors beyond the end are lost. TensorFlow itself notices only when it reads one of them; its
`inspect_checkpoint` lists the names of such a file and exits 0.

Usual cause: an upload, download or copy that broke off, a full disk while saving, or a store with a limit on size.

False positives: a copy or download that is still running.

Repair: copy the file again and compare the size; if the original is short too, go back to an earlier checkpoint.

Repair is unsafe when: the file is padded to the length that the index wants: it loads, with zeros for the lost weights.
`fix` does not repair a damaged checkpoint.

Source: tensorflow/tpu issue 775, where two published checkpoints end at byte 536,870,913.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._damage import damaged, report
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    yield from report(rule, subject, "proven")


RULE = Rule(
    code="CK102",
    name="truncated",
    severity="error",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("missing-shard", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage("truncated", "model.ckpt-7.data-00000-of-00001", "ends at byte 512, the index needs 4096", ("w",))
        ),
    ),
)
