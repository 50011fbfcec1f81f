"""CK106: parts of a save that never finished.

TensorFlow writes the tensors first, under a temporary name, and the index last. The remains of an interrupted save look
like a checkpoint and are not one; and a checkpoint that changes while it is read is not finished.

Usual cause: training was killed, or ran out of disk, while it saved; or it is saving right now.

False positives: a save that is running, or a copy that left out the `.index`: file names alone tell, so the finding is
`likely`.

Repair: wait for the save to end and scan again; remove leftovers when no job writes to the folder any more.

Repair is unsafe when: a job still writes to the folder: removing its temporary files breaks the save. Data files
without an index may be all that is left of a finished checkpoint; look for its `.index` before you remove them. `fix`
does not repair them.

Source: tensorflow/core/kernels/save_restore_v2_ops.cc (`MergeV2Checkpoints`), python/training/saver.py (`_temp_`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._damage import damaged, report
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    # File names and times show it, not bytes: a save may be running, or a copy may have left out the index.
    yield from report(rule, subject, "likely")


RULE = Rule(
    code="CK106",
    name="unfinished-save",
    severity="warning",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage("unfinished-save", "models/model.ckpt-9_temp_0a1b", "shards of a save without an index")
        ),
    ),
)
