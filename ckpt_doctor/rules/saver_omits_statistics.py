"""BN301: the graph's saver leaves the statistics out of its list.

The list of names that a saver writes stands in the graph, as the constant that feeds its `SaveV2` node. Here it lacks
moving statistics that the graph has: this is why they are missing from the file (BN101, BN102), and the next
checkpoint from the same code will lack them too.

Usual cause: a saver over the trainable variables. Moving statistics are not trainable.
    saver = tf.train.Saver()                      # all variables
    saver = tf.train.Saver(tf.global_variables()) # the same, spelled out
Repair: the statistics by `ckpt-doctor fix`, which also extends the saver of the repaired `.meta`; the training code by
hand.
Source: tensorflow/python/training/saver.py (`BaseSaverBuilder.save_op`); tinghuiz/SfMLearner issue 17.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.finding import Finding
from ckpt_doctor.graphs.facts import LayerFacts, ModelFacts
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    model = subject.inventory.model
    if model is None or model.saved is None:
        return
    concerned = [
        layer for layer in subject.inventory.layers if layer.absent and not set(layer.absent.values()) & model.saved
    ]
    if concerned:
        names = tuple(name for layer in concerned for name in layer.absent.values())
        yield rule.finding(
            f"the saver of the graph lists {len(model.saved)} variables and leaves out {len(names)} moving statistics "
            f"of {len(concerned)} layers, as Saver(tf.trainable_variables()) does; save with tf.train.Saver()",
            layers=tuple(layer.name for layer in concerned),
            variables=names,
        )


def _subject(saved: frozenset[str] | None, *, absent: bool = True) -> Subject:
    names = {role: f"bn/{role}" for role in ("gamma", "beta", "moving_mean", "moving_variance")}
    gone = {role: names[role] for role in ("moving_mean", "moving_variance")} if absent else {}
    present = {role: name for role, name in names.items() if role not in gone}
    facts = LayerFacts("bn", *names.values(), mode="switch")
    layer = BatchNormLayer("bn", present, gone, channels=3, facts=facts, evidence="graph")
    return Subject(Inventory((layer,), model=ModelFacts("graph", (facts,), saved=saved)))


_ALL = frozenset(f"bn/{role}" for role in ("gamma", "beta", "moving_mean", "moving_variance"))

RULE = Rule(
    code="BN301",
    name="saver-omits-statistics",
    severity="error",
    repair="none",
    check=_check,
    healthy=(lambda: _subject(None), lambda: _subject(_ALL), lambda: _subject(frozenset({"bn/gamma"}), absent=False)),
    sick=(lambda: _subject(frozenset({"bn/gamma", "bn/beta"})),),
)
