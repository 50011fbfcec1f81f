"""Writing tensor bundles: new values into a copy, or appended to the files that are there.

A new value goes over the old one where a copy is made and the sizes are equal, else to the end of the last data file;
all other bytes stay. The index is built anew with the entries that did not change as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.formats import _bundle_values, _dtypes, _object_graph, _slices, _table
from ckpt_doctor.formats._atomic import Outputs
from ckpt_doctor.formats._bundle import Bundle, key_of, name_of
from ckpt_doctor.formats._bundle_index import shard_path
from ckpt_doctor.formats._file_steps import may_append
from ckpt_doctor.formats._meta_graph import is_meta_graph
from ckpt_doctor.formats._storage import open_source
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb


@dataclass(frozen=True, eq=False)
class _NewValue:
    """One value as it will be stored, and the entry for it, whose place is not yet known."""

    key: bytes
    entry: pb.BundleEntry
    data: bytes


def stage_copy(bundle: Bundle, prefix: str, changes: Changes, outputs: Outputs) -> None:
    """Stage a copy of a bundle with changes; the index is staged last but for the `.meta`.

    Args:
        bundle: What is copied.
        prefix: The prefix of the copy.
        changes: What is different in it.
        outputs: Takes the files.

    Raises:
        RepairRefused: The bundle is damaged, or cannot hold the change.
    """
    new = _new_values(bundle, changes)
    staged = {}
    last = max(bundle.shards - 1, 0)
    for number in bundle.shard_numbers():
        source = Path(bundle.shard_path(number))
        if source.exists():
            target = Path(shard_path(prefix, number, bundle.shards))
            staged[number] = outputs.stage(target, like=source, copy=True)
    if new and last not in staged:
        staged[last] = outputs.stage(Path(shard_path(prefix, last, bundle.shards)))
    appended = []
    for value in new:
        old = bundle.records.get(value.key)
        if old is not None and not old.slices and old.size == len(value.data):
            with staged[old.shard].open("r+b") as file:
                file.seek(old.offset)
                file.write(value.data)
            value.entry.shard_id, value.entry.offset = old.shard, old.offset
        else:
            appended.append(value)
    if appended:
        with staged[last].open("ab") as file:
            _place(appended, last, file.tell())
            for value in appended:
                file.write(value.data)
    index = outputs.stage(Path(f"{prefix}.index"), like=Path(bundle.index_path))
    index.write_bytes(_index(bundle, new))
    _stage_meta(bundle, prefix, changes, outputs)


def stage_changes(bundle: Bundle, changes: Changes, outputs: Outputs) -> bytes | None:
    """Stage the change of a bundle where it is; at every instant of the commit a whole one is there.

    Args:
        bundle: What is changed.
        changes: What is different afterwards.
        outputs: Takes the files, and what is appended to the last data file.

    Returns:
        The new index; None where it stays as it is.

    Raises:
        BadRequest: Another program is appending to the data file as well.
        RepairRefused: The bundle is damaged, or cannot hold the change.
    """
    new = _new_values(bundle, changes)
    last = max(bundle.shards - 1, 0)
    data, index, meta = Path(bundle.shard_path(last)), Path(bundle.index_path), Path(f"{bundle.prefix}.meta")
    new_index = None
    if changes.meta_graph is not None and meta.exists() and not is_meta_graph(meta.read_bytes()):
        raise RepairRefused(f"{meta}: is not a graph, and the graph of the repaired checkpoint would replace it")
    if new:
        if not data.exists():
            _place(new, last, 0)
            outputs.stage(data).write_bytes(b"".join(value.data for value in new))
        elif may_append(data):
            size = data.stat().st_size
            _place(new, last, size)
            if outputs.append(data, [value.data for value in new], index=index) != size:
                raise BadRequest(f"{data}: another program writes to it; start again when it is done")
        else:
            # The old values stay where they are, so that the old index is right for the new file too.
            staged = outputs.stage(data, like=data, copy=True)
            with staged.open("ab") as file:
                _place(new, last, file.tell())
                for value in new:
                    file.write(value.data)
        new_index = _index(bundle, new)
        outputs.stage(index).write_bytes(new_index)
    if changes.meta_graph is not None:
        outputs.stage(meta, like=meta if meta.exists() else index).write_bytes(changes.meta_graph)
    return new_index


def _new_values(bundle: Bundle, changes: Changes) -> list[_NewValue]:
    """Return the entries that change, after everything that can be refused was."""
    _refuse_damage(bundle)
    values: dict[bytes, Array] = {key_of(name): np.asarray(value) for name, value in changes.values.items()}
    added = [key for key in values if key not in bundle.records]
    graph_key = key_of(_object_graph.KEY)
    if added and graph_key in bundle.records and graph_key not in values:
        serialised = bundle.object_graph()
        if serialised is None:
            raise RepairRefused(f"{bundle.path}: its object graph cannot be read; variables cannot be added")
        places = {name: changes.objects.get(name) for name in map(name_of, added)}
        values[graph_key] = np.array(_object_graph.with_variables(serialised, places), object)
    new = []
    for key, value in values.items():
        old = bundle.records.get(key)
        if old is None:
            new.append(_entry(bundle, key, value, pb.BundleEntry(dtype=_number_of(key, value))))
            continue
        if value.shape != old.shape or not _fits(value, old.dtype):
            raise RepairRefused(
                f"{key.decode('utf-8', 'replace')}: the new value is {value.dtype} of shape {list(value.shape)}, "
                f"stored is {_dtypes.name_of(old.dtype)} of shape {list(old.shape)}"
            )
        if not old.slices:
            new.append(_entry(bundle, key, value, pb.BundleEntry.FromString(old.raw)))
            continue
        for where, part in bundle.slice_keys(old):
            new.append(_entry(bundle, part, value[where], pb.BundleEntry.FromString(bundle.records[part].raw)))
    return new


def _entry(bundle: Bundle, key: bytes, value: Array, entry: pb.BundleEntry) -> _NewValue:
    if not key or (_slices.is_slice_key(key) and key not in bundle.records):
        raise RepairRefused(f"{key!r} cannot be a variable's name in a tensor bundle")
    data, crc = _bundle_values.encode(value, big_endian=bundle.big_endian)
    entry.shape.CopyFrom(pb.TensorShape(dim=[pb.TensorShape.Dim(size=size) for size in value.shape]))
    entry.size = len(data)
    entry.crc32c = crc
    return _NewValue(key, entry, data)


def _place(values: list[_NewValue], shard: int, offset: int) -> None:
    for value in values:
        value.entry.shard_id = shard
        value.entry.offset = offset
        offset += len(value.data)


def _index(bundle: Bundle, new: list[_NewValue]) -> bytes:
    items = {b"": bundle.header}
    items.update((key, record.raw) for key, record in bundle.records.items())
    items.update((value.key, value.entry.SerializeToString(deterministic=True)) for value in new)
    return _table.build(sorted(items.items()))


def _stage_meta(bundle: Bundle, prefix: str, changes: Changes, outputs: Outputs) -> None:
    source, target = Path(f"{bundle.prefix}.meta"), Path(f"{prefix}.meta")
    if changes.meta_graph is not None:
        like = source if source.exists() else Path(bundle.index_path)
        outputs.stage(target, like=like).write_bytes(changes.meta_graph)
    elif source.exists():
        outputs.stage(target, like=source, copy=True)


def _refuse_damage(bundle: Bundle) -> None:
    damage = next(iter(bundle.damages()), None)
    if damage is not None:
        raise RepairRefused(f"{damage.where}: {damage.message}; a damaged checkpoint cannot be rewritten")
    try:
        on_disk = open_source(bundle.index_path)
    except FileNotFoundError as error:
        raise BadRequest(f"{bundle.index_path}: was removed while it was worked on") from error
    stale = BadRequest(f"{bundle.index_path}: was changed by another program while it was worked on; start again")
    if on_disk.size != bundle.index_size:
        raise stale
    if Bundle(bundle.path, bundle.prefix).records != bundle.records:
        raise stale


def _number_of(key: bytes, value: Array) -> int:
    try:
        return _dtypes.number_of(value.dtype)
    except KeyError:
        raise RepairRefused(f"{key.decode('utf-8', 'replace')}: TensorFlow has no type for {value.dtype}") from None


def _fits(value: Array, number: int) -> bool:
    return _dtypes.array_type(number) == value.dtype
