"""What a checkpoint holds, variable by variable: what `ls` shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.analysis import inventory_of
from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.checkpoint import Array, FormatName, Variable
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.settling import require_settled


@dataclass(frozen=True)
class ValueStatistics:
    """The values of one variable in numbers, computed in float64.

    Attributes:
        min: The smallest finite value; None where there is none.
        max: The largest finite value; likewise.
        mean: The mean of the finite values.
        std: Their population standard deviation.
        nonfinite: How many values are NaN or infinite.
        zeros: How many are exactly zero.
    """

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nonfinite: int
    zeros: int


@dataclass(frozen=True)
class ListedVariable:
    """One stored tensor.

    Attributes:
        name: Its key in the file.
        shape: Its dimensions.
        dtype: TensorFlow's name of its type.
        bytes: Its stored size.
        role: What it is: `gamma`, `moving_mean`, `weight`, `optimizer slot` …
        statistics: Its values in numbers; None where they were not asked for or are not numbers.
        unreadable: Why its value could not be read, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    role: str
    statistics: ValueStatistics | None = None
    unreadable: str | None = None


@dataclass(frozen=True)
class Listing:
    """The variables of a checkpoint.

    Attributes:
        path: The checkpoint.
        format: Its format.
        variables: Its stored tensors in file order; with `grep`, those that it chooses.
        stats: Whether their values were looked at.
        bytes: Size of its files.
        stored: How many tensors it stores in all.
    """

    path: str
    format: FormatName
    variables: tuple[ListedVariable, ...]
    stats: bool = False
    bytes: int = 0
    stored: int = 0


def list_variables(path: str | Path, *, grep: str | None = None, stats: bool = False) -> Listing:
    """Return what the checkpoint at `path` holds.

    Args:
        path: The checkpoint.
        grep: A regular expression; only names that it finds something in are listed.
        stats: Read the values too.

    Raises:
        BadRequest: `grep` is not a regular expression.
        CkptDoctorError: The checkpoint cannot be opened.
    """
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise BadRequest(f"--grep {grep!r} is not a regular expression: {error}") from error
    require_settled(path)
    checkpoint = open_checkpoint(str(path))
    roles = roles_of(inventory_of(checkpoint))
    return Listing(
        path=checkpoint.path,
        format=checkpoint.format,
        variables=tuple(
            _listed(variable, roles.get(variable.name, "other"), stats)
            for variable in checkpoint.variables
            if pattern.search(variable.name)
        ),
        stats=stats,
        bytes=checkpoint.bytes,
        stored=len(checkpoint.variables),
    )


def roles_of(inventory: Inventory) -> dict[str, str]:
    """Return the role of each variable by its name."""
    roles = dict.fromkeys(inventory.not_judged, "not judged") | dict(inventory.others)
    for layer in inventory.layers:
        roles |= {name: role for role, name in layer.companions.items()}
        roles |= {name: role for role, name in layer.variables.items()}
    return roles


def value_statistics(values: Array) -> ValueStatistics | None:
    """Return `values` in numbers, or None where they are not numbers (strings); complex ones by magnitude."""
    if values.dtype == object:
        return None
    # An empty value may have a shape, `[0, 2**60]`, that NumPy refuses to give another type.
    values = values.reshape(-1)
    numbers = np.abs(values) if np.iscomplexobj(values) else values
    numbers = np.asarray(numbers, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    some = finite.size > 0
    with np.errstate(over="ignore"):  # Values near the end of float64's range have no finite variance.
        return ValueStatistics(
            min=float(finite.min()) if some else None,
            max=float(finite.max()) if some else None,
            mean=float(finite.mean()) if some else None,
            std=float(finite.std()) if some else None,
            nonfinite=int(numbers.size - finite.size),
            zeros=int(np.count_nonzero(numbers == 0)),
        )


def _listed(variable: Variable, role: str, stats: bool) -> ListedVariable:
    statistics, unreadable = None, None
    if stats:
        try:
            statistics = value_statistics(variable.read())
        except UnreadableCheckpoint as error:
            unreadable = str(error)
    return ListedVariable(
        name=variable.name,
        shape=variable.shape,
        dtype=variable.dtype,
        bytes=variable.nbytes,
        role=role,
        statistics=statistics,
        unreadable=unreadable,
    )
