"""BN302: no training op runs the update ops.

The graph normalises with the moments of each batch while it trains, and nothing in it waits both for a gradient update
and for the updates of the moving statistics. Running the train op therefore never fills them. Reported only together
with statistics that are missing or untouched (BN101, BN102, BN201), because a script may also run the updates by hand,
`sess.run([train_op, updates])`, which no graph shows. It is proven only if the layers normalise with the moments of
their batch whatever is fed, and the values are still those of the start; a switch makes it unproven.

Usual cause: the collection UPDATE_OPS is not tied to the train op, or was read before the model was built.
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)   # after the model is built
    with tf.control_dependencies(updates):
        train_op = optimizer.minimize(loss)
Keras layers in a TF1 session keep their updates in `model.updates`, not in UPDATE_OPS: run those.

False positives: a script that runs the updates by hand, if the statistics are missing from the file and their values
cannot tell; a switch (placeholder or bool variable) that was at inference all along, so that there was nothing to
update. Neither is `proven`.

Repair: the statistics by `ckpt-doctor fix`; the training code by hand.

Repair is unsafe when: the layer was trained on its stored 0 and 1 (BN304): estimates break it. When the training code
is corrected and training goes on from this file, the averages start at 0 and 1: see BN202.

Source: tensorflow/tensorflow issues 11965, 16102 and 19643.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.stored_in_training import certainty_of_batch, never_updated, ran_on
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    concerned = [
        layer
        for layer in subject.inventory.layers
        if layer.facts is not None
        and layer.facts.updates_run is False
        and ran_on(layer) != "stored"
        and (layer.absent or never_updated(layer) is not None)
    ]
    if not concerned:
        return
    has_ops = any(layer.facts is not None and layer.facts.has_update_ops for layer in concerned)
    what = "runs their update ops" if has_ops else "updates them, because they have no update ops"
    confirmed = all(never_updated(layer) is not None for layer in concerned)
    # A switch that is at inference unless it is fed: then there may have been nothing to update.
    known = [certainty_of_batch(layer) for layer in concerned]
    sure = None not in known
    yield rule.finding(
        f"no training op of the graph {what} ({len(concerned)} layers); tie tf.GraphKeys.UPDATE_OPS to the train op "
        "with tf.control_dependencies",
        layers=tuple(layer.name for layer in concerned),
        variables=tuple(
            name
            for layer in concerned
            for role in ("moving_mean", "moving_variance")
            if (name := layer.variables.get(role) or layer.absent.get(role)) is not None
        ),
        severity=None if sure else "warning",
        certainty=("proven" if confirmed and "likely" not in known else "likely") if sure else "unproven",
    )


_INITIAL: dict[str, Any] = {"moving_mean": 0, "moving_variance": 1}

RULE = Rule(
    code="BN302",
    name="updates-not-run",
    severity="error",
    repair="none",
    check=_check,
    healthy=(
        lambda: holding(example(facts=described(updates_run=True), **_INITIAL)),
        # Its updates were run by hand: the values show it.
        lambda: holding(example(facts=described(updates_run=False))),
        lambda: holding(example(facts=described(updates_run=None), **_INITIAL)),
        # Nothing was trained: neither was there anything to update.
        lambda: holding(example(facts=described(updates_run=False), gamma=1, beta=0, **_INITIAL)),
    ),
    sick=(
        lambda: holding(example(facts=described(updates_run=False, trained=None), **_INITIAL)),
        lambda: holding(example(facts=described(updates_run=False), **_INITIAL)),
        lambda: holding(example(facts=described(updates_run=False), missing=("moving_mean", "moving_variance"))),
    ),
)
