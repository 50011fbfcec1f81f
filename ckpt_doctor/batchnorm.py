"""Which variables of a checkpoint form which batch-norm layer.

Takes a checkpoint's variables and what its model says (`graphs`), gives an `Inventory`. Evidence ranks graph > config >
object graph > names. Everything is accounted for: variables of layers + other variables + not judged = all variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ckpt_doctor.checkpoint import Array, Checkpoint, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts
from ckpt_doctor.naming import Group, Grouped, drifted, group_variables, read_name

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
STATISTICS = ("moving_mean", "moving_variance")
# What counts training steps: TF1's, then those of Keras' optimizers in each of its formats.
_STEPS = re.compile(
    r"(^|/)(global_step|_?iterations?|iter)$|^optimizer/vars/0$|^optimizer_weights/.*(iterations?|iter)$"
)

# Lists that a TensorFlow 2 export keeps its variables in.
_LISTED = re.compile(r"^(?P<list>_?[a-z_]*variables)/\d+/\.ATTRIBUTES/VARIABLE_VALUE$")


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
    unmatched: list[BatchNormLayer] = []
    claimed: set[str] = set()
    for described in facts.layers if facts is not None else ():
        layer = _described(checkpoint, facts.evidence if facts is not None else "names", described)
        if claimed & set(layer.variables.values()):
            continue
        claimed |= {*layer.variables.values(), *layer.companions.values()}
        (layers if _is_here(checkpoint, layer, described) else unmatched).append(layer)
    twins = _twins(checkpoint, claimed)
    grouped = _by_name(checkpoint, claimed | set(twins), facts)
    layers, grouped = _with_drifted(checkpoint, layers, unmatched, grouped)
    layers = [_with_relatives(layer, grouped, checkpoint) for layer in layers]
    layers += [_named(checkpoint, group) for group in grouped.layers]
    layers = [_with_twins(layer, twins) for layer in layers]
    others = grouped.others | dict.fromkeys(twins, "twin")
    for layer in layers:
        for name in (*layer.variables.values(), *layer.companions.values()):
            others.pop(name, None)
    evidence: list[Evidence] = [facts.evidence] if facts is not None and not facts.problems else []
    return Inventory(
        layers=tuple(_with_values(checkpoint, _with_averages(checkpoint, layer, others)) for layer in layers),
        others=others,
        not_judged=grouped.not_judged,
        evidence=("names", *evidence),
        model=facts,
        steps=_steps(checkpoint),
    )


def _described(checkpoint: Checkpoint, evidence: Evidence, facts: LayerFacts) -> BatchNormLayer:
    """Return the layer that the model describes, with what of it is in the file."""
    names = {role: name for role in ROLES if (name := getattr(facts, role)) is not None}
    present = {role: name for role, name in names.items() if checkpoint.variable(name) is not None}
    absent = {role: name for role, name in names.items() if role in STATISTICS and role not in present}
    companions: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for companion in facts.companions:
        here = checkpoint.variable(companion.name) is not None
        (companions if here else lacking)[f"{companion.of}/{companion.role}"] = companion.name
    return BatchNormLayer(
        name=facts.name,
        variables=present,
        absent=absent,
        companions=companions,
        evidence=facts.evidence or evidence,
        channels=facts.channels,
        epsilon=facts.epsilon,
        momentum=facts.momentum,
        facts=facts,
        absent_companions=lacking,
        initial=facts.initial,
    )


def _is_here(checkpoint: Checkpoint, layer: BatchNormLayer, facts: LayerFacts) -> bool:
    """Return whether the file is meant to hold a layer: a file may hold a part of a graph only.

    A layer without gamma and beta leaves no trace of its own; there the part of the model that it belongs to tells. A
    config describes the very file that it lies in.
    """
    if layer.variables or any(key.partition("/")[0] in STATISTICS for key in layer.companions):
        return True
    if not layer.absent:
        return False
    if layer.evidence == "config":
        return any(read_name(variable.name).kind in ("other", "batch-norm") for variable in checkpoint.variables)
    return facts.gamma is None and facts.beta is None and _scope_is_stored(checkpoint, layer.absent)


def _scope_is_stored(checkpoint: Checkpoint, absent: Mapping[str, str]) -> bool:
    """Return whether the file holds anything of the part of the model that the absent variables belong to."""
    tops = {name.split("/")[0] for name in absent.values() if "/" in name}
    scopes = {name.rpartition("/")[0].rpartition("/")[0] for name in absent.values()} - {""}
    return any(
        variable.name.startswith(tuple(f"{scope}/" for scope in (scopes or tops))) for variable in checkpoint.variables
    ) or (not scopes and bool(checkpoint.variables))


def _by_name(checkpoint: Checkpoint, claimed: set[str], facts: ModelFacts | None) -> Grouped:
    """Return what the names of the variables say that no description has claimed."""
    whole = facts is not None and facts.evidence in ("graph", "config") and not facts.problems
    return group_variables(
        [variable for variable in checkpoint.variables if variable.name not in claimed],
        model_is_known=whole,
        other_normalization=facts.other_normalization if facts is not None else (),
        positional=checkpoint.format in ("keras-v3", "keras-weights-v3"),
        numbered=checkpoint.attributes.get("era") == "0.3",
    )


def _with_drifted(
    checkpoint: Checkpoint, layers: list[BatchNormLayer], unmatched: list[BatchNormLayer], grouped: Grouped
) -> tuple[list[BatchNormLayer], Grouped]:
    """Attach statistics that belong to no layer to layers that have none, where exactly one way fits."""
    described = [layer for layer in layers if set(layer.absent) == set(STATISTICS)]
    expected = [Group(layer.name, dict(layer.variables), dict(layer.absent)) for layer in (described or unmatched)]
    named = [group for group in grouped.layers if set(group.absent) == set(STATISTICS) and group.roles]
    if not expected:
        expected = named

    def length(group: Group) -> int | None:
        found = [variable for name in group.roles.values() if (variable := checkpoint.variable(name)) is not None]
        known = {int(np.prod(variable.shape, dtype=np.int64)) for variable in found}
        known |= {layer.channels for layer in (*layers, *unmatched) if layer.name == group.name and layer.channels}
        return known.pop() if len(known) == 1 else None

    whole = bool(unmatched) and not described
    orphans = [
        group
        for group in grouped.layers
        if len(group.statistics) == len(STATISTICS) and (whole or set(group.roles) == set(STATISTICS))
    ]
    found = drifted(expected, orphans, length)
    if not found:
        return layers, grouped
    for number, group in found.items():
        moved = {f"{role}/drifted": group.roles[role] for role in STATISTICS}
        if expected is named:
            expected[number].companions.update(moved)
        elif described:
            layer = described[number]
            layers[layers.index(layer)] = replace(layer, companions={**layer.companions, **moved})
        else:
            copies = {f"{role}/drifted": name for role, name in group.roles.items() if role not in STATISTICS}
            layers.append(replace(unmatched[number], companions=moved, copies=copies))
        grouped.others.update({name: role for role, name in group.roles.items() if role not in STATISTICS})
        grouped.others.update({name: key.rpartition("/")[2] for key, name in group.companions.items()})
    gone = {id(group) for group in found.values()}
    grouped.layers = [group for group in grouped.layers if id(group) not in gone]
    return layers, grouped


def _twins(checkpoint: Checkpoint, claimed: set[str]) -> dict[str, str]:
    """Return the variables that are further copies of others, each with the one that it copies.

    `export` of Keras 3 lists every variable in `variables` and in `_all_variables`; only the name for people tells.
    """
    by_label: dict[str, dict[str, str]] = {}
    for variable in checkpoint.variables:
        listed = _LISTED.match(variable.name)
        if listed is not None and variable.label:
            by_label.setdefault(variable.label, {}).setdefault(listed["list"], variable.name)
    found: dict[str, str] = {}
    for names in by_label.values():
        first = next((name for name in names.values() if name in claimed), None) or names[max(names)]
        shape = _shape(checkpoint, first)
        found |= {name: first for name in names.values() if name != first and _shape(checkpoint, name) == shape}
    return {name: first for name, first in found.items() if name not in claimed}


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    variable = checkpoint.variable(name)
    return None if variable is None else variable.shape


def _with_twins(layer: BatchNormLayer, twins: Mapping[str, str]) -> BatchNormLayer:
    companions, copies = dict(layer.companions), dict(layer.copies)
    for name, first in twins.items():
        for role, own in layer.variables.items():
            if own == first:
                (companions if role in STATISTICS else copies)[f"{role}/twin"] = name
    return replace(layer, companions=companions, copies=copies)


def _named(checkpoint: Checkpoint, group: Group) -> BatchNormLayer:
    return BatchNormLayer(
        name=_spoken(checkpoint, group),
        variables=group.roles,
        absent=group.absent,
        companions=group.companions,
        copies=group.copies,
        slots=tuple(group.slots),
        initial=group.initial,
        by_company=group.by_company,
    )


def _spoken(checkpoint: Checkpoint, group: Group) -> str:
    """Return a layer's name for people: Keras' HDF5 repeats it (`bn/bn`), its later formats keep it as a label."""
    if checkpoint.format in ("keras-hdf5", "keras-weights-hdf5"):
        name = group.name.removeprefix("model_weights/")
        first, _, rest = name.partition("/")
        return rest if rest == first or rest.startswith(f"{first}/") or rest.endswith(f"/{first}") else name
    return group.name


def _with_relatives(layer: BatchNormLayer, grouped: Grouped, checkpoint: Checkpoint) -> BatchNormLayer:
    """Return a described layer with the shadows and slots of its variables, which no model description lists.

    Groups by name that consist of nothing else end here.
    """
    companions, copies, slots = dict(layer.companions), dict(layer.copies), list(layer.slots)
    stored = {name: role for role, name in (*layer.absent.items(), *layer.variables.items())}
    for variable in checkpoint.variables:
        if variable.name in companions.values() or variable.name in stored:
            continue
        said = read_name(variable.name)
        role = stored.get(said.of)
        if role is None:
            continue
        if said.kind == "shadow":
            (companions if role in STATISTICS else copies)[f"{role}/shadow"] = variable.name
        elif said.kind == "slot" and role in STATISTICS:
            slots.append(variable.name)
        elif said.kind == "slot" and said.last == "average":
            copies[f"{role}/average"] = variable.name
    for group in grouped.layers:
        if not group.roles and set(group.companions.values()) <= set(companions.values()):
            grouped.layers = [other for other in grouped.layers if other is not group]
            break
    return replace(layer, companions=companions, copies=copies, slots=tuple(slots))


def _with_averages(checkpoint: Checkpoint, layer: BatchNormLayer, others: Mapping[str, str]) -> BatchNormLayer:
    """Return the layer with an optimizer's variable that equals its gamma or beta bit for bit: the average kept there.

    Optimizers that average weights write the averages over them; in files that number an optimizer's variables nothing
    but the value says so.
    """
    found: dict[str, str] = {}
    for role in ("gamma", "beta"):
        own = checkpoint.variable(layer.variables.get(role, ""))
        if own is None or any(key.startswith(f"{role}/") for key in layer.copies):
            continue
        value = _read(own)
        if value is None or value.dtype == object or np.all(value == value.flat[0] if value.size else True):
            continue
        for name, kind in others.items():
            twin = checkpoint.variable(name)
            if kind != "optimizer slot" or twin is None or (twin.shape, twin.dtype) != (own.shape, own.dtype):
                continue
            # Lookahead's slow weights equal the fast ones after every synchronisation, and are no average.
            if read_name(name).last == "slow" or (twin.label or "").endswith("slow"):
                continue
            other = _read(twin)
            if other is not None and other.tobytes() == value.tobytes():
                found[f"{role}/average"] = name
                break
    return replace(layer, copies={**layer.copies, **found}) if found else layer


def _read(variable: Variable) -> Array | None:
    """Return a value; None where it is damaged, which is reported by the rule that is about it."""
    try:
        return variable.read()
    except UnreadableCheckpoint:
        return None


def _flat(value: Array) -> Array:
    return value.reshape(-1) if value.ndim > 1 and value.size == max(value.shape) else value


def _with_values(checkpoint: Checkpoint, layer: BatchNormLayer) -> BatchNormLayer:
    values: dict[str, Array] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    deviations = checkpoint.attributes.get("era") == "0.3"
    for role, name in layer.variables.items():
        variable = checkpoint.variable(name)
        assert variable is not None
        shapes[role] = variable.shape
        value = _read(variable)
        if value is not None:
            # Keras before 1.0.8 stored the standard deviation.
            values[role] = np.square(_flat(value)) if deviations and role == "moving_variance" else _flat(value)
    related: dict[str, Array] = {}
    for key, name in (*layer.companions.items(), *layer.copies.items()):
        variable = checkpoint.variable(name)
        value = None if variable is None else _read(variable)
        if value is not None:
            related[key] = _flat(value)
    return replace(
        layer,
        values=values,
        shapes=shapes,
        companion_values=related,
        channels=layer.channels or _channels(checkpoint, layer),
    )


def _channels(checkpoint: Checkpoint, layer: BatchNormLayer) -> int | None:
    """Return the length of the layer's vectors, or None where it has several or none."""
    names: Iterable[str] = (*layer.variables.values(), *layer.companions.values())
    for name in names:
        variable = checkpoint.variable(name)
        sizes = [size for size in variable.shape if size != 1] or [1] if variable is not None and variable.shape else []
        if len(sizes) == 1:
            return sizes[0]
    return None


def _steps(checkpoint: Checkpoint) -> int | None:
    """Return the number of training steps that the file's own counters say, the largest of them."""
    found: list[int] = []
    for variable in checkpoint.variables:
        key = variable.name.partition(":")[0].removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        if variable.shape == () and "int" in variable.dtype and _STEPS.search(key):
            value = _read(variable)
            if value is not None:
                found.append(int(value))
    return max(found, default=None)
