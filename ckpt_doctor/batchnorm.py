"""Which variables of a checkpoint form which batch-norm layer.

Takes a checkpoint's variables and what its model says (`graphs`), gives an `Inventory`. Evidence ranks graph > config >
object graph > names. Everything is accounted for: variables of layers + other variables + not judged = all variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts
from ckpt_doctor.naming import looks_like_batch_norm, read_name, with_role

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
_SPOKEN = {"slot": "optimizer slot", "shadow": "shadow", "counter": "counter"}


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


def take_inventory(checkpoint: Checkpoint, facts: ModelFacts | None) -> Inventory:
    """Return every variable of the checkpoint in its place.

    Args:
        checkpoint: The checkpoint; the values of its batch-norm layers are read.
        facts: What its model says, or None.
    """
    layers: list[BatchNormLayer] = []
    claimed: set[str] = set()
    for described in facts.layers if facts is not None else ():
        layer = _described(checkpoint, facts.evidence if facts is not None else "names", described)
        if layer is not None and not claimed & set(layer.variables.values()):
            layers.append(layer)
            claimed |= {*layer.variables.values(), *layer.companions.values()}
    model_is_known = facts is not None and facts.evidence in ("graph", "config") and not facts.problems
    named = _Named(checkpoint, claimed, facts.other_normalization if facts is not None else frozenset())
    found, others, not_judged = named.sort(model_is_known)
    layers = [_with_companions(layer, others, checkpoint) for layer in layers] + found
    for layer in layers:
        for name in layer.companions.values():
            others.pop(name, None)
    evidence: list[Evidence] = [facts.evidence] if facts is not None and not facts.problems else []
    return Inventory(
        layers=tuple(_with_values(checkpoint, layer) for layer in layers),
        others=others,
        not_judged=not_judged,
        evidence=("names", *evidence),
        model=facts,
    )


def _described(checkpoint: Checkpoint, evidence: Evidence, facts: LayerFacts) -> BatchNormLayer | None:
    """Return the layer that the model describes, or None where this file holds nothing of it."""
    names = {
        "gamma": facts.gamma,
        "beta": facts.beta,
        "moving_mean": facts.moving_mean,
        "moving_variance": facts.moving_variance,
    }
    present = {role: name for role, name in names.items() if name is not None and checkpoint.variable(name) is not None}
    absent = {
        role: name
        for role, name in names.items()
        if name is not None and role in ("moving_mean", "moving_variance") and role not in present
    }
    if not present and not (
        absent and facts.gamma is None and facts.beta is None and _scope_is_stored(checkpoint, absent)
    ):
        return None
    companions = {
        f"{companion.of}/{companion.role}": companion.name
        for companion in facts.companions
        if checkpoint.variable(companion.name) is not None
    }
    return BatchNormLayer(
        name=facts.name,
        variables=present,
        absent=absent,
        companions=companions,
        evidence=evidence,
        channels=facts.channels,
        epsilon=facts.epsilon,
        momentum=facts.momentum,
        facts=facts,
    )


def _scope_is_stored(checkpoint: Checkpoint, absent: Mapping[str, str]) -> bool:
    """Return whether the file holds anything of the part of the model that the absent variables belong to.

    A layer without gamma and beta leaves no trace of its own, and a file may hold a part of the model only.
    """
    tops = {name.split("/")[0] for name in absent.values() if "/" in name}
    scopes = {name.rpartition("/")[0].rpartition("/")[0] for name in absent.values()} - {""}
    return any(
        variable.name.startswith(tuple(f"{scope}/" for scope in (scopes or tops))) for variable in checkpoint.variables
    ) or (not scopes and bool(checkpoint.variables))


class _Named:
    """Variables grouped by what their names say."""

    def __init__(self, checkpoint: Checkpoint, claimed: set[str], other_normalization: frozenset[str]) -> None:
        self.checkpoint = checkpoint
        self.other_normalization = other_normalization
        self.groups: dict[str, dict[str, str]] = {}
        self.maybe: dict[str, dict[str, str]] = {}
        self.companions: dict[str, dict[str, str]] = {}
        self.others: dict[str, str] = {}
        for variable in checkpoint.variables:
            if variable.name in claimed:
                continue
            said = read_name(variable.name)
            if said.kind == "batch-norm" and said.role not in self.groups.get(said.layer, {}):
                self.groups.setdefault(said.layer, {})[said.role] = variable.name
            elif said.kind == "maybe":
                self.maybe.setdefault(said.layer, {})[said.role] = variable.name
            elif said.kind == "companion" or (said.kind == "shadow" and said.role.startswith("moving_")):
                kind = said.role if said.kind == "companion" else "shadow"
                of = said.of if said.kind == "companion" else said.role
                self.companions.setdefault(said.layer, {})[f"{of}/{kind}"] = variable.name
                self.others[variable.name] = "counter" if kind == "local_step" else kind
            else:
                self.others[variable.name] = "weight" if said.kind == "other" else _SPOKEN.get(said.kind, said.kind)

    def sort(self, model_is_known: bool) -> tuple[list[BatchNormLayer], dict[str, str], dict[str, str]]:
        """Return the layers, the other variables with their roles, and what could be either, with the reason."""
        layers: list[BatchNormLayer] = []
        not_judged: dict[str, str] = {}
        for scope, roles in self._merged().items():
            statistics = {"moving_mean", "moving_variance"} & set(roles)
            alone = not statistics and (
                model_is_known or scope in self.other_normalization or not looks_like_batch_norm(scope)
            )
            if alone:
                self.others.update(dict.fromkeys(roles.values(), "weight"))
                self.others.update({name: role for role, name in roles.items()})
                continue
            any_name = next(iter(roles.values()))
            absent = {
                role: with_role(any_name, role) for role in ("moving_mean", "moving_variance") if role not in roles
            }
            shadows = self.companions.get(scope, {})
            layers.append(BatchNormLayer(scope, roles, absent, shadows, channels=self._channels(roles)))
        return layers, self.others, not_judged

    def _merged(self) -> dict[str, dict[str, str]]:
        """Return the groups, with words that are roles only in company added where the company is there."""
        groups = {scope: dict(roles) for scope, roles in self.groups.items()}
        for scope, roles in self.maybe.items():
            company = groups.get(scope, {})
            pair = self._are_a_pair(roles) and (
                "gamma" in roles or "beta" in roles or bool(company) or looks_like_batch_norm(scope)
            )
            statistics = {"moving_mean", "moving_variance"} & set(company)
            if pair or (statistics and not {"moving_mean", "moving_variance"} & set(roles)):
                groups[scope] = {**roles, **company}
            else:
                self.others.update(dict.fromkeys(roles.values(), "weight"))
        return groups

    def _are_a_pair(self, roles: Mapping[str, str]) -> bool:
        """Return whether a plain `mean` and `variance` are there, both vectors of one length.

        A preprocessing `Normalization` layer has both and a `count` beside them; it is no batch norm.
        """
        if not {"moving_mean", "moving_variance"} <= set(roles):
            return False
        shapes = [self.checkpoint.variable(roles[role]) for role in ("moving_mean", "moving_variance")]
        count = with_role(roles["moving_mean"], "count")
        return (
            shapes[0] is not None
            and shapes[1] is not None
            and shapes[0].shape == shapes[1].shape
            and self.checkpoint.variable(count) is None
        )

    def _channels(self, roles: Mapping[str, str]) -> int | None:
        for name in roles.values():
            variable = self.checkpoint.variable(name)
            if variable is not None:
                sizes = [size for size in variable.shape if size != 1] or [1]
                if len(sizes) == 1:
                    return sizes[0]
        return None


def _with_companions(layer: BatchNormLayer, others: Mapping[str, str], checkpoint: Checkpoint) -> BatchNormLayer:
    """Return the layer with the shadows of its statistics, which no model description lists."""
    shadows = {}
    for role in ("moving_mean", "moving_variance"):
        for table in (layer.variables, layer.absent):
            shadow = f"{table.get(role)}/ExponentialMovingAverage"
            if shadow in others and checkpoint.variable(shadow) is not None:
                shadows[f"{role}/shadow"] = shadow
    return replace(layer, companions={**layer.companions, **shadows}) if shadows else layer


def _with_values(checkpoint: Checkpoint, layer: BatchNormLayer) -> BatchNormLayer:
    values = {}
    channels = layer.channels
    for role, name in layer.variables.items():
        variable = checkpoint.variable(name)
        assert variable is not None
        try:
            value = variable.read()
        except UnreadableCheckpoint:
            # The damage is reported by the rule that is about it; here the value is merely not known.
            continue
        values[role] = value.reshape(-1) if value.ndim > 1 and value.size == max(value.shape) else value
        if channels is None and values[role].ndim == 1:
            channels = values[role].size
    return replace(layer, values=values, channels=channels)
