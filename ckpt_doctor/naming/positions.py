"""Files that give variables numbers instead of names: Keras 3 (`…/vars/2`) and Keras 0.3 (`layer_3/param_2`).

Roles are positions there. Four vectors of one length are gamma, beta, mean, variance. Three say only which are the
statistics: whether the first is gamma or beta stands in the config alone. Two may be the statistics, or gamma and beta
of another normalisation. A position is a number and not a place in a list: where `vars/1` and `vars/3` are in the file,
`vars/2` was, and is missing. How many vectors a layer should have is told by its highest number, by the optimizer's
slots, which exist for gamma and beta alone, and by values: a variance is not negative.
Source: keras/src/saving/saving_lib.py (`_save_state`); keras 0.3, keras/layers/normalization.py (`set_weights`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_doctor.checkpoint import Array, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.naming.reading import AFFINE, STATISTICS, is_other_normalization, looks_like_batch_norm

_ROLES = (*AFFINE, *STATISTICS)
# Batch renormalisation's own variables follow (tf.keras/layers/normalization.py: `_add_renorm_weight`).
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
_MEMBER = re.compile(r"^(?:(?P<scope>.*)/)?vars/(?P<number>\d+)$")
_PARAMETER = re.compile(r"^(?P<scope>.*)/param_(?P<number>\d+)$")
_CLASS = re.compile(r"(^|/)(sync_|tpu_)?batch_normalization(_v[12])?(_\d+)?$")

_OPTIMIZERS = ("optimizer", "optimizer_weights", "metrics", "_optimizer")
# Slots of a Keras 3 optimizer, and of one inside another (loss scaling).
_SLOT = re.compile(r"^optimizer/(inner_optimizer/)*vars/\d+$")
# The names that Keras gives to optimizers that keep as many slots of a vector as of a kernel (keras/src/optimizers):
# Adafactor keeps sums over rows and columns of a kernel, Muon one slot of a matrix and two of a vector.
_UNIFORM = re.compile(r"^(sgd|rmsprop|adam|adamw|adamax|adadelta|adagrad|nadam|ftrl|lion|lamb)(_\d+)?$")
# A variance that diverged is negative in a channel or two (BN204); one with as many as this is another vector.
_NEGATIVE_SHARE = 0.25


@dataclass(frozen=True)
class Found:
    """A layer.

    Attributes:
        scope: Its group.
        roles: Role to name, of what is in the file.
        companions: `role/kind` to name, of what belongs to its statistics.
        absent: Role to the name that it would have, of statistics that are missing.
    """

    scope: str
    roles: dict[str, str]
    companions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def read_positions(
    variables: Sequence[Variable], *, numbered: bool, known: Container[str] = ()
) -> tuple[list[Found], dict[str, str], list[Variable]]:
    """Return the layers, what could be either or is gone with the reason, and all that is left.

    Args:
        variables: All variables that no description has claimed.
        numbered: Whether the file is of Keras 0.3.
        known: Names of the variables that a description speaks for: what it calls no batch norm is none.
    """
    pattern = _PARAMETER if numbered else _MEMBER
    groups: dict[str, list[tuple[int, Variable]]] = {}
    for variable in variables:
        member = pattern.match(variable.name)
        if member is not None:
            groups.setdefault(member["scope"] or "", []).append((int(member["number"]), variable))
    groups = {scope: members for scope, members in groups.items() if scope.split("/")[0] not in _OPTIMIZERS}
    found: list[Found] = []
    ambiguous: dict[str, str] = {}
    trained = {} if numbered else _trained_vectors(variables, groups)
    lacking = set() if numbered else _lacking_a_variance(groups)
    for scope, unordered in groups.items():
        members = sorted(unordered, key=lambda entry: entry[0])
        if numbered:
            layers, doubts = _numbered(scope, [variable for _, variable in members])
            found += layers
            ambiguous |= doubts
        else:
            layer, doubts = _members(scope, dict(members), trained, lacking)
            if layer is not None:
                found.append(layer)
            elif not doubts and _may_be_a_layer(scope, dict(members), known):
                doubts = {variable.name: _THREE for _, variable in members}
            ambiguous |= doubts
    claimed = {name for layer in found for name in (*layer.roles.values(), *layer.companions.values())}
    left = [variable for variable in variables if variable.name not in claimed and variable.name not in ambiguous]
    return found, ambiguous, left


def _vectors(members: Sequence[Variable]) -> bool:
    return bool(members) and len(members[0].shape) > 0 and all(entry.shape == members[0].shape for entry in members)


def _members(
    scope: str,
    numbers: Mapping[int, Variable],
    trained: Mapping[tuple[int, ...], int],
    lacking: Container[frozenset[int]],
) -> tuple[Found | None, dict[str, str]]:
    """Return the layer whose `vars` are given, or None; and what of them cannot be judged, with the reason."""
    members = list(numbers.values())
    names = [entry.name for entry in members]
    label = next((entry.label for entry in members if entry.label), "") or ""
    is_class = _CLASS.search(scope) is not None
    says_so = is_class or looks_like_batch_norm(scope.rpartition("/")[2]) or looks_like_batch_norm(label)
    if not _vectors(members) or len(members[0].shape) > 5 or is_other_normalization(scope):
        return None, {}
    end = max(numbers) + 1
    if is_class and end <= len(_ROLES) and (layer := _known_layer(scope, numbers, trained, lacking)) is not None:
        return layer
    if len(numbers) < end or (is_class and end == 1):
        if says_so and end == len(_ROLES):
            return _at_positions(scope, numbers, _ROLES)
        if is_class:
            return None, dict.fromkeys(names, _HOLE)
        return None, {}
    if len(members) in (6, 7) and is_class:
        if len(members) == 7:
            return Found(scope, dict(zip(_ROLES, names, strict=False)), _companions(names[4:])), {}
        roles = dict(zip(_ROLES[2:], names[1:3], strict=True))
        return Found(scope, roles, _companions(names[3:])), {names[0]: _ONE_OF_TWO}
    if len(members) == 4:
        if not says_so and len(members[0].shape) != 1:
            return None, {}
        return _at_positions(scope, numbers, _ROLES)
    if len(members) == 3 and says_so:
        return _at_positions(scope, numbers, _ONE_AND_STATISTICS)
    if len(members) == 2 and is_class:
        return _at_positions(scope, numbers, _ROLES[2:])
    if len(members) == 2 and says_so and len(members[0].shape) == 1:
        reason = "two vectors: mean and variance of a batch norm, or gamma and beta of another normalisation"
        return None, dict.fromkeys(names, reason)
    return None, {}


_ONE_OF_TWO = (
    "gamma or beta: the file contains only its position, and the layer has one of the two; the config shows it"
)
_HOLE = "variables of this layer are missing, and nothing shows what the remaining ones are; the config does"
_THREE = (
    "three vectors: a batch norm with only gamma or beta, or another kind of layer; the file does not show which; the "
    "config does"
)
_ONE_AND_STATISTICS = ("", *_ROLES[2:])


def _may_be_a_layer(scope: str, numbers: Mapping[int, Variable], known: Container[str]) -> bool:
    """Return whether three vectors may be gamma or beta, mean and variance of a layer of which no name says batch norm.

    A wrapper keeps what it wraps in a group called `layer`, a model of the user's own under its attribute. No other
    layer of Keras has three vectors of one length.
    """
    members = list(numbers.values())
    if set(numbers) != {0, 1, 2} or not _vectors(members) or len(members[0].shape) != 1 or members[0].shape == (1,):
        return False
    if is_other_normalization(scope) or is_other_normalization(members[0].label or ""):
        return False
    if not members[0].dtype.startswith(("float", "bfloat")) or all(entry.name in known for entry in members):
        return False
    last = _values(members[2])
    return last is None or bool(np.mean(last <= 0) < _NEGATIVE_SHARE)


def _known_layer(
    scope: str,
    numbers: Mapping[int, Variable],
    trained: Mapping[tuple[int, ...], int],
    lacking: Container[frozenset[int]],
) -> tuple[Found | None, dict[str, str]] | None:
    """Return a layer of Keras' own class where more than its numbers tells its roles, or None.

    Args:
        scope: Its group.
        numbers: Its variables by number, up to four vectors of one shape.
        trained: How many of gamma and beta the layers of each shape have, by the optimizer's slots.
        lacking: The sets of numbers whose last is not a variance, by its values.
    """
    count = trained.get(next(iter(numbers.values())).shape)
    if count is not None and max(numbers) < count + 2 and len(numbers) > 1:
        return _at_positions(scope, numbers, {1: _ONE_AND_STATISTICS, 2: _ROLES}[count])
    return _at_positions(scope, numbers, _ROLES) if frozenset(numbers) in lacking else None


def _lacking_a_variance(groups: Mapping[str, Sequence[tuple[int, Variable]]]) -> set[frozenset[int]]:
    """Return the sets of numbers whose last is not a variance, by the values of all layers that have these numbers.

    Two or three variables without a gap are whole layers, unless their last is too often negative for a variance and
    their first is above zero throughout, as a gamma is: then they are gamma, beta and a mean, and what follows is gone.
    """
    alike: dict[frozenset[int], list[Mapping[int, Variable]]] = {}
    for scope, members in groups.items():
        numbers = dict(members)
        if _CLASS.search(scope) and set(numbers) in ({0, 1}, {0, 1, 2}, {1, 2}) and _vectors(list(numbers.values())):
            alike.setdefault(frozenset(numbers), []).append(numbers)
    found = set()
    for numbers_of_all, layers in alike.items():
        firsts = [_values(layer[0]) for layer in layers if 0 in layer]
        lasts = [value for layer in layers if (value := _values(layer[max(layer)])) is not None]
        negative = np.concatenate([value.reshape(-1) <= 0 for value in lasts]) if lasts else np.zeros(1)
        above_zero = all(first is not None and (first > 0).all() for first in firsts)
        if negative.mean() >= _NEGATIVE_SHARE and above_zero:
            found.add(numbers_of_all)
    return found


def _values(variable: Variable) -> Array | None:
    """Return a value in float64; None where its bytes are damaged, which is reported elsewhere, or not finite."""
    try:
        value = np.asarray(variable.read(), np.float64)
    except UnreadableCheckpoint:
        return None
    return value if value.size and np.isfinite(value).all() else None


def _at_positions(scope: str, numbers: Mapping[int, Variable], roles: Sequence[str]) -> tuple[Found, dict[str, str]]:
    """Return a layer by the numbers of its variables.

    Args:
        scope: Its group.
        numbers: Its variables by number.
        roles: Role by number; empty for one that is gamma or beta.
    """
    held = {roles[number]: entry.name for number, entry in numbers.items() if roles[number]}
    doubts = {entry.name: _ONE_OF_TWO for number, entry in numbers.items() if not roles[number]}
    absent: dict[str, str] = {}
    for number, role in enumerate(roles):
        if number in numbers:
            continue
        name = f"{scope}/vars/{number}".lstrip("/")
        if role in _ROLES[2:]:
            absent[role] = name
        else:
            doubts[name] = (
                f"is not in the file: it is the {role or 'gamma or beta'} of its layer, which data cannot restore; "
                "take it from another checkpoint of the same training"
            )
    return Found(scope, held, absent=absent), doubts


def _trained_vectors(
    variables: Sequence[Variable], groups: Mapping[str, Sequence[tuple[int, Variable]]]
) -> dict[tuple[int, ...], int]:
    """Return how many of gamma and beta the batch norms of each shape have, by the slots that an optimizer keeps.

    An optimizer keeps as many slots of every trained variable, and none of statistics. Kernels tell how many; what
    vectors of other layers leave over belongs to batch norm. Told only where that comes out even, and is the same for
    all layers of a shape.
    """
    slots = [variable for variable in variables if variable.shape and _SLOT.match(variable.name)]
    if not slots or not all(_UNIFORM.match(slot.label or "") for slot in slots):
        return {}
    kept = Counter(slot.shape for slot in slots)
    others: Counter[tuple[int, ...]] = Counter()
    layers: Counter[tuple[int, ...]] = Counter()
    for scope, members in groups.items():
        if _CLASS.search(scope):
            layers.update({members[0][1].shape})
        else:
            others.update(variable.shape for _, variable in members)
    ratios = {kept[shape] / count for shape, count in others.items() if len(shape) > 1}
    if len(ratios) != 1 or (each := ratios.pop()) < 1 or each != int(each):
        return {}
    found: dict[tuple[int, ...], int] = {}
    for shape, count in layers.items():
        of_layers = kept[shape] / each - others[shape]
        # None at all is what a frozen layer has, too.
        if of_layers == 2 * count or (of_layers == count and _are_alike(groups, shape)):
            found[shape] = int(of_layers // count)
    return found


def _are_alike(groups: Mapping[str, Sequence[tuple[int, Variable]]], shape: tuple[int, ...]) -> bool:
    """Return whether all batch norms of a shape have variables of the same numbers."""
    found = {
        frozenset(number for number, _ in members)
        for scope, members in groups.items()
        if _CLASS.search(scope) and members[0][1].shape == shape
    }
    return len(found) == 1


def _companions(names: Sequence[str]) -> dict[str, str]:
    return {f"layer/{role}": name for role, name in zip(_RENORM, names, strict=True)}


def _numbered(scope: str, members: Sequence[Variable]) -> tuple[list[Found], dict[str, str]]:
    """Return the layers in one list of Keras 0.3 parameters: a layer's own, or those of a whole Graph model.

    A weight matrix is followed by its bias; of what vectors are left, every four of one length are a batch norm.
    """
    found: list[Found] = []
    doubts: dict[str, str] = {}
    run: list[Variable] = []
    whole = len(members) > len(_ROLES)
    bias_due: int | None = None
    for entry in [*members, None]:
        is_vector = entry is not None and len(entry.shape) == 1
        if entry is not None and is_vector and bias_due in entry.shape:
            bias_due = None
            continue
        bias_due = None
        if entry is not None and is_vector and (not run or run[-1].shape == entry.shape):
            run.append(entry)
            if len(run) < len(_ROLES):
                continue
            name = f"{scope}/{run[0].name.rpartition('/')[2]}" if whole else scope
            found.append(Found(name, {role: one.name for role, one in zip(_ROLES, run, strict=True)}))
            run = []
            continue
        if len(run) > 1:
            reason = "vectors without names: not the four of a batch norm, and nothing shows what they are"
            doubts |= {one.name: reason for one in run}
        run = [entry] if entry is not None and is_vector else []
        if entry is not None and not is_vector and entry.shape:
            # Dense: [in, out]; a convolution of Theano: [out, in, rows, columns].
            bias_due = entry.shape[-1] if len(entry.shape) == 2 else entry.shape[0]
    return found, doubts
