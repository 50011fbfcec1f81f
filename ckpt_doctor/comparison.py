"""Two checkpoints, variable by variable, whatever their formats.

Variables are paired by name where both files have it; then by what they are: the label that the file gives them, the
name without what a format adds to it (`:0`, `/.ATTRIBUTES/VARIABLE_VALUE`, Keras's doubled group), the batch-norm
layer and role, the layer and the place in it. A key counts only where it means one variable on either side: what is
ambiguous stays unpaired and is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.analysis import inventory_of
from ckpt_doctor.checkpoint import Array, Checkpoint, Variable, same_values
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.settling import require_settled


@dataclass(frozen=True)
class Difference:
    """One variable that is not the same in both.

    Attributes:
        name: Its name in the first checkpoint; in the second where the first lacks it.
        other_name: Its name in the second, where that differs; else None.
        kind: `missing` (not in the second), `added` (not in the first), `shape`, `dtype`, `values` or `unreadable`.
        before: What the first has: a shape, a type; None for values.
        after: What the second has.
        largest: The largest absolute difference of two values; None where it is not finite or values were not compared.
        differing: How many values differ by more than the tolerance; None where values were not compared.
        size: How many values there are.
    """

    name: str
    other_name: str | None
    kind: str
    before: str | None = None
    after: str | None = None
    largest: float | None = None
    differing: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class DiffResult:
    """Two checkpoints compared.

    Attributes:
        a: The first.
        b: The second.
        tolerance: By how much two values may differ and count as equal.
        compared: How many variables were found in both.
        differences: What differs, in the order of the first file, then what only the second has.
    """

    a: str
    b: str
    tolerance: float
    compared: int
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def diff(a: str | Path, b: str | Path, *, tolerance: float = 0.0) -> DiffResult:
    """Return how checkpoint `b` differs from checkpoint `a`.

    Args:
        a: A checkpoint of any format.
        b: Another.
        tolerance: By how much two values may differ and count as equal; NaN equals NaN, and 0 equals -0. With
            a tolerance a difference of dtype alone is none.

    Raises:
        BadRequest: The tolerance is negative or no number.
        CkptDoctorError: One of them cannot be opened.
    """
    if not tolerance >= 0:
        raise BadRequest(f"tolerance {tolerance}: must be 0 or more")
    for path in (a, b):
        require_settled(path)
    left, right = open_checkpoint(str(a)), open_checkpoint(str(b))
    pairs = _pairs(left, right)
    differences: list[Difference] = []
    for variable in _once(left):
        other = pairs.get(variable.name)
        if other is None:
            differences.append(Difference(variable.name, None, "missing", before=_described(variable)))
        else:
            differences += _compare(variable, other, tolerance)
    paired = {other.name for other in pairs.values()}
    differences += [
        Difference(variable.name, None, "added", after=_described(variable))
        for variable in _once(right)
        if variable.name not in paired
    ]
    return DiffResult(left.path, right.path, tolerance, len(pairs), tuple(differences))


def _compare(left: Variable, right: Variable, tolerance: float) -> Iterator[Difference]:
    other_name = right.name if right.name != left.name else None
    if left.shape != right.shape:
        yield Difference(left.name, other_name, "shape", before=str(list(left.shape)), after=str(list(right.shape)))
        return
    if left.dtype != right.dtype and not tolerance:
        yield Difference(left.name, other_name, "dtype", before=left.dtype, after=right.dtype)
    try:
        first, second = left.read(), right.read()
    except UnreadableCheckpoint as error:
        yield Difference(left.name, other_name, "unreadable", before=str(error))
        return
    if same_values(first, second):
        return
    if first.dtype == object or second.dtype == object:
        differing = int(np.count_nonzero(first != second))
        if differing:
            yield Difference(left.name, other_name, "values", differing=differing, size=first.size)
        return
    largest, differing = _distance(first, second, tolerance)
    if differing:
        yield Difference(left.name, other_name, "values", largest=largest, differing=differing, size=first.size)


def _distance(first: Array, second: Array, tolerance: float) -> tuple[float | None, int]:
    """Return the largest absolute difference (None if one is not finite) and how many exceed `tolerance`."""
    wide = np.complex128 if np.iscomplexobj(first) or np.iscomplexobj(second) else np.float64
    one, two = np.asarray(first, dtype=wide), np.asarray(second, dtype=wide)
    # int64 beyond 2**53 would round to equal in float64.
    exactly_equal = np.asarray(first == second)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(one - two)
    equal = exactly_equal | (np.isnan(one) & np.isnan(two))
    differing = ~equal & ~(apart <= tolerance) if tolerance else ~equal
    if not differing.any():
        return 0.0, 0
    largest = apart[differing].max()
    return (float(largest) if np.isfinite(largest) else None), int(np.count_nonzero(differing))


def _described(variable: Variable) -> str:
    return f"{variable.dtype} {list(variable.shape)}"


def _pairs(left: Checkpoint, right: Checkpoint) -> dict[str, Variable]:
    """Return, for each variable of `left` that `right` has too, its name and the variable of `right`."""
    pairs: dict[str, Variable] = {}
    taken: set[str] = set()
    for keys in (_names, _bare_names, _roles, _places):
        here = _unique({name: key for name, key in keys(left).items() if name not in pairs})
        there = _unique({name: key for name, key in keys(right).items() if name not in taken})
        for key, name in here.items():
            other = right.variable(there[key]) if key in there else None
            if other is not None:
                pairs[name] = other
                taken.add(other.name)
    return pairs


def _unique(keys: Mapping[str, str]) -> dict[str, str]:
    """Return key to name, of the keys that mean one variable only."""
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    return {variable.name: variable.name for variable in checkpoint.variables}


def _bare_names(checkpoint: Checkpoint) -> dict[str, str]:
    return {variable.name: _bare_name(variable) for variable in _once(checkpoint) if not _is_positional(variable)}


def _roles(checkpoint: Checkpoint) -> dict[str, str]:
    """Return variable name to `layer/role`, for the batch-norm layers."""
    inventory = inventory_of(checkpoint)
    compared = {variable.name for variable in _once(checkpoint)}
    return {
        name: f"{layer.name}/{role.removesuffix('/twin')}"
        for layer in inventory.layers
        for role, name in (*layer.variables.items(), *layer.companions.items(), *layer.copies.items())
        if name in compared
    }


def _places(checkpoint: Checkpoint) -> dict[str, str]:
    """Return variable name to layer, place in it and shape: what a file that stores positions only can be held against.

    Keras's own files keep the order in which a layer made its variables. Elsewhere the order follows from their names,
    where these are all known.
    """
    layers: dict[str, list[Variable]] = {}
    places = {}
    for variable in _once(checkpoint):
        scope = (variable.label or "") if _is_positional(variable) else _bare_name(variable).rpartition("/")[0]
        slot = re.search(r"/_variables/(\d+)/", variable.name)  # The object graph numbers an optimizer's variables.
        if slot:
            places[variable.name] = f"{scope.rpartition('/')[2]}#{slot[1]} {variable.shape}"
        else:
            layers.setdefault(scope, []).append(variable)
    for scope, variables in layers.items():
        if not checkpoint.layout.keras:
            leaves = [_bare_name(variable).rpartition("/")[2] for variable in variables]
            if not set(leaves) <= set(_ORDER):
                continue
            variables.sort(key=lambda variable: _ORDER.index(_bare_name(variable).rpartition("/")[2]))
        for place, variable in enumerate(variables):
            places[variable.name] = f"{scope.rpartition('/')[2]}#{place} {variable.shape}"
    return places


# The order in which Keras layers make their variables.
_ORDER = (
    "iteration",
    "learning_rate",
    "kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "recurrent_kernel",
    "embeddings",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
)


def _once(checkpoint: Checkpoint) -> Iterator[Variable]:
    """Yield every variable but the second copies that Keras 3's `export` writes."""
    for variable in checkpoint.variables:
        if not variable.name.startswith("_all_variables/"):
            yield variable


def _is_positional(variable: Variable) -> bool:
    """Return whether a variable's name ends in its place in the layer, `…/vars/0`; its label is then the layer's."""
    return re.search(r"(^|/)vars/\d+$", variable.name) is not None


def _bare_name(variable: Variable) -> str:
    """Return the name that the model gives a variable: without what the format adds."""
    name = variable.label or variable.name
    name = re.sub(r":\d+$", "", name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"))
    parts = name.removeprefix("model_weights/").split("/")
    # Keras writes `bn1/bn1/gamma:0`: the group of the layer, then the name of the variable.
    for half in range(len(parts) // 2, 0, -1):
        if parts[:half] == parts[half : 2 * half]:
            return "/".join(parts[half:])
    return "/".join(parts)
