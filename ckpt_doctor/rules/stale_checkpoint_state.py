"""CK105: the `checkpoint` file names files that do not exist.

`tf.train.latest_checkpoint` reads the text file `checkpoint` to learn which bundle of the folder is the newest. If that
one is gone, it returns None, and training quietly starts from scratch or a server finds no model.

Usual cause: the folder was moved or trimmed by hand, or the file holds the absolute paths of another machine.

False positives: code that never calls `latest_checkpoint` and names its checkpoint itself. A `checkpoint` file with
paths of another machine is right on that machine.

Repair: edit `checkpoint` so that `model_checkpoint_path` names an existing bundle, or remove it.

Repair is unsafe when: a job resumes from `latest_checkpoint`: it goes on from the bundle that is named by hand, and
overwrites or removes later ones of the same folder. `fix` does not change this file.

Source: tensorflow/python/training/checkpoint_state.proto; tensorflow/python/checkpoint/checkpoint_management.py.
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
    code="CK105",
    name="stale-checkpoint-state",
    severity="warning",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(
        lambda: damaged(
            Damage("stale-checkpoint-state", "models/checkpoint", "its latest, `model.ckpt-9`, does not exist")
        ),
    ),
)
