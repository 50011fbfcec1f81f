"""Tensor bundles: the V2 checkpoints of TensorFlow 1 and 2.

::

    NAME.index                    a table of keys and where their values lie (see `_bundle_index`)
    NAME.data-00000-of-00001 …    the values (see `_bundle_values`)
    NAME.meta                     the graph, beside checkpoints of `tf.train.Saver`

The index commits a save. A checkpoint is named by its prefix, `NAME`; the folder's text file `checkpoint` belongs to no
single one and is never written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ckpt_doctor.checkpoint import Checkpoint, Damage, FormatName, ModelDescriptions
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._bundle import Bundle
from ckpt_doctor.formats._bundle_index import FORMAT, looks_like_index, prefix_of, shard_path
from ckpt_doctor.formats._meta_graph import is_meta_graph, producer_of_meta_graph
from ckpt_doctor.formats._storage import is_file, join, names_in, read_all, size_of, split
from ckpt_doctor.formats.interface import Changes, Format

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged


class TensorBundle(Format):
    """See the module."""

    name: FormatName = FORMAT

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is a prefix with an index, or one of the files of such a prefix.

        A file that is named `.index` is recognised by its bytes.
        """
        prefix = prefix_of(path)
        if path.endswith(".index"):
            return looks_like_index(head)
        if prefix is not None:
            return is_file(f"{prefix}.index")
        return is_file(f"{path}.index")

    def read(self, path: str) -> Checkpoint:
        """See `Format.read`; data files that are missing or short are damages, names and shapes are given all the same.

        Raises:
            FileNotFoundError: There is no index.
            UnreadableCheckpoint: The index is damaged.
        """
        prefix = prefix_of(path)
        if prefix is None:
            prefix = path
        # A prefix that is empty but for its folder cannot be told from the folder; its index can.
        bundle = Bundle(prefix if split(prefix)[1] else f"{prefix}.index", prefix)
        damages = list(bundle.damages())
        variables, bookkeeping = bundle.variables()
        files = [
            path for number in bundle.shard_numbers() if bundle.shard(number) and (path := bundle.shard_path(number))
        ]
        meta_path = f"{prefix}.meta"
        meta_graph, meta_damage = _read_meta(meta_path)
        if meta_graph is not None or meta_damage is not None:
            files.append(meta_path)
        if meta_damage is not None:
            damages.append(meta_damage)
        files.append(bundle.index_path)
        return Checkpoint(
            path=bundle.path,
            format=FORMAT,
            variables=tuple(variables),
            bookkeeping=tuple(bookkeeping),
            files=tuple(files),
            bytes=sum(size_of(path) for path in files),
            producer=None if meta_graph is None else producer_of_meta_graph(meta_graph),
            descriptions=ModelDescriptions(
                meta_graph=meta_graph,
                meta_graph_path=meta_path if meta_graph is not None else None,
                object_graph=bundle.object_graph(),
            ),
            damages=tuple(damages),
            attributes={"bundle": bundle},
        )

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """See `Format.verify`; yields what is not among the checkpoint's `damages` already."""
        yield from bundle_of(checkpoint).verify()

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """See `Format.footprint`; a prefix may be named by any file of it."""
        from ckpt_doctor.formats.replacing import Footprint

        prefix = _prefix_at(target)
        _refuse_part_of_saved_model(prefix, target)
        bundle = bundle_of(checkpoint)
        shards = [Path(shard_path(prefix, number, bundle.shards)) for number in bundle.shard_numbers()]
        folder, _ = split(prefix)
        beside = [path for name, _ in names_in(folder) if prefix_of(path := join(folder, name)) == prefix]
        return Footprint(
            prefix,
            (Path(f"{prefix}.index"), Path(f"{prefix}.meta"), *shards),
            # A file or folder of the prefix' own name is taken for it, before the bundle or instead of it.
            (*map(Path, beside), *([Path(prefix)] if split(prefix)[1] else [])),
        )

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """See `Format.parts`; a `.meta` belongs to it if it is a graph, a data file if the index names it."""
        bundle = bundle_of(checkpoint)
        strange = {damage.where for damage in checkpoint.damages if damage.kind == "not-a-checkpoint"}
        meta = f"{bundle.prefix}.meta"
        files = [file for file in checkpoint.files if file not in strange and file != meta]
        if is_file(meta) and is_meta_graph(read_all(meta)):
            files.append(meta)
        return tuple(map(Path, files))

    def stage(
        self,
        checkpoint: Checkpoint,
        target: Path | None,
        changes: Changes,
        *,
        overwrite: bool = False,
        backup: bool = True,
    ) -> Staged:
        """See `Format.stage`; `target` is a new prefix. In place, new values are appended to the last data file.

        The backup is the old index (and `.meta`): the data are only added to.
        """
        from ckpt_doctor.formats import _bundle_writer
        from ckpt_doctor.formats.staging import stage_copy, stage_in_place

        bundle = bundle_of(checkpoint)
        if target is None:
            index, meta = Path(bundle.index_path), Path(f"{bundle.prefix}.meta")
            kept = [index, *([meta] if changes.meta_graph is not None else [])]
            return stage_in_place(
                self,
                checkpoint,
                lambda outputs: _bundle_writer.stage_changes(bundle, changes, outputs),
                owner=Path(bundle.prefix),
                backups=kept if backup else (),
            )
        prefix = _prefix_at(target)
        return stage_copy(
            self,
            checkpoint,
            target,
            lambda outputs: _bundle_writer.stage_copy(bundle, prefix, changes, outputs),
            overwrite=overwrite,
            opened_by=prefix if split(prefix)[1] else f"{prefix}.index",
        )

    def entries(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """See `Format.entries`: the entries of the index, those of slices behind that of their variable."""
        return bundle_of(checkpoint).entries()


def bundle_of(checkpoint: Checkpoint) -> Bundle:
    """Return the open bundle of a checkpoint that this package's `read` gave."""
    return cast("Bundle", checkpoint.attributes["bundle"])


def _prefix_at(target: Path) -> str:
    """Return the prefix that `target`, a prefix or the name of one of its files, stands for."""
    prefix = prefix_of(str(target))
    return str(target) if prefix is None else prefix


def _refuse_part_of_saved_model(prefix: str, target: Path) -> None:
    """Refuse the prefix of the variables inside a SavedModel: it is a part of another checkpoint."""
    from ckpt_doctor.formats.replacing import refused
    from ckpt_doctor.formats.saved_model import SavedModel

    folder = Path(prefix).parent
    if (folder.name, Path(prefix).name) == ("variables", "variables") and SavedModel().recognises(
        str(folder.parent), b""
    ):
        raise refused(target, f"is part of the SavedModel {folder.parent}; pass another name")


def _read_meta(path: str) -> tuple[bytes | None, Damage | None]:
    if not is_file(path):
        return None, None
    data = read_all(path)
    foreign = _foreign.describe(data[:4096])
    # A graph in text form is legitimate; nothing here can use it.
    if foreign == "a text file":
        return None, None
    if foreign is not None:
        return None, Damage("not-a-checkpoint", path, f"is {foreign}")
    return data, None
