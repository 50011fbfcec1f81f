"""BN201: the statistics are exactly what they were initialised to, beside trained weights.

A moving mean of exactly 0 and a moving variance of exactly 1 in every channel are the values that the layer starts with
(0 and 0 for averages that start there). Inference then normalises with numbers that have nothing to do with the data:
training looks fine, the served model is at chance.

The same values have three meanings. If the layer was trained with the moments of each batch, they are wrong, and this
rule reports them. If it ran on its stored statistics during training too, they are right (BN304); and some models use
the moments of the batch on purpose (BN306). A graph with gradients, or a Keras file with optimizer steps, tells which;
without either the finding is a warning.

Usual cause: the update ops never ran.
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = optimizer.minimize(loss)
In Keras: a hand-written training loop that drops the non-trainable updates, or momentum 1.0.
Repair: estimated from data by `ckpt-doctor fix`; an unproven case needs --unproven.
Source: tensorflow/tensorflow issues 11965 and 16102, ritheshkumar95/im2latex-tensorflow issue 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject

# Five standard deviations of the widest random start in use, N(1, 0.02) (Radford et al., DCGAN, 2015).
_RANDOM_START = 0.1


def untouched(layer: BatchNormLayer) -> str | None:
    """Return the pair of initial values that every channel of the statistics has, `0/1` or `0/0`, or None.

    A variance of 0 is an initial value only for averages that start there; elsewhere it is a dead layer's.
    """
    mean, variance = layer.values.get("moving_mean"), layer.values.get("moving_variance")
    if mean is None or variance is None or not mean.size or not variance.size or np.any(mean != 0):
        return None
    for start, of_variance in (("0/1", 1), ("0/0", 0)):
        if layer.initial in (start, None) and np.all(variance == of_variance):
            return start
    return None


def affine_is_trained(layer: BatchNormLayer) -> bool | None:
    """Return whether gamma or beta has left its initial value; None for a layer with neither.

    Beta starts at 0 everywhere. Gamma starts at 1, in the last layer of a residual block at 0, and in TFLearn,
    TensorLayer and DCGAN at random within a few hundredths of 1, so beside a beta it is believed only further away.
    """
    gamma, beta = layer.values.get("gamma"), layer.values.get("beta")
    if beta is not None and np.any(beta != 0):
        return True
    if gamma is None or not gamma.size:
        return None if beta is None else False
    if np.all(gamma == 0) or np.all(gamma == 1):
        return False
    return bool(beta is None or np.any(np.abs(gamma - 1) > _RANDOM_START))


def never_updated(layer: BatchNormLayer) -> str | None:
    """Return the initial values that the statistics still have although they should not, `0/1` or `0/0`; or None."""
    start = untouched(layer)
    facts = layer.facts
    if start is None or (facts is not None and facts.trained is False):
        return None
    # A layer that no step has touched says nothing about updates; BN210 judges it beside its siblings.
    return None if affine_is_trained(layer) is False else start


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    # Where no layer has a gamma or beta, only a step counter says that anything was trained at all.
    steps = subject.inventory.steps
    for layer in subject.inventory.layers:
        start = never_updated(layer)
        if start is None or (affine_is_trained(layer) is None and steps == 0):
            continue
        facts = layer.facts
        mean, variance = start.split("/")
        seen = (
            f"layer {layer.name}: all {layer.channels} channels have moving_mean exactly {mean} and moving_variance "
            f"exactly {variance}, the initial values"
        )
        names = tuple(layer.variables[role] for role in ("moving_mean", "moving_variance"))
        if facts is not None and facts.trained:
            why = "it was trained on batch statistics, so updates should have run; estimate them from data"
            yield rule.finding(f"{seen}; {why}", layer=layer, variables=names)
            continue
        if layer.evidence == "graph" and subject.inventory.model is not None and subject.inventory.model.trains:
            unknown = "the graph trains it on batch statistics only if its switch is fed, which no file shows"
        else:
            unknown = "whether updates should have run is not known; the training graph (--meta) would tell"
        yield rule.finding(
            f"{seen}; {unknown}; if the layer was trained with training=True, estimate them from data with --unproven",
            layer=layer,
            variables=names,
            severity="warning",
            certainty="unproven",
        )


_INITIAL: dict[str, Any] = {"moving_mean": 0, "moving_variance": 1}

RULE = Rule(
    code="BN201",
    name="never-updated",
    severity="error",
    repair="estimate",
    check=_check,
    healthy=(
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0.97)),
        lambda: holding(example(facts=described(), moving_mean=1e-30, moving_variance=1)),
        lambda: holding(example(facts=described(), gamma=1, beta=0, **_INITIAL)),
        lambda: holding(example(facts=described(), gamma=0, beta=0, **_INITIAL)),
        lambda: holding(example(facts=described(), gamma=[0.99, 1.01, 1.04], beta=0, **_INITIAL)),
        # A dead layer, whose averages start at 0 and 1: BN205.
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0)),
        lambda: holding(example(facts=described(mode="stored", trained=False), **_INITIAL)),
    ),
    sick=(
        lambda: holding(example(facts=described(), **_INITIAL)),
        lambda: holding(example(facts=described(), moving_mean=0, moving_variance=0, initial="0/0")),
        # A graph that only serves does not say how it was trained.
        lambda: holding(example(facts=described(mode="stored", trained=None), **_INITIAL)),
        lambda: holding(example(**_INITIAL)),
    ),
)
