"""V1 checkpoints: the single files of TensorFlow before 0.12, still read by every later one.

A file is a table (see `_table`). The empty key holds a `SavedTensorSlices` with metadata: every variable's name, type,
shape and slices. Every other key is that of one slice (see `_slices`) and holds its values (see `_slice_values`). A
sharded checkpoint is several such files, `NAME-00000-of-00002` …, and is named by the pattern `NAME-?????-of-00002`.

Source: tensorflow/core/util/tensor_slice_writer.cc, tensor_slice_reader.cc, saved_tensor_slice.proto.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from ckpt_doctor.checkpoint import Array, Checkpoint, Damage, FormatName, ModelDescriptions, Variable, numpy_dtype
from ckpt_doctor.errors import RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import _dtypes, _foreign, _slice_values, _slices, _table
from ckpt_doctor.formats._bundle import key_of, name_of
from ckpt_doctor.formats._bundle_index import looks_like_index
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._meta_graph import is_meta_graph, producer_of_meta_graph
from ckpt_doctor.formats._storage import (
    is_file,
    is_folder,
    is_remote,
    join,
    names_in,
    open_source,
    read_all,
    read_head,
    size_of,
    split,
)
from ckpt_doctor.formats._table import Table, TableError
from ckpt_doctor.formats.interface import Changes, Format
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats._atomic import Outputs
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged

_log = logging.getLogger(__name__)

FORMAT: Final = "tensor-slices-v1"
SHARD = re.compile(r"(?P<base>.*)-(?P<number>\d{5}|\?{5})-of-(?P<count>\d{5})", re.DOTALL)


class _Shard(NamedTuple):
    path: str
    table: Table


class _Tensor(NamedTuple):
    """What the metadata say of one variable; `slices` maps the extents of a slice to the shard that holds it."""

    key: bytes
    dtype: int
    shape: tuple[int, ...]
    slices: dict[_slices.Extents, _Shard]


class TensorSlicesV1(Format):
    """See the module."""

    name: FormatName = FORMAT

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is a table that is no bundle's index, or stands for the shards of one."""
        if head and not looks_like_index(head) and self._is_ours(path):
            return True
        # A damaged shard is known by its neighbours. A folder of training data may hold a thousand files so named.
        pattern = sharded_name(path)
        return pattern is not None and any(map(self._is_ours, islice(_existing(pattern), 3)))

    def read(self, path: str) -> Checkpoint:
        """See `Format.read`; a shard that is missing or damaged takes only its own variables along.

        Raises:
            UnreadableCheckpoint: No shard can be read.
        """
        pattern = sharded_name(path)
        paths = _shard_paths(pattern) if pattern else [path]
        shards, damages = _open(paths)
        tensors: dict[bytes, _Tensor] = {}
        for shard in list(shards):
            try:
                _read_metadata(shard, tensors)
            except TableError as error:  # noqa: PERF203 - each may fail alone
                damages.append(_damage(shard.path, error))
                shards.remove(shard)
        name = pattern or path
        _log.debug("%s: %d of %d files read, %d variables", name, len(shards), len(paths), len(tensors))
        if not shards:
            raise UnreadableCheckpoint(name, FORMAT, tuple(damages))
        variables = [
            Variable(
                name_of(tensor.key),
                tensor.shape,
                _dtypes.name_of(tensor.dtype),
                _dtypes.size_of(tensor.dtype) * math.prod(tensor.shape),
                partial(_read_value, name, tensor),
            )
            for tensor in tensors.values()
        ]
        meta_path = f"{SHARD.fullmatch(pattern)['base'] if pattern else path}.meta"  # type: ignore[index]
        meta_graph = read_all(meta_path) if is_file(meta_path) else None
        if meta_graph is not None and _foreign.describe(meta_graph[:4096]):
            meta_graph = None
        files = ([meta_path] if meta_graph is not None else []) + [path for path in paths if is_file(path)]
        return Checkpoint(
            path=name,
            format=FORMAT,
            variables=tuple(variables),
            files=tuple(files),
            bytes=sum(size_of(file) for file in files),
            producer=None if meta_graph is None else producer_of_meta_graph(meta_graph),
            descriptions=ModelDescriptions(
                meta_graph=meta_graph, meta_graph_path=None if meta_graph is None else meta_path
            ),
            damages=tuple(damages),
            attributes={"shards": tuple(shards), "tensors": tensors},
        )

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """See `Format.verify`; yields what is not among the checkpoint's `damages` already."""
        tensors: dict[bytes, _Tensor] = checkpoint.attributes["tensors"]
        for shard in checkpoint.attributes["shards"]:
            bad = {error.offset: error for error in shard.table.damages()}
            lost = _names_by_block(shard, tensors) if bad else {}
            for error in bad.values():
                yield _damage(shard.path, error, tuple(lost.get(error.offset, ())))
        for variable in checkpoint.variables:
            tensor = tensors[key_of(variable.name)]
            try:
                _check_slices(tensor)
            except Damaged as error:
                yield Damage("truncated", f"{checkpoint.path}, {variable.name}", error.reason, (variable.name,))

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """See `Format.footprint`; a sharded checkpoint is named by its base, by any shard or by the pattern."""
        from ckpt_doctor.formats.replacing import Footprint, refused

        match = SHARD.fullmatch(str(target))
        base = match["base"] if match else str(target)
        places = _places(checkpoint, str(target))
        beside = [f"{base}.index"]  # A bundle of that prefix is opened instead.
        if places != [base]:
            if match and not SHARD.fullmatch(checkpoint.path):
                raise refused(target, f"is the name of one of {int(match['count'])} shards; give {base}")
            folder, _ = split(base)
            shards = (join(folder, name) for name, _ in names_in(folder) if SHARD.fullmatch(name))
            beside += [base, *(path for path in shards if path.startswith(f"{base}-") and base_of(path) == base)]
        return Footprint(base, (*map(Path, places), Path(f"{base}.meta")), tuple(map(Path, beside)))

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """See `Format.parts`; a `.meta` belongs to it if it is a graph."""
        meta = f"{base_of(checkpoint.path) or checkpoint.path}.meta"
        files = [file for file in checkpoint.files if file != meta]
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
        """See `Format.stage`; a sharded checkpoint becomes `TARGET-00000-of-…`. The backup is all that is replaced."""
        from ckpt_doctor.formats.staging import stage_copy, stage_in_place

        if target is None:
            return stage_in_place(
                self,
                checkpoint,
                lambda outputs: self._write(checkpoint, checkpoint.path, changes, outputs),
                owner=Path(base_of(checkpoint.path) or checkpoint.path),
                backups=None if backup else (),
            )
        return stage_copy(
            self,
            checkpoint,
            target,
            lambda outputs: self._write(checkpoint, str(target), changes, outputs),
            overwrite=overwrite,
            opened_by=_name_at(checkpoint, str(target)),
        )

    def _write(self, checkpoint: Checkpoint, target: str, changes: Changes, outputs: Outputs) -> None:
        if checkpoint.damages:
            damage = checkpoint.damages[0]
            raise RepairRefused(f"{damage.where}: {damage.message}; a damaged checkpoint cannot be rewritten")
        shards: tuple[_Shard, ...] = checkpoint.attributes["shards"]
        new = _new_values(checkpoint, changes)
        match = SHARD.fullmatch(target)
        base = match["base"] if match else target
        for number, (shard, place) in enumerate(zip(shards, _places(checkpoint, target), strict=True)):
            staged = outputs.stage(Path(place), like=Path(shard.path))
            is_last = number == len(shards) - 1
            with staged.open("wb") as file:
                try:
                    _table.write(_changed(shard, new, adds=is_last), file.write)
                except TableError as error:
                    raise RepairRefused(f"{shard.path}, {error}; a damaged checkpoint cannot be rewritten") from error
        meta = checkpoint.descriptions.meta_graph if changes.meta_graph is None else changes.meta_graph
        old = checkpoint.descriptions.meta_graph_path
        if meta is not None and (changes.meta_graph is not None or f"{base}.meta" != old):
            outputs.stage(Path(f"{base}.meta"), like=Path(checkpoint.place_of(old or shards[0].path))).write_bytes(meta)

    def _is_ours(self, path: str) -> bool:
        try:
            source = open_source(path)
            return bytes(source.read(source.size - 8, 8)) == _table.MAGIC
        except (FileNotFoundError, OutOfBounds):
            return False


def sharded_name(path: str) -> str | None:
    """Return the pattern of a sharded checkpoint from the pattern, a shard, or the base; None where it is none."""
    match = SHARD.fullmatch(path)
    if match:
        return f"{match['base']}-?????-of-{match['count']}"
    if is_remote(path) or is_file(path) or is_folder(path):
        return None
    folder, name = split(path)
    if not name:
        return None
    for found, _ in names_in(folder):
        match = SHARD.fullmatch(found)
        # The data files of bundles are named alike.
        if match and match["base"] == name:
            return join(folder, f"{name}-?????-of-{match['count']}")
    return None


def base_of(path: str) -> str | None:
    """Return the name that a sharded checkpoint was saved under, from that of a shard; None where it is none."""
    match = SHARD.fullmatch(path)
    return match["base"] if match else None


def _name_at(checkpoint: Checkpoint, target: str) -> str:
    """Return the path that a copy is opened by: the file, or the pattern of its shards."""
    match = SHARD.fullmatch(checkpoint.path)
    return f"{base_of(target) or target}-?????-of-{match['count']}" if match else target


def _places(checkpoint: Checkpoint, target: str) -> list[str]:
    """Return where each shard of a copy goes."""
    base = base_of(target) or target
    places = []
    for shard in checkpoint.attributes["shards"]:
        sharded = SHARD.fullmatch(shard.path)
        places.append(f"{base}-{sharded['number']}-of-{sharded['count']}" if sharded else target)
    return places


def _shard_paths(pattern: str) -> list[str]:
    """Return the paths of all shards; a name that claims absurdly many is cut off."""
    match = SHARD.fullmatch(pattern)
    if match is None:
        return [pattern]
    count = int(match["count"])
    return [f"{match['base']}-{number:05d}-of-{match['count']}" for number in range(max(count, 1))]


def _existing(pattern: str) -> Iterator[str]:
    return filter(is_file, _shard_paths(pattern))


def _open(paths: list[str]) -> tuple[list[_Shard], list[Damage]]:
    shards = []
    damages = []
    for path in paths:
        try:
            shards.append(_Shard(path, Table(open_source(path))))
        except FileNotFoundError:  # noqa: PERF203 - each may fail alone
            damages.append(Damage("missing-shard", path, f"is missing; it is one of {len(paths)} shards"))
        except TableError as error:
            damages.append(_damage(path, error))
    return shards, damages


def _read_metadata(shard: _Shard, tensors: dict[bytes, _Tensor]) -> None:
    """Add what one shard says of its variables.

    Raises:
        TableError: The metadata are damaged.
    """
    key, value = next(shard.table.items(), (b"-", b""))
    if key != b"":
        raise TableError("not-a-checkpoint", 0, "is a table, not a checkpoint: it has no metadata")
    try:
        metadata = pb.SavedTensorSlices.FromString(value).meta
    except DecodeError as error:
        raise TableError("checksum-mismatch", 0, "the metadata cannot be parsed") from error
    for entry in metadata.tensor:
        shape = tuple([dim.size for dim in entry.shape.dim])
        if shape and min(shape) < 0:
            raise TableError(
                "checksum-mismatch", 0, f"declares an impossible shape for {name_of(entry.name)}: {list(shape)}"
            )
        tensor = tensors.setdefault(entry.name, _Tensor(entry.name, entry.type, shape, {}))
        for extents in entry.slice:
            tensor.slices[_slices.extents_of(extents)] = shard


def _names_by_block(shard: _Shard, tensors: dict[bytes, _Tensor]) -> dict[int, dict[str, None]]:
    """Return, for the offset of every block of a shard, the names of the variables of which a slice lies in it."""
    names: dict[int, dict[str, None]] = {}
    for tensor in tensors.values():
        for extents, holder in tensor.slices.items():
            handle = shard.table.block_of(_slices.key_of(tensor.key, extents)) if holder is shard else None
            if handle is not None:
                names.setdefault(handle.offset, {})[name_of(tensor.key)] = None
    return names


def _check_slices(tensor: _Tensor) -> list[tuple[tuple[slice, ...], _slices.Extents, _Shard]]:
    """Return where each slice lies in its variable.

    Raises:
        Damaged: They do not make up the variable.
    """
    out = [(_slices.bounds(extents, tensor.shape), extents, shard) for extents, shard in tensor.slices.items()]
    found = sum(math.prod(index.stop - index.start for index in where) for where, _, _ in out)
    if found != math.prod(tensor.shape):
        message = f"its slices hold {found} values, shape {list(tensor.shape)} needs {math.prod(tensor.shape)}"
        raise Damaged("truncated", message)
    return out


def _read_value(path: str, tensor: _Tensor) -> Array:
    where = f"{path}, {name_of(tensor.key)}"
    try:
        parts = []
        for place, extents, shard in _check_slices(tensor):
            where = f"{shard.path}, {name_of(tensor.key)}"
            shape = tuple(index.stop - index.start for index in place)
            stored = shard.table.get(_slices.key_of(tensor.key, extents))
            if stored is None:
                raise Damaged("truncated", "a slice is not in the table")
            parts.append((place, _shaped(_slice_values.decode(stored, tensor.dtype, math.prod(shape)), shape)))
        if len(parts) == 1:
            return parts[0][1]
        out = _empty(tensor)
    except Damaged as error:
        # A damaged table says where in it; a slice outside its variable is told as a value that is not whole.
        kind = error.kind if isinstance(error, TableError) else "truncated"
        damage = Damage(kind, where, str(error), (name_of(tensor.key),))
        raise UnreadableCheckpoint(path, FORMAT, (damage,)) from error
    for place, value in parts:
        out[place] = value
    return out


def _shaped(flat: Array, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError as error:  # More dimensions than NumPy has.
        raise Damaged("truncated", str(error)) from error


def _empty(tensor: _Tensor) -> Array:
    """Return the array that takes the slices of a variable, which hold as many values as its shape says."""
    dtype = _dtypes.array_type(tensor.dtype)
    if dtype is None:
        raise Damaged("truncated", f"holds values of type {_dtypes.name_of(tensor.dtype)}, which have no array")
    try:
        return np.empty(tensor.shape, dtype)
    except ValueError as error:  # More dimensions than NumPy has.
        raise Damaged("truncated", str(error)) from error


def _damage(path: str, error: TableError, names: tuple[str, ...] = ()) -> Damage:
    foreign = _foreign.describe(read_head(path))
    if foreign is not None and error.kind == "truncated":
        return Damage("not-a-checkpoint", path, f"is {foreign}", names)
    return Damage(error.kind, f"{path}, byte {error.offset}", error.reason, names)


def _new_values(checkpoint: Checkpoint, changes: Changes) -> dict[bytes, tuple[Array, pb.SavedSliceMeta | None]]:
    """Return, for the key of every slice that changes, its values; and its metadata where the variable is new."""
    tensors: dict[bytes, _Tensor] = checkpoint.attributes["tensors"]
    out: dict[bytes, tuple[Array, pb.SavedSliceMeta | None]] = {}
    for name, given in changes.values.items():
        value = np.asarray(given)
        tensor = tensors.get(key_of(name))
        try:
            _slice_values.encode(value.reshape(-1)[:0])
            if tensor is None:
                number = _dtypes.number_of(value.dtype)
                extents = tuple((0, _slices.WHOLE) for _ in value.shape)
                meta = pb.SavedSliceMeta(name=key_of(name), type=number, slice=[_slice_message(extents)])
                meta.shape.CopyFrom(pb.TensorShape(dim=[pb.TensorShape.Dim(size=size) for size in value.shape]))
                out[_slices.key_of(key_of(name), extents)] = (value, meta)
                continue
            if value.shape != tensor.shape or value.dtype != numpy_dtype(_dtypes.name_of(tensor.dtype)):
                raise ValueError(
                    f"the new value is {value.dtype} of shape {list(value.shape)}, stored is "
                    f"{_dtypes.name_of(tensor.dtype)} of shape {list(tensor.shape)}"
                )
            for place, extents, _ in _check_slices(tensor):
                out[_slices.key_of(tensor.key, extents)] = (value[place], None)
        except (KeyError, ValueError, Damaged) as error:
            raise RepairRefused(f"{name}: {error}") from error
    return out


def _slice_message(extents: _slices.Extents) -> pb.TensorSlice:
    message = pb.TensorSlice()
    for start, length in extents:
        extent = message.extent.add()
        if length != _slices.WHOLE:
            extent.start, extent.length = start, length
    return message


def _changed(
    shard: _Shard, new: dict[bytes, tuple[Array, pb.SavedSliceMeta | None]], *, adds: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a shard with the new values, and with the new variables if it `adds` them."""
    added = sorted((key, value) for key, value in new.items() if value[1] is not None) if adds else []
    for key, stored in shard.table.items():
        if key == b"":
            if added:
                metadata = pb.SavedTensorSlices.FromString(stored)
                metadata.meta.tensor.extend([meta for _, (_, meta) in added if meta is not None])
                stored = metadata.SerializeToString(deterministic=True)
            yield key, stored
            continue
        while added and added[0][0] < key:
            yield _added_entry(*added.pop(0))
        if key in new:
            message = pb.SavedTensorSlices.FromString(stored)
            message.data.data.CopyFrom(_slice_values.encode(new[key][0]))
            stored = message.SerializeToString(deterministic=True)
        yield key, stored
    for entry in added:
        yield _added_entry(*entry)


def _added_entry(key: bytes, value: tuple[Array, pb.SavedSliceMeta | None]) -> tuple[bytes, bytes]:
    array, meta = value
    assert meta is not None
    message = pb.SavedTensorSlices()
    message.data.name = meta.name
    message.data.slice.CopyFrom(meta.slice[0])
    message.data.data.CopyFrom(_slice_values.encode(array))
    return key, message.SerializeToString(deterministic=True)
