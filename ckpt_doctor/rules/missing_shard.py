"""CK101: a data shard is missing.

A checkpoint of TensorFlow is an index and one or more data files, `NAME.data-00000-of-00004` …; the index lists which
tensor is in which file. If a shard is missing, so are its tensors; `restore` fails as soon as it asks for one of them,
which may be long after the deploy began.

Usual cause: an upload or copy that took only some of the files, a `.gitignore` for `*.data-*`, or a prefix that was
    renamed for one file and not for the other.

False positives: a copy that is still running, or a remote folder that lists its files late.

Repair: copy the missing file from where the checkpoint was made; what is in it cannot be computed.

Repair is unsafe when: the shard comes from another step or run with the same file name: its checksums differ (CK103),
which `scan --quick` does not look at. `fix` does not repair a damaged checkpoint.

Source: tensorflow/core/util/tensor_bundle/naming.cc (names of the shards), tensor_bundle.proto (`shard_id`).
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
    code="CK101",
    name="missing-shard",
    severity="error",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage(
                "missing-shard",
                "model.ckpt-7.data-00001-of-00002",
                "missing; it holds 12 tensors of the index",
                ("w",),
            )
        ),
    ),
)
