"""The variables of a file, grouped by what their names say together.

Every variable ends in exactly one place: a group that is a batch-norm layer, the others with their role, or not judged
with the reason. What could be two things is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.naming.own_words import layers_in_own_words
from ckpt_doctor.naming.positions import read_positions
from ckpt_doctor.naming.reading import (
    AFFINE,
    STATISTICS,
    Named,
    bare_name,
    is_other_normalization,
    looks_like_batch_norm,
    possible_roles,
    read_name,
    undoubled,
    with_role,
)

# One copy of the model for each device, by variable scope (tensorflow/models, tutorials/image/cifar10_multi_gpu).
_TOWER = re.compile(r"^(?P<before>(?:.*/)?)(?P<tower>(?:tower|replica|clone|gpu)_?(?P<number>\d+))/(?P<rest>.+)$")
# In a file without a model, so many groups of gamma and beta beside a convolution are no coincidence.
_FEWEST_BY_COMPANY = 2


@dataclass(eq=False)
class Group:
    """The variables of one layer.

    Attributes:
        name: The layer.
        roles: Role to name, of what is in the file.
        absent: Role to the name that it would have, of statistics that the layer needs and the file lacks.
        companions: `role/kind` to name, of what belongs to its statistics.
        copies: `role/kind` to name, of averaged copies of gamma and beta.
        slots: Optimizer slots on its statistics.
        initial: What its averages start at: `0/1`, `0/0`, or None where nothing tells.
        by_company: Whether only what stands beside it says that it is batch norm.
    """

    name: str
    roles: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    companions: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    slots: list[str] = field(default_factory=list)
    initial: str | None = "0/1"
    by_company: bool = False

    @property
    def statistics(self) -> set[str]:
        """The roles of the statistics that are in the file."""
        return {role for role in STATISTICS if role in self.roles}


@dataclass(eq=False)
class Grouped:
    """All variables, each in one place.

    Attributes:
        layers: The batch-norm layers.
        others: Name to role, of all other variables; slots and copies of layers among them.
        not_judged: Name to the reason why no verdict is possible.
    """

    layers: list[Group]
    others: dict[str, str]
    not_judged: dict[str, str]


def group_variables(
    variables: Sequence[Variable],
    *,
    known: Container[str],
    other_normalization: Iterable[str],
    positional: bool = False,
    numbered: bool = False,
) -> Grouped:
    """Return what the names of `variables` say.

    Args:
        variables: The variables that no model description has claimed.
        known: Names of the variables that a description of the model speaks for: it lists all batch norm among them, so
            that a gamma without statistics is something else.
        other_normalization: Scopes or layer names of other normalisation.
        positional: Whether the file tells roles by position within a layer's `vars` (Keras 3).
        numbered: Whether it numbers parameters without names (Keras 0.3).
    """
    sorter = _Sorter(variables, known, frozenset(other_normalization))
    rest: Sequence[Variable] = variables
    if positional or numbered:
        found, ambiguous, rest = read_positions(variables, numbered=numbered, known=known)
        sorter.not_judged.update(ambiguous)
        for layer in found:
            sorter.groups[layer.scope] = Group(layer.scope, layer.roles, layer.absent, layer.companions)
        if numbered:
            sorter.others.update({variable.name: "weight" for variable in rest})
            rest = ()
    sorter.read(rest)
    return sorter.sort()


class _Sorter:
    def __init__(self, variables: Sequence[Variable], known: Container[str], other: frozenset[str]) -> None:
        self.by_name = {variable.name: variable for variable in variables}
        self.known = known
        self.other_normalization = other
        self.groups: dict[str, Group] = {}
        self.maybe: dict[str, dict[str, str]] = {}
        self.pending: list[tuple[str, Named]] = []
        self.others: dict[str, str] = {}
        self.not_judged: dict[str, str] = {}

    def read(self, variables: Sequence[Variable]) -> None:
        """Put every variable into a group, among the others, or aside until the groups are known."""
        groups = self.groups
        for variable in variables:
            said = _say(variable) if variable.label else read_name(variable.name)
            if said.kind == "batch-norm":
                group = groups.get(said.layer)
                if group is None:
                    group = groups[said.layer] = Group(said.layer)
                if said.role in group.roles:
                    self.others[variable.name] = "weight"
                    continue
                group.roles[said.role] = variable.name
                if said.role in STATISTICS:
                    group.initial = said.initial
            elif said.kind == "maybe" and said.role not in self.maybe.get(said.layer, {}):
                self.maybe.setdefault(said.layer, {})[said.role] = variable.name
            elif said.kind in ("companion", "shadow", "slot"):
                self.pending.append((variable.name, said))
            else:
                self.others[variable.name] = "counter" if said.kind == "counter" else "weight"
        for scope in [scope for scope, group in groups.items() if not group.roles]:
            del groups[scope]

    def group(self, scope: str) -> Group:
        found = self.groups.get(scope)
        if found is None:
            found = self.groups[scope] = Group(scope)
        return found

    def sort(self) -> Grouped:
        """Return every variable in its place."""
        self._add_own_words()
        self._add_weak_roles()
        self._attach()
        by_company = self._beside_convolutions()
        layers: list[Group] = []
        for scope, group in self.groups.items():
            if _is_whole(group):
                layers.append(group)
                continue
            reason = self._doubt(group)
            if reason is not None:
                self.not_judged.update(dict.fromkeys([*group.roles.values(), *group.companions.values()], reason))
            elif self._is_layer(scope, group) or scope in by_company:
                group.by_company = not group.statistics and scope in by_company
                self._complete(group)
                layers.append(group)
            else:
                self.others.update({name: role if role in AFFINE else "weight" for role, name in group.roles.items()})
                self.others.update({name: key.rpartition("/")[2] for key, name in group.companions.items()})
        layers = self._without_towers(layers)
        for group in layers:
            group.name = group.name or "(root)"
        return Grouped(layers, self.others, self.not_judged)

    def _add_weak_roles(self) -> None:
        """Join words that are roles only in company with the company, where it is there."""
        for scope, roles in self.maybe.items():
            company = self.groups.get(scope)
            statistics = set(STATISTICS) & set(roles)
            if company is not None and company.statistics:
                fits = not statistics
            elif len(statistics) == len(STATISTICS):
                fits = self._are_a_pair(roles) and (
                    bool(set(AFFINE) & set(roles)) or company is not None or looks_like_batch_norm(scope)
                )
                if not fits and self._are_a_pair(roles) and not is_other_normalization(scope):
                    reason = "a mean and a variance without gamma and beta: batch norm or a scaling of inputs"
                    self.not_judged.update({roles[role]: reason for role in STATISTICS})
                    roles = {role: name for role, name in roles.items() if role not in STATISTICS}
            else:
                fits = False
            if fits:
                group = self.group(scope)
                if statistics:
                    group.initial = None
                for role, name in roles.items():
                    if role in group.roles:
                        self.others[name] = "weight"
                    else:
                        group.roles[role] = name
            else:
                self.others.update(dict.fromkeys(roles.values(), "weight"))

    def _add_own_words(self) -> None:
        """Add the layers whose variables have words of their author's own."""
        free = {name for roles in self.maybe.values() for name in roles.values()}
        free |= {name for name, kind in self.others.items() if kind == "weight"}
        vectors = {name: self.by_name[name].shape for name in free if name not in self.known}
        groups = {scope: group.roles for scope, group in self.groups.items()}
        for layer, roles in layers_in_own_words(vectors, groups, self._are_alike):
            self.group(layer).roles.update(roles)
            self.group(layer).initial = None
            for name in roles.values():
                self.others.pop(name, None)
            for scope in {layer, *(scope for name in roles.values() for scope, _, _ in possible_roles(name))}:
                words = self.maybe.get(scope, {})
                self.maybe[scope] = {role: name for role, name in words.items() if name not in roles.values()}

    def _are_alike(self, roles: Mapping[str, str]) -> bool:
        """Return whether variables have one shape, and no `count` is beside the statistics."""
        alike = len({self.by_name[name].shape for name in roles.values()}) == 1
        return alike and not any(self._counts(roles[role]) for role in STATISTICS)

    def _are_a_pair(self, roles: Mapping[str, str]) -> bool:
        """Return whether a plain `mean` and `variance` are vectors of one shape without a `count` beside them.

        A preprocessing `Normalization` layer and a reinforcement learner's input scaler have a count; they are no batch
        norm.
        """
        mean, variance = (self.by_name[roles[role]] for role in STATISTICS)
        return mean.shape == variance.shape and len(mean.shape) > 0 and not self._counts(mean.name)

    def _counts(self, name: str) -> bool:
        stem = re.sub(r"(mean|var|variance)((?::|/\.ATTRIBUTES).*)?$", "", name)
        words = ("count", "n", "num_samples")
        return any(with_role(name, word) in self.by_name or f"{stem}{word}" in self.by_name for word in words)

    def _attach(self) -> None:
        """Give companions, shadows and slots to the groups that they belong to."""
        for name, said in self.pending:
            group = self._owner(said)
            kind = "shadow" if said.kind == "shadow" else said.role
            of = said.role if said.kind == "shadow" else said.of
            if said.kind == "slot":
                self.others[name] = "optimizer slot"
                self._attach_slot(name, said)
            elif group is None or (kind == "shadow" and of in AFFINE):
                self.others[name] = kind
                if group is not None:
                    group.copies[f"{of}/{kind}"] = name
            else:
                group.companions[f"{of}/{kind}"] = name

    def _owner(self, said: Named) -> Group | None:
        """Return the group that a companion belongs to; shadows of statistics make one where there is none."""
        if said.kind == "slot":
            return None
        for scope in (said.layer, undoubled(said.layer)):
            if scope in self.groups:
                return self.groups[scope]
        if said.kind == "shadow" and said.role in STATISTICS:
            return self.group(said.layer)
        if said.kind == "companion" and said.of in STATISTICS and said.role in ("biased", "average"):
            return self.group(undoubled(said.layer))
        if said.kind == "shadow" and said.role in AFFINE:
            # Where only averages were kept, gamma's shadow may come before those of the statistics.
            twins = (with_role(said.of, role) + "/ExponentialMovingAverage" for role in STATISTICS)
            return self.group(said.layer) if all(twin in self.by_name for twin in twins) else None
        return None

    def _attach_slot(self, name: str, said: Named) -> None:
        owned = read_name(said.of) if said.of else None
        if owned is None or owned.kind != "batch-norm" or owned.layer not in self.groups:
            return
        group = self.groups[owned.layer]
        if owned.role in STATISTICS:
            group.slots.append(name)
        elif said.last == "average":
            group.copies[f"{owned.role}/average"] = name

    def _beside_convolutions(self) -> set[str]:
        """Return the scopes of gamma and beta that must be batch norm by what stands beside them.

        Without a model, and without a name that says so: where they share a scope with a convolution of as many
        channels, in several places, they are hand-written batch norm; so are then the other pairs of the file.
        """
        pairs = [
            scope
            for scope, group in self.groups.items()
            if set(group.roles) == set(AFFINE)
            and not self._is_known(group)
            and not is_other_normalization(scope)
            and self._may_be(scope)
        ]
        if len(pairs) < _FEWEST_BY_COMPANY:
            return set()
        kernels: dict[str, list[tuple[int, ...]]] = {}
        for name, role in self.others.items():
            if role == "weight" and len(shape := self.by_name[name].shape) >= 3:
                kernels.setdefault(bare_name(name).rpartition("/")[0], []).append(shape)
        beside = [
            scope
            for scope in pairs
            if any(
                shape[-1:] == self.by_name[self.groups[scope].roles["gamma"]].shape for shape in kernels.get(scope, ())
            )
        ]
        return set(pairs) if len(beside) >= _FEWEST_BY_COMPANY and 2 * len(beside) >= len(pairs) else set()

    def _may_be(self, scope: str) -> bool:
        parts = scope.split("/")
        return not any("/".join(parts[start:]) in self.other_normalization for start in range(len(parts)))

    def _doubt(self, group: Group) -> str | None:
        """Return why a group may be batch norm or not, or None."""
        if len(group.statistics) == 1 and not set(AFFINE) & set(group.roles) and not looks_like_batch_norm(group.name):
            (role,) = group.statistics
            return f"a {role.replace('_', ' ')} alone, without other variables of a layer"
        return None

    def _is_layer(self, scope: str, group: Group) -> bool:
        if group.absent:  # Positions have told.
            return True
        if not group.roles and not {f"{role}/shadow" for role in STATISTICS} <= set(group.companions):
            return any(key.endswith("/biased") for key in group.companions)
        if any(key.startswith("layer/accu_") for key in group.companions):
            return True
        if group.statistics or not group.roles:
            alone = not set(AFFINE) & set(group.roles)
            counted = alone and any(self._counts(name) for name in group.roles.values())
            return not (counted and not looks_like_batch_norm(scope))
        if any(key.partition("/")[0] in STATISTICS for key in group.companions):
            return True
        return not self._is_known(group) and looks_like_batch_norm(scope) and self._may_be(scope)

    def _is_known(self, group: Group) -> bool:
        return all(name in self.known for name in group.roles.values())

    def _complete(self, group: Group) -> None:
        """Fill in the names of the statistics that the layer lacks."""
        if any(key.startswith("layer/accu_") for key in group.companions):
            # compare_gan keeps sums instead (`accu/*`), filled after training.
            return
        anchor = next(iter(group.roles.values()), None) or next(iter(group.companions.values()))
        if not group.roles:
            anchor = anchor.rpartition("/")[0]
        for role in STATISTICS:
            if role not in group.roles:
                group.absent.setdefault(role, with_role(anchor, role))

    def _without_towers(self, layers: list[Group]) -> list[Group]:
        """Return the layers with the copies of other towers attached to that of the first."""
        towers: dict[tuple[str, str], list[tuple[int, str, Group]]] = {}
        for group in layers:
            found = _TOWER.match(group.name)
            if found is not None:
                key = (found["before"], found["rest"])
                towers.setdefault(key, []).append((int(found["number"]), found["tower"], group))
        merged: set[int] = set()
        for copies in towers.values():
            (_, _, first), *further = sorted(copies, key=lambda copy: copy[0])
            for number, _, group in further:
                if set(group.roles) != set(first.roles) or group.companions or group.absent:
                    continue
                for role, name in group.roles.items():
                    if role in STATISTICS:
                        first.companions[f"{role}/tower_{number}"] = name
                    else:
                        first.copies[f"{role}/tower_{number}"] = name
                        self.others[name] = role
                first.slots += group.slots
                merged.add(id(group))
        return [group for group in layers if id(group) not in merged]


def _is_whole(group: Group) -> bool:
    """Return whether a group is a layer beyond doubt, with nothing to be added: as most are."""
    roles = group.roles
    return (
        "moving_mean" in roles
        and "moving_variance" in roles
        and ("gamma" in roles or "beta" in roles)
        and not (group.companions or group.absent)
    )


def _say(variable: Variable) -> Named:
    """Return what the key says, or where it is a mere number in a list, what the name for people says."""
    said = read_name(variable.name)
    if not variable.label or said.kind not in ("other", "slot", "maybe"):
        return said
    if bare_name(variable.name).rpartition("/")[2].isdigit():
        label = read_name(variable.label)
        if label.kind == "batch-norm" and said.kind == "other":
            return label
    return said


def drifted(
    without: Sequence[Group], orphans: Sequence[Group], length: Callable[[Group], int | None]
) -> dict[int, Group]:
    """Return, for the position of each group without statistics, the orphaned statistics that are its own.

    Only where one way fits: as many of one as of the other, of the same lengths in the same order, under names that
    differ in numbers alone. Otherwise nothing.
    """
    if not without or len(without) != len(orphans):
        return {}
    left = sorted(range(len(without)), key=lambda number: natural(without[number].name))
    right = sorted(orphans, key=lambda group: natural(group.name))
    stems = {re.sub(r"[\d_]+", "", group.name.rpartition("/")[2]) for group in (*without, *orphans)}
    lengths = [(length(without[number]), length(group)) for number, group in zip(left, right, strict=True)]
    if len(stems) != 1 or any(one is None or one != other for one, other in lengths):
        return {}
    return dict(zip(left, right, strict=True))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `bn_2` before `bn_10`."""
    # Python refuses to parse a number of 4,300 digits, which a name in a damaged file may hold.
    return [
        (int(part), "") if part.isdecimal() and len(part) <= 20 else (-1, part) for part in re.split(r"(\d+)", name)
    ]
