"""What every checkpoint format offers: recognise, read, verify, stage a changed copy.

One file of this folder knows one format in both directions; nothing else in the package opens a model file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ckpt_doctor.checkpoint import Array, Checkpoint, Damage, FormatName

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged


@dataclass(frozen=True)
class ObjectPlace:
    """Where a new variable of an object-based (TF2) checkpoint belongs in its object graph.

    Attributes:
        attribute: The name under which its owner holds it: `moving_mean`.
        sibling: Key of a variable that the same object owns (`…/gamma/.ATTRIBUTES/VARIABLE_VALUE`); None: the owner is
            the object to which the new key's own path leads.
        full_name: The variable's name for people, `bn/moving_mean`.
        makes_owner: Whether objects to which the new key's path leads are made where the graph lacks them.
        beside: Other attributes of the owner, each with the key of a variable that is there: the owner holds them
            afterwards, if it did not hold anything under these names.
    """

    attribute: str
    sibling: str | None = None
    full_name: str = ""
    makes_owner: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Changes:
    """What a rewrite changes; everything else stays byte for byte what it was.

    Attributes:
        values: New value for each named variable. A name that the file lacks is added. The array's dtype and shape must
            be those of the stored variable, where there is one.
        meta_graph: A new serialised `MetaGraphDef` for the `.meta` beside a bundle; None keeps the old one.
        saved_model: A new serialised `SavedModel` for a SavedModel's `saved_model.pb`; None keeps the old one.
        weight_names: Legacy Keras HDF5 only, for layer groups that get new variables: layer name, as in
            `Checkpoint.attributes["weight_names"]`, to the whole list in the order of Keras' `layer.weights`, the order
            in which Keras loads. A group that holds one batch-norm layer needs none.
        objects: For variables that are added to an object-based checkpoint, where they belong; one that is left out
            goes where its key's path leads.
    """

    values: Mapping[str, Array] = field(default_factory=dict)
    meta_graph: bytes | None = None
    saved_model: bytes | None = None
    weight_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[str, ObjectPlace] = field(default_factory=dict)


class Format(Protocol):
    """One checkpoint format.

    Attributes:
        name: As in the JSON report; a format with several layouts gives the actual one in `Checkpoint.format`.
    """

    name: FormatName

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is of this format.

        Args:
            path: A file, or a checkpoint prefix that is no file itself.
            head: The first bytes of the file (empty where `path` is no file).
        """
        ...

    def read(self, path: str) -> Checkpoint:
        """Read names, shapes and descriptions; values stay in storage until they are asked for.

        Raises:
            UnreadableCheckpoint: Nothing of it can be judged.
        """
        ...

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """Read every byte and yield what is damaged: missing, short, or failing its checksum."""
        ...

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """Return the names that a copy of `checkpoint` at `target` takes.

        Raises:
            BadRequest: `target` cannot be the name of such a checkpoint.
        """
        ...

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """Return every file and folder that goes away when `checkpoint` is replaced by another.

        Raises:
            BadRequest: It cannot be replaced without losing something else.
        """
        ...

    def stage(
        self,
        checkpoint: Checkpoint,
        target: Path | None,
        changes: Changes,
        *,
        overwrite: bool = False,
        backup: bool = True,
    ) -> Staged:
        """Write `checkpoint` with `changes`, ready to be read and to be committed; until then nothing is changed.

        Args:
            checkpoint: What is changed.
            target: Where a copy is to be; None changes the checkpoint where it is, so that at every instant a whole
                checkpoint is there.
            changes: What is different afterwards.
            overwrite: Replace a checkpoint of the same format at `target`.
            backup: Keep the files that are replaced, where `target` is None.

        Raises:
            BadRequest: Something is at `target` that may not be replaced, or the files cannot be written.
            RepairRefused: The format cannot hold the change, or the checkpoint is damaged.
        """
        ...

    def entries(self, checkpoint: Checkpoint) -> Mapping[str, bytes]:
        """Return, for every variable, what the file says of its type, shape, place and checksum.

        Only formats that are added to in place know them (see `Staged.only_added`).
        """
        return {}

    def rewrite(
        self, checkpoint: Checkpoint, target: Path, changes: Changes, *, overwrite: bool = False
    ) -> tuple[Path, ...]:
        """Write a copy of `checkpoint` with `changes` to `target`; see `stage`.

        Returns:
            The files written.
        """
        with self.stage(checkpoint, target, changes, overwrite=overwrite) as staged:
            return staged.commit().files

    def rewrite_in_place(self, checkpoint: Checkpoint, changes: Changes, *, backup: bool = True) -> tuple[Path, ...]:
        """Change the checkpoint where it is; see `stage`.

        Returns:
            The backup files kept (empty without `backup`).
        """
        with self.stage(checkpoint, None, changes, backup=backup) as staged:
            return staged.commit().backups
