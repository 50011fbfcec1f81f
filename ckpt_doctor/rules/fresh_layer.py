"""BN210: an untouched layer next to trained layers.

Its gamma is 1, its beta 0, its mean 0 and its variance 1, exactly and in every channel, while other layers have trained
values and statistics: it was created and never filled. The usual reason is a partial load: names did not match, the
loader skipped them with a warning, and the model was saved again, complete and broken.

Usual cause: `load_weights(..., by_name=True)` or `skip_mismatch=True` after a rename, `expect_partial()`, or
    `tf.train.init_from_checkpoint` with a scope that does not cover everything.

    model.load_weights(path)                                        # without by_name: fails instead of skipping
    tf.train.Checkpoint(model=model).restore(path).assert_consumed()

False positives: a layer that was added and not trained yet, one that the loss does not reach, or a branch that is not
used. A layer that was frozen from its start looks the same, so the finding is `likely` only if a graph or a config
shows that the layer is not frozen, otherwise `unproven`.

Repair: statistics are estimated from data by `ckpt-doctor fix` if `--unproven` or `--layers` asks for it; load gamma
and beta, and perhaps weights next to them, again from the original file.

Repair is unsafe when: the kernels next to the layer are as fresh: estimated statistics fit random weights and hide that
a load failed. Load the original file first.

Source: keras-team/keras issues 10265 and 21404, tensorflow/models issues 2474 and 9231.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.initial_values import at_initial_values, holds_only
from ckpt_doctor.rules._examples import described, example, holding
from ckpt_doctor.rules.interface import Rule, Subject


def _is_fresh(layer: BatchNormLayer) -> bool:
    if at_initial_values(layer) is None:
        return False
    affine = [
        holds_only(layer.values[role], start) for role, start in (("gamma", 1), ("beta", 0)) if role in layer.values
    ]
    return bool(affine) and all(affine)


def _is_trained(layer: BatchNormLayer) -> bool:
    return "moving_variance" in layer.values and at_initial_values(layer) is None and not _is_fresh(layer)


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    layers = subject.inventory.layers
    trained = sum(_is_trained(layer) for layer in layers)
    if not trained:
        return
    for layer in layers:
        if not _is_fresh(layer) or (layer.facts is not None and layer.facts.mode == "stored"):
            continue
        roles = [role for role in ("gamma", "beta", "moving_mean", "moving_variance") if role in layer.values]
        start = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": layer.values["moving_variance"].flat[0]}
        seen = ", ".join(f"{role} {start[role]:g}" for role in roles)
        yield rule.finding(
            f"layer {layer.name}: all {layer.channels} channels still have their initial values ({seen}), but "
            f"{trained} other layers are trained: a partial load probably skipped it; load it again, or estimate its "
            "statistics",
            layer=layer,
            variables=tuple(layer.variables[role] for role in roles),
            certainty="likely" if layer.evidence in ("graph", "config") else "unproven",
        )


def _fresh(name: str = "fresh", **more: Any) -> BatchNormLayer:
    return example(name, gamma=1, beta=0, moving_mean=0, moving_variance=1, **more)


RULE = Rule(
    code="BN210",
    name="fresh-layer",
    severity="warning",
    repair="estimate",
    check=_check,
    healthy=(
        # A model that has not been trained at all.
        lambda: holding(_fresh("bn1"), _fresh("bn2")),
        # Trained, and never updated: BN201.
        lambda: holding(example("bn1"), example("bn2", moving_mean=0, moving_variance=1)),
        lambda: holding(example("bn1"), _fresh(facts=described("fresh", mode="stored", trained=False))),
        # Without gamma and beta nothing shows that training passed it by.
        lambda: holding(example("bn1"), _fresh(missing=("gamma", "beta"))),
    ),
    sick=(
        lambda: holding(example("bn1"), _fresh()),
        lambda: holding(example("bn1"), _fresh(missing=("gamma",))),
    ),
)
