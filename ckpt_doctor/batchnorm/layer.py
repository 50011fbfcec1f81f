"""A batch-norm layer of a checkpoint, and the inventory of all its variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True, eq=False)
class GradientTrace:
    """A trained variable, and what an optimizer keeps of its gradients; float64, of the variable's own shape.

    Attributes:
        value: The variable.
        first: A decaying sum or mean of its gradients, in any unit that all variables of the optimizer share; None
            where the file has none.
        size: The root of the decaying sum or mean of their squares, likewise.
    """

    value: Array
    first: Array | None = None
    size: Array | None = None


@dataclass(frozen=True)
class TrainingMode:
    """How a layer ran while it was trained, as told by gradients that it cannot have had otherwise.

    Attributes:
        ran_on: The moments of each `batch`, or the `stored` statistics.
        by: What tells: optimizer `slots` of a bias in front, the values of such a bias (`weights`), or how kernel and
            gamma answer to each other (`scale`).
        shown: What was measured, in words and numbers.
        of: The layer whose weights tell; another one where layers that train alike share the evidence.
        from_the_start: Whether it ran on the initial values of its statistics all along; for `stored` only.
    """

    ran_on: Literal["batch", "stored"]
    by: Literal["slots", "weights", "scale"]
    shown: str
    of: str
    from_the_start: bool = False

    def proves(self, layer: str) -> bool:
        """Return whether this is proof for a layer: its own slots. All else is likely."""
        return self.by == "slots" and self.of == layer


@dataclass(frozen=True, eq=False)
class BatchNormLayer:
    """One batch-norm layer of a checkpoint.

    Attributes:
        name: The layer.
        variables: Role to the name of the variable that is in the file (`gamma`, `beta`, `moving_mean`,
            `moving_variance`; a role that is absent from the file is absent here).
        absent: Role to the name that the variable would have, for statistics that the layer needs and the file lacks.
        companions: Role to name, of what belongs to its statistics and is in the file (`moving_mean/biased` …).
        values: Role to value, each of shape `(channels,)` after squeezing axes of length one, in the stored dtype;
            a role whose bytes could not be read is absent.
        evidence: The strongest evidence for it.
        channels: Length of its vectors, where anything tells.
        epsilon: Added to the variance, where the model says so.
        momentum: Decay of the averages, where the model says so.
        facts: What the model says of it, where there is a model.
        absent_companions: Like `companions`, of what the model's saver restores and the file lacks.
        copies: Like `companions`, of averaged or exported copies of gamma and beta (`gamma/shadow`, `beta/twin` …).
        companion_values: Value of every companion and copy, by the same key.
        shapes: Role to the stored shape, axes of length one included.
        slots: Optimizer slots on its statistics.
        initial: Mean and variance that its averages start at: `0/1`, `0/0`, or None where nothing tells.
        trained: How it ran while it was trained, where gradients tell.
        by_company: Whether only what stands beside its variables says that it is batch norm, and no name.
    """

    name: str
    variables: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    evidence: Evidence = "names"
    channels: int | None = None
    epsilon: float | None = None
    momentum: float | None = None
    facts: LayerFacts | None = None
    absent_companions: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    companion_values: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    slots: tuple[str, ...] = ()
    initial: str | None = "0/1"
    by_company: bool = False
    trained: TrainingMode | None = None


@dataclass(frozen=True, eq=False)
class Inventory:
    """Every variable of a checkpoint, in exactly one of three places.

    Attributes:
        layers: The batch-norm layers.
        others: Role to names of all other variables is kept by name only: name to role (`weight`, `optimizer slot` …).
        not_judged: Name to reason, for variables that could be batch norm or not.
        evidence: What the judgement rests on, strongest first.
        model: What the model says, where there is one.
        steps: Training steps so far, by the file's own counter, where it has one.
    """

    layers: tuple[BatchNormLayer, ...]
    others: Mapping[str, str] = field(default_factory=dict)
    not_judged: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ("names",)
    model: ModelFacts | None = None
    steps: int | None = None
