"""Which variables of a checkpoint form which batch-norm layer.

Takes a checkpoint's variables and what its model says (`graphs`), gives an `Inventory`. Evidence ranks graph > config >
object graph > names. Everything is accounted for: variables of layers + other variables + not judged = all variables.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ckpt_doctor.batchnorm.layer import ROLES, STATISTICS, BatchNormLayer, GradientTrace, Inventory, TrainingMode
from ckpt_doctor.batchnorm.relatives import find_twins, with_averages, with_drifted, with_relatives, with_twins
from ckpt_doctor.batchnorm.unshown import unshown_batch_norms, unshown_places
from ckpt_doctor.batchnorm.values import training_steps, with_values
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.graphs.facts import Evidence, LayerFacts, ModelFacts
from ckpt_doctor.naming import Group, Grouped, group_variables, read_name

__all__ = [
    "ROLES",
    "STATISTICS",
    "BatchNormLayer",
    "GradientTrace",
    "Inventory",
    "TrainingMode",
    "take_inventory",
]


def take_inventory(checkpoint: Checkpoint, facts: ModelFacts | None) -> Inventory:
    """Return every variable of the checkpoint in its place.

    Args:
        checkpoint: The checkpoint; the values of its batch-norm layers are read.
        facts: What its model says, or None.
    """
    layers: list[BatchNormLayer] = []
    unmatched: list[BatchNormLayer] = []
    claimed: set[str] = set()
    stored = _StoredScopes(checkpoint)
    copies = _copies_of(facts)
    for described in facts.layers if facts is not None else ():
        layer = _described(checkpoint, facts.evidence if facts is not None else "names", described, copies)
        if claimed & set(layer.variables.values()):
            continue
        claimed |= {*layer.variables.values(), *layer.companions.values()}
        if _is_here(stored, layer, described):
            layers.append(layer)
        elif layer.absent:
            unmatched.append(layer)
    # A damaged object graph may name what the file does not hold.
    lost = [
        layer
        for layer in unshown_batch_norms(facts, claimed)
        if all(checkpoint.variable(name) is not None for name in layer.variables.values())
    ]
    doubts = unshown_places(facts, claimed)
    claimed |= {name for layer in lost for name in layer.variables.values()}
    twins = find_twins(checkpoint, claimed, facts.copies if facts is not None else {})
    grouped = _by_name(checkpoint, claimed | set(twins) | set(doubts), facts)
    layers, grouped = with_drifted(checkpoint, layers, unmatched, grouped)
    layers = with_relatives(layers, grouped, checkpoint)
    layers += [*lost, *(_named(checkpoint, group) for group in grouped.layers)]
    layers = _with_own_names(with_twins(layers, twins))
    others = grouped.others | dict.fromkeys(twins, "twin")
    for layer in layers:
        for name in (*layer.variables.values(), *layer.companions.values()):
            others.pop(name, None)
    evidence: list[Evidence] = [facts.evidence] if facts is not None and not facts.problems else []
    strings = {variable.name for variable in checkpoint.variables if variable.dtype == "string"}
    texts = {
        name: "it contains text, but the layer has numbers"
        for layer in layers
        for name in layer.variables.values()
        if name in strings
    }
    return Inventory(
        layers=tuple(with_values(checkpoint, layer) for layer in with_averages(checkpoint, layers, others)),
        others=others,
        not_judged=grouped.not_judged | texts | doubts,
        evidence=("names", *evidence),
        model=facts,
        steps=training_steps(checkpoint),
    )


def _copies_of(facts: ModelFacts | None) -> dict[str, list[str]]:
    """Return every variable that a file holds several times, to the names of its copies."""
    found: dict[str, list[str]] = {}
    for copy, name in facts.copies.items() if facts is not None else ():
        found.setdefault(name, []).append(copy)
    return found


def _described(
    checkpoint: Checkpoint, evidence: Evidence, facts: LayerFacts, copies: Mapping[str, Sequence[str]]
) -> BatchNormLayer:
    """Return the layer that the model describes, with what of it is in the file."""
    names = {role: name for role in ROLES if (name := getattr(facts, role)) is not None}
    present: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for role, name in names.items():
        # Of a variable that is exported twice, either copy may be the one that is left.
        held = [one for one in (name, *copies.get(name, ())) if checkpoint.variable(one) is not None]
        if held:
            present[role] = held[0]
        if role in STATISTICS:
            gone = [one for one in copies.get(name, ()) if one not in held] + [name] * (bool(held) and name not in held)
            lacking |= {f"{role}/twin_missing_{number}": one for number, one in enumerate(gone, start=1)}
    absent = {role: name for role, name in names.items() if role in STATISTICS and role not in present}
    companions: dict[str, str] = {}
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


def _is_here(stored: _StoredScopes, layer: BatchNormLayer, facts: LayerFacts) -> bool:
    """Return whether the file is meant to hold a layer: a file may hold a part of a graph only.

    A layer without gamma and beta leaves no trace of its own; there the part of the model that it belongs to tells. A
    config describes the very file that it lies in.
    """
    if layer.variables or any(key.partition("/")[0] in STATISTICS for key in layer.companions):
        return True
    if not layer.absent:
        return False
    if layer.evidence == "config":
        return stored.holds_weights
    return facts.gamma is None and facts.beta is None and stored.has_any_of(layer.absent)


class _StoredScopes:
    """What parts of a model a file holds anything of: asked by every layer that left no trace of its own.

    Args:
        checkpoint: The file.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._names = [variable.name for variable in checkpoint.variables]

    @cached_property
    def holds_weights(self) -> bool:
        """Whether the file holds more than an optimizer."""
        return any(read_name(name).kind in ("other", "batch-norm") for name in self._names)

    @cached_property
    def _scopes(self) -> set[str]:
        found: set[str] = set()
        for name in self._names:
            scope = name.rpartition("/")[0]
            while scope and scope not in found:
                found.add(scope)
                scope = scope.rpartition("/")[0]
        return found

    def has_any_of(self, absent: Mapping[str, str]) -> bool:
        """Return whether the file holds anything of the part of the model that the absent variables belong to."""
        tops = {name.split("/")[0] for name in absent.values() if "/" in name}
        scopes = {name.rpartition("/")[0].rpartition("/")[0] for name in absent.values()} - {""}
        return bool(self._scopes & (scopes or tops)) or (not scopes and bool(self._names))


def _by_name(checkpoint: Checkpoint, claimed: set[str], facts: ModelFacts | None) -> Grouped:
    """Return what the names of the variables say that no description has claimed."""
    left = [variable for variable in checkpoint.variables if variable.name not in claimed]
    known: Container[str] = ()
    if facts is not None and facts.evidence in ("graph", "config") and not facts.problems:
        # A description speaks for the variables that it names; one that lies in the file itself speaks for all.
        names = (variable.name for variable in left)
        known = {name for name in names if not name.startswith(facts.unseen)} if facts.names is None else facts.names
    return group_variables(
        left,
        known=known,
        other_normalization=facts.other_normalization if facts is not None else (),
        positional=checkpoint.layout.roles_by_position,
        numbered=checkpoint.attributes.get("era") == "0.3",
    )


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


def _with_own_names(layers: list[BatchNormLayer]) -> list[BatchNormLayer]:
    """Return the layers, each with a name of its own: findings and repairs know a layer by its name.

    A description and the names in a file may call two layers `bn`; the later one is called by one of its variables.
    """
    taken: set[str] = set()
    result = []
    for layer in layers:
        name = layer.name
        if name not in taken:
            taken.add(name)
            result.append(layer)
            continue
        anchors = iter((*layer.variables.values(), *layer.absent.values(), *layer.companions.values()))
        while name in taken and (anchor := next(anchors, None)) is not None:
            name = anchor.partition("/.ATTRIBUTES/")[0]
        taken.add(name)
        result.append(layer if name == layer.name else replace(layer, name=name))
    return result


def _spoken(checkpoint: Checkpoint, group: Group) -> str:
    """Return a layer's name for people: Keras' HDF5 repeats it (`bn/bn`), its later formats keep it as a label."""
    if checkpoint.layout.legacy_keras:
        name = group.name.removeprefix("model_weights/")
        first, _, rest = name.partition("/")
        return rest if rest == first or rest.startswith(f"{first}/") or rest.endswith(f"/{first}") else name
    return group.name
