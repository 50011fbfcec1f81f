"""BN301: the graph's saver omits the statistics.

The graph contains the list of names that a saver writes: the constant that feeds its `SaveV2` node. Here it lacks
moving statistics that the graph has: this is why they are missing from the file (BN101, BN102), and the next checkpoint
from the same code will lack them too.

Usual cause: a saver over the trainable variables. Moving statistics are not trainable.
    saver = tf.train.Saver()                      # all variables
    saver = tf.train.Saver(tf.global_variables()) # the same, spelled out

False positives: code with a second saver that keeps the statistics in another file on purpose. The rule reports only
statistics that are missing from this file.

Repair: the statistics by `ckpt-doctor fix`, which also extends the saver of the repaired `.meta`; the training code by
hand.

Repair is unsafe when: the extended `.meta` is used with older checkpoints of the same run: its saver asks for
statistics that they do not have, and `restore` fails. Keep the old `.meta` for them.

Source: tensorflow/python/training/saver.py (`BaseSaverBuilder.save_op`); tinghuiz/SfMLearner issue 17.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    model = subject.inventory.model
    if model is None or model.saved is None:
        return
    concerned = [
        layer
        for layer in subject.inventory.layers
        # The saver of one model says nothing of another one's variables in the same file.
        if layer.absent
        and not model.saved.intersection(layer.absent.values())
        and (model.names is None or model.names.intersection(layer.absent.values()))
    ]
    if concerned:
        names = tuple(name for layer in concerned for name in layer.absent.values())
        yield rule.finding(
            f"the graph's saver saves {len(model.saved)} variables and omits {len(names)} moving statistics of "
            f"{len(concerned)} layers, as Saver(tf.trainable_variables()) does; save with tf.train.Saver()",
            layers=tuple(layer.name for layer in concerned),
            variables=names,
            certainty="proven",
        )


_WEIGHTS = frozenset({"bn/gamma", "bn/beta"})
_STATISTICS = ("moving_mean", "moving_variance")

RULE = Rule(
    code="BN301",
    name="saver-omits-statistics",
    severity="error",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example(missing=_STATISTICS, facts=described())),
        lambda: holding(example(missing=_STATISTICS, facts=described()), saved=_WEIGHTS | {"bn/moving_mean"}),
        lambda: holding(example(facts=described()), saved=_WEIGHTS),
    ),
    sick=(lambda: holding(example(missing=_STATISTICS, facts=described()), saved=_WEIGHTS),),
)
