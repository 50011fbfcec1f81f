"""BN304: the layer was trained with its stored statistics, and they are right.

Training normalised with the stored 0 and 1 and never with the moments of a batch, so the layer was a fixed
scale and shift all along, and its weights expect exactly these values. Estimating statistics from data would break a
working model.

The graph, or a config, shows it; or the gradients do: a bias in front of the layer and beta moved alike, or the
gradients of kernel and gamma answer to each other; or the train op runs the updates of a layer whose statistics never
moved, so that its switch was off all along (`likely`).

Usual cause: `tf.layers.batch_normalization` called without `training=`, whose default is False; in Keras a layer, or a
    model around it, that is frozen (`trainable = False`) while the rest is trained.
    x = tf.layers.batch_normalization(x, training=is_training)

False positives: a teacher or target network whose weights are copied from a trained network and whose statistics are
not: its graph never trains it, and its 0 and 1 are wrong. In Keras, a layer that was frozen after its training, just
before the save (`likely`, as a config shows only the state at the save).

Repair: none; `ckpt-doctor fix` refuses without --force. To get batch norm, correct the call and train again.

Repair is unsafe when: always, apart from the two cases above: `--force` replaces the statistics that the weights were
trained with, and a working model breaks.

Source: Belval/CRNN issue 67, dmzou/RSRAE issue 2, lindawangg/COVID-Net issue 163.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.stored_in_training import certainty_of_stored, trained_on_stored
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    concerned = [layer for layer in subject.inventory.layers if trained_on_stored(layer)]
    if concerned:
        yield rule.finding(
            f"{len(concerned)} layers were trained with their stored statistics, which are still 0/1{_shown(concerned)}"
            "; the weights depend on these values, so do not re-estimate them",
            layers=tuple(layer.name for layer in concerned),
            variables=tuple(
                layer.variables[role] for layer in concerned for role in ("moving_mean", "moving_variance")
            ),
            certainty="proven" if all(certainty_of_stored(layer) == "proven" for layer in concerned) else "likely",
        )


def _shown(layers: list[BatchNormLayer]) -> str:
    """Return what the gradients of the first layer show that ran on stored statistics, for a message."""
    told = (layer.trained for layer in layers)
    return next((f" ({mode.of}: {mode.shown})" for mode in told if mode is not None and mode.ran_on == "stored"), "")


_INITIAL: dict[str, Any] = {"moving_mean": 0, "moving_variance": 1}

RULE = Rule(
    code="BN304",
    name="inference-mode-in-training",
    severity="note",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example(facts=described(), **_INITIAL)),
        # A network that was fine-tuned with the statistics of its first training.
        lambda: holding(example(facts=described(mode="stored", trained=False))),
    ),
    sick=(lambda: holding(example(facts=described(mode="stored", trained=False), **_INITIAL)),),
)
