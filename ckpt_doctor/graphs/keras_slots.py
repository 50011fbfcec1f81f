"""Whose slot is which, where a Keras optimizer only numbers its variables: `optimizer/vars/7`.

An optimizer makes its variables in the order of the trainable ones: for Adam both moments of the first variable, then
of the second (Keras 3 and tf_keras), or all first moments and then all second ones (standalone Keras 2, some releases
of Keras 3). Nothing in the file names them, so the order is believed only where the shapes of all of them fit, and only
one order fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.graphs.facts import OptimizerSlots

_Kind = Literal["first", "second", "root", "raised", "other"]
_Shape = tuple[int, ...]

# What each optimizer keeps of one variable (keras/src/optimizers, tf_keras/src/optimizers), in the order in which it
# is made; RMSprop's momentum is of steps that were divided by the root already, and says nothing of gradients.
_KEPT: dict[str, tuple[_Kind, ...]] = {
    **dict.fromkeys(("adam", "adamw", "lamb", "nadam"), ("first", "second")),
    "adamax": ("first", "root"),
    "rmsprop": ("second",),
    "sgd": ("first",),
    "lion": ("first",),
    "adagrad": ("raised",),
    "adadelta": ("second", "other"),
}
_WRAPPERS = ("inner_optimizer", "optimizer")


def numbered_slots(
    trainable: Sequence[Variable], kept: Sequence[Variable], training: str | None
) -> dict[str, OptimizerSlots]:
    """Return the slots of every trainable variable; empty where the order is not certain.

    Args:
        trainable: The trainable variables, in the order of the model.
        kept: The optimizer's variables, in its order.
        training: The JSON of the model's compile call, which names the optimizer.
    """
    name, config = _optimizer(training)
    slots = list(kept)
    # Counters and the learning rate come first.
    while slots and slots[0].shape == ():
        slots.pop(0)
    shapes = [variable.shape for variable in slots]
    fitting = []
    for order in _orders(name, config, [variable.shape for variable in trainable]):
        if [shape for _, _, shape in order] == shapes and order not in fitting:
            fitting.append(order)
    if len(fitting) != 1:
        return {}
    found: dict[str, dict[_Kind, str]] = {}
    for (number, kind, _), slot in zip(fitting[0], slots, strict=True):
        found.setdefault(trainable[number].name, {})[kind] = slot.name
    return {
        name: OptimizerSlots(
            first=kinds.get("first"),
            second=kinds.get("second") or kinds.get("root") or kinds.get("raised"),
            is_root="root" in kinds,
            starts_above_zero="raised" in kinds,
        )
        for name, kinds in found.items()
    }


def _optimizer(training: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return the class of the optimizer in lower case, and its config, inside wrappers such as loss scaling."""
    try:
        said = json.loads(training or "{}")
    except (ValueError, RecursionError):
        return "", {}
    entry = (said.get("optimizer") or said.get("optimizer_config")) if isinstance(said, dict) else None
    for _ in range(3):
        config = entry.get("config") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(config, dict):
            break
        inner = next((config[key] for key in _WRAPPERS if isinstance(config.get(key), dict)), None)
        if inner is None:
            return str(entry.get("class_name", "")).rpartition(">")[2].lower(), config
        entry = inner
    return (entry.lower() if isinstance(entry, str) else ""), {}


_Order = list[tuple[int, _Kind, _Shape]]


def _orders(name: str, config: Mapping[str, Any], shapes: Sequence[_Shape]) -> Iterator[_Order]:
    """Yield every order in which the optimizer may have made its variables: whose, of what kind, of which shape."""

    def all_of(kind: _Kind) -> _Order:
        return [(number, kind, shape) for number, shape in enumerate(shapes)]

    before: _Order = []
    if config.get("use_ema"):
        before += all_of("other")
    if config.get("gradient_accumulation_steps"):
        before += all_of("other")
    after: _Order = []
    if config.get("amsgrad"):
        after = all_of("other")
    if name == "rmsprop":
        after = (all_of("other") if config.get("momentum") else []) + (
            all_of("other") if config.get("centered") else []
        )
    if name == "sgd" and not config.get("momentum"):
        return
    if name == "adafactor":
        yield before + list(chain.from_iterable(_factored(number, shape) for number, shape in enumerate(shapes)))
        return
    kinds = _KEPT.get(name)
    if kinds is None:
        return
    yield [*before, *((number, kind, shape) for number, shape in enumerate(shapes) for kind in kinds), *after]
    yield [*before, *chain.from_iterable(all_of(kind) for kind in kinds), *after]


def _factored(number: int, shape: _Shape) -> _Order:
    """Return what Adafactor keeps: sums over rows and columns of what has both, and the second moment."""
    whole: _Order = [(number, "second", shape)]
    if len(shape) < 2:
        return whole
    return [(number, "other", shape[:-1]), (number, "other", (*shape[:-2], shape[-1])), *whole]
