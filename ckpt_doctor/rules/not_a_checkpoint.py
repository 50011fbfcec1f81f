"""CK104: a file with a checkpoint's name that is not a checkpoint.

It has the right extension and the wrong bytes: a git-LFS pointer (130 bytes of text that name the real file), the HTML
page of a login or of an error, or a binary file damaged by a line-ending conversion.

Usual cause: `git clone` without git-lfs; `curl` or `wget` of a page instead of the file behind it; a transfer in text
    mode, or `* text=auto` in `.gitattributes`.

False positives: files of another program that use the same extension, such as the `.index` of a search engine; ignore
CK104 for their folder (`per-path-ignores`).

Repair: `git lfs pull` for a pointer; otherwise download again, in binary mode, and look at the size.

Repair is unsafe when: the damaged file is overwritten and was the only copy, or line endings are converted back: bytes
that were line endings before are lost too. `fix` does not repair a damaged checkpoint.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md (the pointer's first line).
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
    code="CK104",
    name="not-a-checkpoint",
    severity="error",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage("not-a-checkpoint", "weights.h5", "a git-LFS pointer of 134 bytes, not HDF5; run `git lfs pull`")
        ),
    ),
)
