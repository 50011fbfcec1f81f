"""What belongs to layers besides their four vectors: twins, shadows, slots, averages, statistics of drifted names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ckpt_doctor.batchnorm.layer import STATISTICS, BatchNormLayer
from ckpt_doctor.batchnorm.values import read
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.naming import Group, Grouped, Named, drifted, read_name

# A device's own copy, by its name for people.
_REPLICA = re.compile(r"^(?P<label>.+)/replica_(?P<number>\d+)$")
# Lists that a TensorFlow 2 export keeps its variables in.
_LISTED = re.compile(r"^(?P<list>_?[a-z_]*variables)/\d+/\.ATTRIBUTES/VARIABLE_VALUE$")


def find_twins(
    checkpoint: Checkpoint, claimed: set[str], copies: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    """Return the variables that are further copies of others, each with the one that it copies, and what copy it is.

    `export` of Keras 3 lists every variable in `variables` and in `_all_variables`. The graph tells which belong
    together; where it cannot be read, the name for people does, or the value where several variables share a name.
    The export of tf_keras, of a model on several devices, lists the mean of their statistics in the one, and in the
    other those of each device: `bn/moving_mean`, `bn/moving_mean/replica_1`. Such copies have a history of their own,
    as towers have.

    Args:
        checkpoint: The checkpoint.
        claimed: Names of the variables that layers of the model's description consist of.
        copies: What the graph tells: name of a copy to the name of what it is a copy of.
    """
    by_label: dict[str, dict[str, list[Variable]]] = {}
    for variable in checkpoint.variables:
        listed = _LISTED.match(variable.name) if variable.label else None
        if listed is not None and variable.label:
            by_label.setdefault(variable.label, {}).setdefault(listed["list"], []).append(variable)
    known = dict(copies or {})
    found: dict[str, tuple[str, str]] = {}
    paired: set[str] = set()
    for name, first in known.items():
        if name not in claimed and _shape(checkpoint, name) == _shape(checkpoint, first) is not None:
            found[name] = (first, _kind(checkpoint.variable(name), by_label))
            paired |= {name, first}
    for label, lists in by_label.items():
        free = {
            place: rest for place, held in lists.items() if (rest := [one for one in held if one.name not in paired])
        }
        if all(len(held) == 1 for held in free.values()):
            replica = _REPLICA.match(label)
            originals = by_label.get(replica["label"], free) if replica is not None else free
            pairs = _of_one_name(free, originals, claimed)
        else:
            pairs = _of_one_value(free)
        for name, first in pairs.items():
            if name != first and name not in claimed and _shape(checkpoint, name) == _shape(checkpoint, first):
                found[name] = (first, _kind(checkpoint.variable(name), by_label))
    return found


def _kind(variable: Variable | None, by_label: Mapping[str, Mapping[str, Sequence[Variable]]]) -> str:
    """Return what copy a variable is: an exported twin, or that of a device."""
    label = "" if variable is None else variable.label or ""
    replica = _REPLICA.match(label)
    if replica is not None:
        return f"tower_{replica['number']}"
    listed = _LISTED.match("" if variable is None else variable.name)
    beside = by_label.get(f"{label}/replica_1", {})
    return "tower_0" if listed is not None and listed["list"] in beside else "twin"


def _of_one_name(
    lists: Mapping[str, Sequence[Variable]], originals: Mapping[str, Sequence[Variable]], claimed: set[str]
) -> dict[str, str]:
    """Return the copies among variables whose name no other of their list has, each with its original.

    Args:
        lists: List to the one variable of the name in it.
        originals: The same of the variable that they are copies of.
        claimed: Names of the variables that layers consist of; of several originals they are the first.
    """
    names = {place: held[0].name for place, held in originals.items() if len(held) == 1}
    if not names:
        return {}
    first = next((name for name in names.values() if name in claimed), None) or names[max(names)]
    return {held[0].name: first for held in lists.values()}


def _of_one_value(lists: Mapping[str, Sequence[Variable]]) -> dict[str, str]:
    """Return the copies among variables that share a name: those of which each list holds the value exactly once.

    A name that several variables of one list share (those of a subclassed model in Keras 3, two layers of one name)
    pairs none of them.
    """
    first_list, *others = sorted(lists, reverse=True)
    pairs: dict[str, str] = {}
    firsts = _unique_values(lists[first_list]) if others else {}
    for place in others:
        for value, name in _unique_values(lists[place]).items():
            if value in firsts:
                pairs[name] = firsts[value]
    return pairs


def _unique_values(variables: Sequence[Variable]) -> dict[tuple[tuple[int, ...], bytes], str]:
    """Return value to name, of the variables of which no other has the value."""
    names: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for variable in variables:
        value = read(variable)
        if value is not None and value.dtype != object:
            names.setdefault((variable.shape, value.tobytes()), []).append(variable.name)
    return {value: held[0] for value, held in names.items() if len(held) == 1}


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    variable = checkpoint.variable(name)
    return None if variable is None else variable.shape


def with_twins(layers: Sequence[BatchNormLayer], twins: Mapping[str, tuple[str, str]]) -> list[BatchNormLayer]:
    """Return the layers with the further copies of their variables."""
    if not twins:
        return list(layers)
    copies_of: dict[str, list[tuple[str, str]]] = {}
    for name, (first, kind) in twins.items():
        copies_of.setdefault(first, []).append((name, kind))
    result = []
    for layer in layers:
        companions, copies = dict(layer.companions), dict(layer.copies)
        for role, own in layer.variables.items():
            for name, kind in copies_of.get(own, ()):
                held = companions if role in STATISTICS else copies
                key, number = f"{role}/{kind}", 1
                while key in held:
                    number += 1
                    key = f"{role}/{kind}_{number}"
                held[key] = name
        result.append(replace(layer, companions=companions, copies=copies))
    return result


def with_relatives(layers: Sequence[BatchNormLayer], grouped: Grouped, checkpoint: Checkpoint) -> list[BatchNormLayer]:
    """Return described layers with the shadows and slots of their variables, which no model description lists.

    Groups by name that consist of nothing else end here.
    """
    found: dict[str, list[tuple[str, Named]]] = {}
    for variable in checkpoint.variables:
        said = read_name(variable.name)
        if said.kind in ("shadow", "slot") and said.of:
            found.setdefault(said.of, []).append((variable.name, said))
    result = []
    attached: set[str] = set()
    for layer in layers:
        companions, copies, slots = dict(layer.companions), dict(layer.copies), list(layer.slots)
        for role, stored in (*layer.absent.items(), *layer.variables.items()):
            for name, said in found.get(stored, ()):
                if name in companions.values():
                    continue
                if said.kind == "shadow":
                    (companions if role in STATISTICS else copies)[f"{role}/shadow"] = name
                elif role in STATISTICS:
                    slots.append(name)
                elif said.last == "average":
                    copies[f"{role}/average"] = name
        attached |= set(companions.values())
        result.append(replace(layer, companions=companions, copies=copies, slots=tuple(slots)))
    grouped.layers = [
        group for group in grouped.layers if group.roles or not set(group.companions.values()) <= attached
    ]
    return result


def with_averages(
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], others: Mapping[str, str]
) -> list[BatchNormLayer]:
    """Return the layers with an optimizer's variable that equals their gamma or beta bit for bit: an average of it.

    Optimizers that average weights write the averages over them; in files that number an optimizer's variables nothing
    but the value says so.
    """
    candidates: dict[tuple[tuple[int, ...], str], list[Variable]] = {}
    for name, kind in others.items():
        variable = checkpoint.variable(name)
        if kind == "optimizer slot" and variable is not None and len(variable.shape) == 1:
            said = read_name(name)
            # A slot that is named after its variable says what it is. Lookahead's slow weights equal the fast ones
            # after every synchronisation, and are no average.
            if not said.of and said.last != "slow" and not (variable.label or "").endswith("slow"):
                candidates.setdefault((variable.shape, variable.dtype), []).append(variable)
    if not candidates:
        return list(layers)
    known: dict[tuple[tuple[int, ...], str], dict[bytes, str]] = {}
    result = []
    for layer in layers:
        copies = dict(layer.copies)
        for role in ("gamma", "beta"):
            own = checkpoint.variable(layer.variables.get(role, ""))
            kind_of = None if own is None else (own.shape, own.dtype)
            if kind_of not in candidates or any(key.startswith(f"{role}/") for key in copies):
                continue
            if kind_of not in known:
                values = ((variable.name, read(variable)) for variable in candidates[kind_of])
                known[kind_of] = {value.tobytes(): name for name, value in values if value is not None}
            value = None if own is None else read(own)
            if (
                value is not None
                and value.size
                and np.any(value != value.flat[0])
                and value.tobytes() in known[kind_of]
            ):
                copies[f"{role}/average"] = known[kind_of][value.tobytes()]
        result.append(replace(layer, copies=copies))
    return result


def with_drifted(
    checkpoint: Checkpoint, layers: list[BatchNormLayer], unmatched: list[BatchNormLayer], grouped: Grouped
) -> tuple[list[BatchNormLayer], Grouped]:
    """Attach statistics that belong to no layer to layers that have none, where exactly one way fits."""
    described = [layer for layer in layers if set(layer.absent) == set(STATISTICS)]
    expected = [Group(layer.name, dict(layer.variables), dict(layer.absent)) for layer in (described or unmatched)]
    named = [group for group in grouped.layers if set(group.absent) == set(STATISTICS) and group.roles]
    if not expected:
        expected = named
    if not expected:
        return layers, grouped

    channels: dict[str, set[int]] = {}
    for layer in (*layers, *unmatched):
        if layer.channels:
            channels.setdefault(layer.name, set()).add(layer.channels)

    def length(group: Group) -> int | None:
        found = [variable for name in group.roles.values() if (variable := checkpoint.variable(name)) is not None]
        known = {int(np.prod(variable.shape, dtype=np.int64)) for variable in found}
        known |= channels.get(group.name, set())
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
    places = {id(layer): number for number, layer in enumerate(layers)}
    for number, group in found.items():
        moved = {f"{role}/drifted": group.roles[role] for role in STATISTICS}
        if expected is named:
            expected[number].companions.update(moved)
        elif described:
            layer = described[number]
            layers[places[id(layer)]] = replace(layer, companions={**layer.companions, **moved})
        else:
            copies = {f"{role}/drifted": name for role, name in group.roles.items() if role not in STATISTICS}
            layers.append(replace(unmatched[number], companions=moved, copies=copies))
        grouped.others.update({name: role for role, name in group.roles.items() if role not in STATISTICS})
        grouped.others.update({name: key.rpartition("/")[2] for key, name in group.companions.items()})
    gone = {id(group) for group in found.values()}
    grouped.layers = [group for group in grouped.layers if id(group) not in gone]
    return layers, grouped
