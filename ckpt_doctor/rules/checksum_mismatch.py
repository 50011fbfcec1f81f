"""CK103: stored and computed checksums differ.

The bytes are not those that were saved: at least one value is wrong, and nothing shows which or by how much. A flipped
exponent bit turns a weight of 0.1 into 1e37.

Usual cause: a failing disk or memory, a transfer in text mode, or a tool that changed the file without its checksums.

False positives: a program that changed values on purpose and left the old checksum: the values are as intended, but
TensorFlow refuses them.

Repair: copy the file again; if the original fails too, go back to an earlier checkpoint.

Repair is unsafe when: the checksum is recomputed and the value is not restored: the wrong value then passes every
check. `fix` does not repair a damaged checkpoint.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc (masked CRC32C of each tensor), core/lib/io/format.cc (of
    each block of the index); HDF5's Fletcher-32 and the CRC-32 of zip members for Keras files.
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
    code="CK103",
    name="checksum-mismatch",
    severity="error",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage(
                "checksum-mismatch",
                "model.ckpt-7.data-00000-of-00001",
                "`w` at byte 128: checksum 0x1a2b, stored 0x3c4d",
                ("w",),
            )
        ),
    ),
)
