"""CK107: variables that the checkpoint itself lists are not in it.

A checkpoint lists its content in up to three places: in its index, in the saver, object graph or lists of weights that
were saved with it, and in its Keras config. If one of these names a variable that is missing, a load stops (`Key
conv1/weights not found in checkpoint`), or goes on with the variable's random initial value and a model that returns
nonsense.

Usual cause: layers in a Python list or dict that the saver does not see, a tool that filters variables, or a file that
    was put together from two.

False positives: a checkpoint that was cut down on purpose, with the description of the whole model left beside it.
Statistics of batch norm are BN101 and BN102, companions BN104; slots of an optimizer are not looked for.

Repair: take the variables from another checkpoint of the same training, or save it again; no data bring them back.

Repair is unsafe when: the missing variables are filled with initial values: the model loads and returns nonsense. `fix`
changes statistics only, and cannot run a model that lacks weights.

Source: tensorflow/python/training/saver.py (`BulkSaverBuilder`), tensorflow/core/protobuf/trackable_object_graph.proto,
keras/src/legacy/saving/legacy_h5_format.py (`weight_names`).
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
    code="CK107",
    name="missing-variables",
    severity="error",
    repair="none",
    check=_check,
    healthy=(damaged, lambda: damaged(Damage("truncated", "model.ckpt-7.index", "something else"))),
    sick=(lambda: damaged(Damage("missing-variables", "model.ckpt-7", "its saver lists conv1/weights", ("w",))),),
)
