"""BN304: the layer was trained with its stored statistics, and they are right.

The training graph normalises with the stored 0 and 1 and never with the moments of a batch, so the layer was a fixed
scale and shift all along, and its weights expect exactly these values. Estimating statistics from data would break a
working model.

Usual cause: `tf.layers.batch_normalization` called without `training=`, whose default is False.
    x = tf.layers.batch_normalization(x, training=is_training)
Repair: none; `ckpt-doctor fix` refuses without --force. To get batch norm, mend the call and train again.
Source: Belval/CRNN issue 67, dmzou/RSRAE issue 2, lindawangg/COVID-Net issue 163.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.finding import Finding
from ckpt_doctor.graphs.facts import LayerFacts, ModelFacts
from ckpt_doctor.rules.interface import Rule, Subject
from ckpt_doctor.rules.never_updated import untouched


def trained_on_stored(layer: BatchNormLayer) -> bool:
    """Return whether the layer was trained with the statistics that it started with."""
    facts = layer.facts
    return (
        facts is not None
        and layer.evidence == "graph"
        and facts.mode == "stored"
        and facts.trained is False
        and untouched(layer) is not None
    )


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    concerned = [layer for layer in subject.inventory.layers if trained_on_stored(layer)]
    if concerned:
        yield rule.finding(
            f"{len(concerned)} layers were trained with their stored statistics, which are still 0/1: the weights expect "
            "them, so they are right; do not estimate them anew",
            layers=tuple(layer.name for layer in concerned),
            variables=tuple(
                layer.variables[role] for layer in concerned for role in ("moving_mean", "moving_variance")
            ),
        )


def _subject(mode: str, mean: float = 0.0) -> Subject:
    import numpy as np

    names = {role: f"bn/{role}" for role in ("gamma", "beta", "moving_mean", "moving_variance")}
    values = {"moving_mean": np.full(3, mean, np.float32), "moving_variance": np.ones(3, np.float32)}
    facts = LayerFacts("bn", *names.values(), mode="stored" if mode == "stored" else "switch", trained=mode != "stored")
    layer = BatchNormLayer("bn", names, values=values, channels=3, facts=facts, evidence="graph")
    return Subject(Inventory((layer,), model=ModelFacts("graph", (facts,), trains=True)))


RULE = Rule(
    code="BN304",
    name="inference-mode-in-training",
    severity="note",
    repair="none",
    check=_check,
    # The second healthy one is a fine-tuned network whose statistics came from elsewhere.
    healthy=(lambda: _subject("switch"), lambda: _subject("stored", mean=0.3)),
    sick=(lambda: _subject("stored"),),
)
