"""Everything that a checkpoint says, read once: its defects, its model, its batch norm, values that are not finite.

`scan`, `fix`, `ls` and `diff` all start here. Whoever has a description of the model (`--meta`, `--model`) lays it on
the `Checkpoint` first; it speaks for the variables that it names and for no others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ckpt_doctor.batchnorm import Inventory, take_inventory
from ckpt_doctor.checkpoint import Array, Checkpoint, Damage, DefectKind, ModelDescriptions
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import format_of
from ckpt_doctor.formats._meta_graph import producer_of_meta_graph
from ckpt_doctor.graphs import Description, read_description
from ckpt_doctor.graphs.facts import ModelFacts
from ckpt_doctor.missing import missing_variables
from ckpt_doctor.training_modes import with_training_modes

if TYPE_CHECKING:
    from ckpt_doctor.graphs.meta_graph import MetaGraph

_log = logging.getLogger(__name__)

# Elements of several variables that are looked at in one pass: 256 kB of float32, which fits the cache.
_AT_ONCE = 1 << 16
# Defects of a folder, which take no variable away.
_NO_LOSS: set[DefectKind] = {"stale-checkpoint-state", "unfinished-save"}


@dataclass(frozen=True, eq=False)
class Analysis:
    """One checkpoint, read.

    Attributes:
        checkpoint: The checkpoint.
        inventory: Every variable in its place.
        description: What its model says, or None where nothing describes it.
        defects: What is wrong with the container.
        non_finite: Name to number of NaN and infinite values, of the variables that hold any; empty where the values
            were not looked at.
    """

    checkpoint: Checkpoint
    inventory: Inventory
    description: Description | None = None
    defects: tuple[Damage, ...] = ()
    non_finite: Mapping[str, int] = field(default_factory=dict)

    @property
    def graph(self) -> MetaGraph | None:
        """The graph of a `.meta` or a SavedModel."""
        return None if self.description is None else self.description.graph


def analyse(
    checkpoint: Checkpoint,
    *,
    values: bool = True,
    verify: bool = True,
    seen: Iterable[Damage] = (),
    described: Description | None = None,
) -> Analysis:
    """Return what a checkpoint says.

    Args:
        checkpoint: The checkpoint, with the description of its model laid on it.
        values: Look for values that are not finite, in every variable.
        verify: Check every byte; a file that was only added to was checked before.
        seen: Defects that were found already.
        described: What its description says, where that was read before.
    """
    defects = [*checkpoint.damages, *seen, *(format_of(checkpoint).verify(checkpoint) if verify else ())]
    description = described or read_description(checkpoint)
    if description is not None:
        defects += description.damages
    if description is not None and not names_any(description.facts, checkpoint):
        description = Description(_of_another_model(description.facts, checkpoint.descriptions))
    inventory = take_inventory(checkpoint, None if description is None else description.facts)
    inventory = with_training_modes(checkpoint, inventory)
    # A damaged index has lost entries, which is reported already.
    if not {defect.kind for defect in defects} - _NO_LOSS:
        missing = missing_variables(checkpoint, description, inventory)
        defects += [] if missing is None else [missing]
    _log.debug(
        "%s: %d batch-norm layers among %d variables; described by %s",
        checkpoint.path,
        len(inventory.layers),
        len(checkpoint.variables),
        "names only" if description is None else description.facts.evidence,
    )
    return Analysis(
        checkpoint,
        inventory,
        description,
        tuple(dict.fromkeys(defects)),
        dict(_non_finite(checkpoint, inventory)) if values else {},
    )


def inventory_of(checkpoint: Checkpoint) -> Inventory:
    """Return every variable of a checkpoint in its place, without looking for damage: for commands that only show."""
    return analyse(checkpoint, values=False, verify=False).inventory


def names_any(facts: ModelFacts, checkpoint: Checkpoint) -> bool:
    """Return whether a description names a variable of the checkpoint; True where it lists no names."""
    if facts.names is None or not checkpoint.variables:
        return True
    return any(variable.name in facts.names for variable in checkpoint.variables)


def with_meta_graph(checkpoint: Checkpoint, meta_graph: bytes, path: str) -> Checkpoint:
    """Return the checkpoint with a `.meta` that the user named laid on it, in place of the one that lies beside it.

    Args:
        checkpoint: The checkpoint.
        meta_graph: The serialised `MetaGraphDef`.
        path: Where it was read, for messages.
    """
    said = replace(checkpoint.descriptions, meta_graph=meta_graph, meta_graph_path=path)
    return replace(checkpoint, descriptions=said, producer=producer_of_meta_graph(meta_graph))


def refuse_another_model(analysis: Analysis, option: str) -> None:
    """Refuse a description that the user named and that names none of the variables.

    Args:
        analysis: The checkpoint with the description laid on it.
        option: How it was named, `--meta FILE`.

    Raises:
        BadRequest: It does.
    """
    facts = analysis.inventory.model
    if facts is not None and facts.names is not None and not names_any(facts, analysis.checkpoint):
        first = analysis.checkpoint.variables[0].name
        described = next(iter(sorted(facts.names)), "no variable")
        raise BadRequest(
            f"{analysis.checkpoint.path}: {option} describes another model: it names none of the checkpoint's "
            f"{len(analysis.checkpoint.variables)} variables ({first} …), but {described}; pass the description that "
            "was saved with this checkpoint"
        )


def _of_another_model(facts: ModelFacts, said: ModelDescriptions) -> ModelFacts:
    """Return what is left of a description that names none of the variables: that it was not used."""
    where = said.meta_graph_path or "the description next to it"
    problem = f"{where} describes another model: it names none of the variables of this checkpoint; it was not used"
    return ModelFacts(facts.evidence, problems=(problem,), names=facts.names)


def _non_finite(checkpoint: Checkpoint, inventory: Inventory) -> Iterator[tuple[str, int]]:
    """Yield the name of every variable with NaN or infinite values, and how many, in the order of the file."""
    # One pass over many short vectors costs what a pass over one of them does.
    together: list[tuple[str, Array]] = []
    elements = 0
    for name, value in _floating(checkpoint, inventory):
        if not isinstance(value, np.ndarray):
            with suppress(UnreadableCheckpoint):
                count = sum(int(piece.size - np.count_nonzero(np.isfinite(piece))) for piece in value)
                yield from [(name, count)] if count else []
            continue
        size = value.size
        if together and (elements + size > _AT_ONCE or value.dtype != together[0][1].dtype):
            yield from _not_finite_among(together)
            together, elements = [], 0
        together.append((name, value))
        elements += size
    yield from _not_finite_among(together)


def _floating(checkpoint: Checkpoint, inventory: Inventory) -> Iterator[tuple[str, Array | Iterator[Array]]]:
    """Yield name and value of every variable that can hold NaN, as far as they can be read; a giant one in pieces."""
    # The inventory has read the values of layers already.
    known = {layer.variables[role]: value for layer in inventory.layers for role, value in layer.values.items()}
    dtypes = {variable.dtype for variable in checkpoint.variables}
    floating = {dtype for dtype in dtypes if dtype.startswith(("float", "bfloat", "complex"))}
    for variable in checkpoint.variables:
        if variable.dtype not in floating:
            continue
        try:
            value: Array | Iterator[Array] | None = known.get(variable.name)
            if value is None:
                value = variable.read() if variable.pieces is None else variable.pieces()
            yield variable.name, value
        except UnreadableCheckpoint:  # Verifying has seen the same damage, and says more of it.
            continue


def _not_finite_among(values: Sequence[tuple[str, Array]]) -> Iterator[tuple[str, int]]:
    """Yield the name of each of these values, all of one dtype, that is not finite throughout, and of how many not."""
    if len(values) > 1 and np.isfinite(np.concatenate([value.reshape(-1) for _, value in values])).all():
        return
    for name, value in values:
        finite = np.count_nonzero(np.isfinite(value))
        if finite != value.size:
            yield name, int(value.size - finite)
