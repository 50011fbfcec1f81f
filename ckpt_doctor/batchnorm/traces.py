"""What a file keeps of the gradients around a batch norm: the linear layer in front of it, and optimizer slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ckpt_doctor.batchnorm.layer import BatchNormLayer, GradientTrace, Inventory
from ckpt_doctor.batchnorm.values import read
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.graphs.facts import OptimizerSlots
from ckpt_doctor.naming import read_name

# How optimizers call their slots, where the name of a slot holds that of its variable: TensorFlow 1 (optimizer.py:
# `_zeros_slot(var, …, self._name)`), object graphs. Not RMSprop's momentum, which is of steps and not of gradients.
_FIRST = frozenset("Adam Momentum MomentumW LARSOptimizer AdaMax adam_m m momentum".split())
_SECOND = frozenset("Adam_1 adam_v v rms accum_grad Adadelta".split())
_ROOT = frozenset("AdaMax_1 u".split())
# RMSProp's starts at 1 (tensorflow/python/training/rmsprop.py), Adagrad's at 0.1 (adagrad.py).
_RAISED = frozenset("RMSProp Adagrad accumulator".split())


class SlotFinder:
    """Finds the optimizer's slots of variables.

    Args:
        checkpoint: The file.
        inventory: What it holds, with what its model says of numbered slots.
    """

    def __init__(self, checkpoint: Checkpoint, inventory: Inventory) -> None:
        self._numbered = {} if inventory.model is None else inventory.model.slots
        self._named: dict[str, dict[str, str]] = {}
        for variable in checkpoint.variables:
            said = read_name(variable.name)
            if said.kind == "slot" and said.of:
                kinds = self._named.setdefault(said.of, {})
                # Where two optimizers train one variable, neither speaks of all its gradients.
                kinds[said.last] = "" if said.last in kinds else variable.name
        # A slot may stand below the scope in which the optimizer was made.
        self._scoped: dict[str, list[str]] = {}
        for owner in self._named:
            parts = owner.split("/")
            for position in range(1, len(parts)):
                self._scoped.setdefault("/".join(parts[position:]), []).append(owner)

    def of(self, name: str) -> OptimizerSlots:
        """Return the slots of a variable; empty ones where the file has none that are certainly its own."""
        if name in self._numbered:
            return self._numbered[name]
        slots = self._named.get(name)
        if slots is None:
            owners = self._scoped.get(name, ())
            slots = self._named[owners[0]] if len(owners) == 1 else {}

        def of_kind(kinds: frozenset[str]) -> str | None:
            return next((slots[kind] for kind in slots if kind in kinds), None) or None

        root, raised = of_kind(_ROOT), of_kind(_RAISED)
        return OptimizerSlots(
            first=None if "rms" in slots else of_kind(_FIRST),
            second=of_kind(_SECOND) or root or raised,
            is_root=root is not None,
            starts_above_zero=raised is not None,
        )


def traces(
    checkpoint: Checkpoint, slots: SlotFinder, layer: BatchNormLayer, roles: Iterable[str]
) -> dict[str, GradientTrace]:
    """Return what the file keeps of the gradients of a layer's variables, and of the linear layer in front of it.

    Args:
        checkpoint: The file.
        slots: Its optimizer slots.
        layer: A layer with a linear layer in front.
        roles: Of `bias`, `kernel`, `gamma`, `beta`; what is absent or damaged is left out.
    """
    front = layer.facts.front if layer.facts is not None else None
    names: Mapping[str, str | None] = {
        "bias": front.bias if front is not None else None,
        "kernel": front.kernel if front is not None else None,
        **{role: layer.variables.get(role) for role in ("gamma", "beta")},
    }
    found: dict[str, GradientTrace] = {}
    for role in roles:
        name = names[role]
        value = None if name is None else _exact(checkpoint, name)
        if name is None or value is None:
            continue
        kept = slots.of(name)
        first = None if kept.first is None else _exact(checkpoint, kept.first)
        second = None if kept.second is None else _exact(checkpoint, kept.second)
        if first is not None and first.shape != value.shape:
            first = None
        if second is not None and (second.shape != value.shape or (second < 0).any()):
            second = None
        if second is not None and kept.starts_above_zero:
            # What is left of the start is at most the least that any channel has.
            second = second - second.min()
        size = second if second is None or kept.is_root else np.sqrt(second)
        found[role] = GradientTrace(value, first, size)
    return found


def _exact(checkpoint: Checkpoint, name: str) -> Array | None:
    variable = checkpoint.variable(name)
    # Sums in half precision round by more than what is to be told apart.
    if variable is None or variable.dtype not in ("float32", "float64"):
        return None
    value = read(variable)
    if value is None:
        return None
    exact = np.asarray(value, np.float64)
    return exact if np.isfinite(exact).all() else None
