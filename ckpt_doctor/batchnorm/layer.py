"""A batch-norm layer of a checkpoint, and the inventory of all its variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
STATISTICS = ("moving_mean", "moving_variance")


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
