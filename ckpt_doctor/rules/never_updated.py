"""BN201: the statistics have exactly their initial values, next to trained weights.

A moving mean of exactly 0 and a moving variance of exactly 1 in every channel are the values that the layer starts with
(0 and 0 for averages that start there). Inference then normalises with numbers that have nothing to do with the data:
training looks fine, the served model is at chance.

The same values have three meanings. If the layer was trained with the moments of each batch, they are wrong, and this
rule reports them. If it ran on its stored statistics during training too, they are right (BN304); and some models use
the moments of the batch on purpose (BN306).

The finding is proven if the training graph itself shows that the layer normalised with the moments of each batch,
whatever was fed, or if the optimizer's slots show that a bias in front of the layer had no gradient, as it has none
behind batch moments. It is likely if the values of such a bias show that, or the slots of another layer that trained
alike, or how the gradients of kernel and gamma answer to each other. A config, an iteration counter, a placeholder or
the optimizer alone make it an unproven warning, and so does a model of zero iterations, which may have been trained
before it was compiled again.

A teacher or target network, whose weights the graph assigns from those of another and trains by no gradient, is proven
too: its statistics must be those of the other.

If only one of the two has its initial value, in every layer, the code updates the mean and not the variance, or the
reverse. The finding then names only that vector.

Usual cause: the update ops never ran.
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = optimizer.minimize(loss)
In Keras: a hand-written training loop that drops the non-trainable updates, or momentum 1.0.

False positives: models that were trained in inference mode, for which 0 and 1 are right: an own loop or `train_step`
that calls the model with `training=False`; a wrapper or an outer model that freezes the layer; `training=False` at the
call in a Keras 2 config; a switch that is a placeholder or a bool variable and was never true. Zero iterations prove
nothing either: a model that was loaded, compiled and saved again has them, whatever was trained before. All of these
are `unproven`.

Repair: estimated from data by `ckpt-doctor fix`; what is unproven, with `--unproven` only.

Repair is unsafe when: the layer was trained on its stored statistics, as above: estimates take a working model from
0.97 to 0.78 or worse. Use `--unproven` only if the training code ran the layer with `training=True`, and compare
accuracy before and after (`--metric`).

Source: tensorflow/tensorflow issues 11965 and 16102, ritheshkumar95/im2latex-tensorflow issue 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.one_statistic import one_at_its_start
from ckpt_doctor.heuristics.stored_in_training import certainty_of_batch, followed, never_updated, ran_on
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        start = never_updated(layer)
        # A receipt says that its statistics were put back as they started.
        if start is None or layer.name in subject.repaired:
            continue
        mean, variance = start.split("/")
        seen = (
            f"layer {layer.name}: all {layer.channels} channels have moving_mean exactly {mean} and moving_variance "
            f"exactly {variance}, the initial values"
        )
        source = followed(layer, subject.by_name)
        if source is not None:
            yield rule.finding(
                f"{seen}; its weights are copied or averaged from the trained layer {source.name}, but its statistics "
                f"are not; copy those of {source.name} too",
                layer=layer,
                variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
                certainty="proven",
                repair="copy",
            )
            continue
        certainty = certainty_of_batch(layer)
        yield rule.finding(
            f"{seen}; it was trained on batch statistics{_by_gradients(layer)}, so updates should have run; estimate "
            "the statistics from data"
            if certainty is not None
            else f"{seen}; {_unknown(layer, subject)}; if the layer was trained with training=True, estimate the "
            "statistics from data with --unproven",
            layer=layer,
            variables=tuple(layer.variables[role] for role in ("moving_mean", "moving_variance")),
            severity=None if certainty is not None else "warning",
            certainty=certainty or "unproven",
        )
    yield from _one_statistic(rule, subject)


def _one_statistic(rule: Rule, subject: Subject) -> Iterator[Finding]:
    """Yield the layers of a model whose updates forget one of the two statistics."""
    forgotten = one_at_its_start(subject.inventory.layers)
    for layer in subject.inventory.layers:
        role = forgotten.get(layer.name)
        if role is None or layer.name in subject.repaired or layer.name in subject.role_swaps:
            continue
        if ran_on(layer) == "stored":
            continue
        value, other = ("0", "moving_variance") if role == "moving_mean" else ("1", "moving_mean")
        seen = (
            f"layer {layer.name}: all {layer.channels} channels have {role} exactly {value}, the initial value, as in "
            f"every layer, while {other} moved: the updates omit {role}"
        )
        certainty = certainty_of_batch(layer)
        yield rule.finding(
            f"{seen}; it was trained on batch statistics{_by_gradients(layer)}; estimate it from data"
            if certainty is not None
            else f"{seen}; if it was trained on batch statistics, estimate it from data with --unproven",
            layer=layer,
            variables=(layer.variables[role],),
            severity=None if certainty is not None else "warning",
            certainty=certainty or "unproven",
        )


def _by_gradients(layer: BatchNormLayer) -> str:
    """Return what gradients show of a layer that ran on batch statistics, for a message; empty where its graph does."""
    told = layer.trained
    if told is None or (layer.facts is not None and layer.facts.trained):
        return ""
    elsewhere = told.by != "scale" and told.of != layer.name
    return f" ({told.shown}{f', in {told.of}, which trained alike' if elsewhere else ''})"


def _unknown(layer: BatchNormLayer, subject: Subject) -> str:
    """Return why nothing proves that updates should have run."""
    if layer.evidence == "graph" and subject.inventory.model is not None and subject.inventory.model.trains:
        return "the graph trains it on batch statistics only if its switch is fed, and no file shows that"
    if layer.evidence == "config":
        steps = subject.inventory.steps
        trained = (
            f"its optimizer has made {steps:,} steps" if steps else "no steps since it was compiled, or no counter"
        )
        return f"{trained}, and the file does not show the layer's training mode"
    return "it is unknown whether updates should have run; the training graph (--meta) shows it"


_INITIAL: dict[str, Any] = {"moving_mean": 0, "moving_variance": 1}

RULE = Rule(
    code="BN201",
    name="never-updated",
    severity="error",
    repair="estimate",
    check=_check,
    fixed="likely",
    healthy=(
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0.97)),
        lambda: holding(example(facts=described(), moving_mean=1e-30, moving_variance=1)),
        lambda: holding(example(facts=described(), gamma=1, beta=0, **_INITIAL)),
        lambda: holding(example(facts=described(), gamma=0, beta=0, **_INITIAL)),
        lambda: holding(example(facts=described(), gamma=[0.99, 1.01, 1.04], beta=0, **_INITIAL)),
        # A dead layer, whose averages start at 0 and 1: BN205.
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0)),
        lambda: holding(example(facts=described(mode="stored", trained=False), **_INITIAL)),
        # One layer alone may have a reason of its own.
        lambda: holding(example("a", moving_variance=1), example("b")),
    ),
    sick=(
        lambda: holding(example(facts=described(), **_INITIAL)),
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0, initial="0/0")),
        # A graph that only serves does not say how it was trained.
        lambda: holding(example(facts=described(mode="stored", trained=None), **_INITIAL)),
        lambda: holding(example(**_INITIAL)),
        # The updates forget the variance in every layer.
        lambda: holding(example("a", moving_variance=1), example("b", moving_variance=1)),
    ),
)
