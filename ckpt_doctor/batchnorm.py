"""Which variables of a checkpoint form which batch-norm layer.

Takes a checkpoint's variables and what its model says (`graphs`), gives an `Inventory`. Evidence ranks graph > config >
object graph > names. Everything is accounted for: variables of layers + other variables + not judged = all variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


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


@dataclass(frozen=True, eq=False)
class Inventory:
    """Every variable of a checkpoint, in exactly one of three places.

    Attributes:
        layers: The batch-norm layers.
        others: Role to names of all other variables is kept by name only: name to role (`weight`, `optimizer slot` …).
        not_judged: Name to reason, for variables that could be batch norm or not.
        evidence: What the judgement rests on, strongest first.
        model: What the model says, where there is one.
    """

    layers: tuple[BatchNormLayer, ...]
    others: Mapping[str, str] = field(default_factory=dict)
    not_judged: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ("names",)
    model: ModelFacts | None = None
