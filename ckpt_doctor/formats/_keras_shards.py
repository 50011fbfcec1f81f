"""Sharded Keras 3 weights: an index `x.weights.json` and the HDF5 files that it names.

::

    {"metadata": {"total_size": 1234}, "weight_map": {"/layers/dense/vars": "x_00000.weights.h5", …}}

A group that did not fit one shard names a list of them. Keras opens `x_00000.weights.h5` whatever the map says, so a
copy under another name renames its shards. Source: `ShardedH5IOStore` in keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckpt_doctor.checkpoint import Array, Checkpoint, Damage, Variable
from ckpt_doctor.errors import BadRequest, RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign, _json
from ckpt_doctor.formats._hdf5 import Dataset
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_open import read_all
from ckpt_doctor.formats._keras_store import OLD_LAYERS, Store, read_store
from ckpt_doctor.formats._storage import is_file, join, size_of, split
from ckpt_doctor.formats._storage import read_all as read_file
from ckpt_doctor.formats.interface import Changes

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats._atomic import Outputs
    from ckpt_doctor.formats.replacing import Footprint

_log = logging.getLogger(__name__)

_FORMAT: Final = "keras-weights-v3"
_LONGEST_INDEX_BYTES = 1 << 28
_INDEX_ENDING = ".weights.json"
SHARD = re.compile(r"(?P<base>.+)_\d{5}\.weights\.h5")


@dataclass(frozen=True)
class _Index:
    """The index, as stored: `weight_map` maps a group's path without slash to its shards, the first one first."""

    parsed: dict[str, Any]
    weight_map: dict[str, tuple[str, ...]]

    @property
    def shards(self) -> tuple[str, ...]:
        """Every shard once, in the order of the index."""
        return tuple(dict.fromkeys(shard for shards in self.weight_map.values() for shard in shards))


def read(path: str) -> Checkpoint:
    """Read the index and every shard that is there. See `Format.read`."""
    index = _read_index(path)
    folder = split(path)[0]
    damages: list[Damage] = []
    stores: dict[str, Store] = {}
    for shard in index.shards:
        where = join(folder, shard)
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            damages.append(
                Damage(
                    "not-a-checkpoint", path, f"the index names {shard!r}, which is not a file next to it; not followed"
                )
            )
        elif not is_file(where):
            lost = tuple(group for group, shards in index.weight_map.items() if shard in shards)
            message = f"the shard is missing; the index puts {len(lost)} groups of weights into it"
            damages.append(Damage("missing-shard", where, message, lost))
        else:
            try:
                stores[shard] = read_store(Hdf5File.at(where), path, _FORMAT)
            except UnreadableCheckpoint as error:
                damages.extend(error.damages)
    if index.shards and not stores:
        raise UnreadableCheckpoint(path, _FORMAT, tuple(damages))
    variables, shard_of = _merge(index, stores)
    _log.debug("%s: index of %d shards, %d of them read", path, len(index.shards), len(stores))
    groups = _groups(stores)
    files = (*(join(folder, shard) for shard in stores), path)
    return Checkpoint(
        path=path,
        format=_FORMAT,
        variables=tuple(replace(each, label=groups.get(each.name.rpartition("/")[0])) for each in variables),
        files=files,
        bytes=sum(size_of(file) for file in files),
        damages=(*damages, *(damage for store in stores.values() for damage in store.damages)),
        attributes={
            "kind": "sharded",
            "era": "3.x",
            "layout": OLD_LAYERS if any(store.old_layers for store in stores.values()) else "layers",
            "keras_version": None,
            "groups": groups,
            "datasets": {name: stores[shard].datasets[name] for name, shard in shard_of.items()},
            "unread": {name: why for store in stores.values() for name, why in store.unread.items()},
            "shard_of": shard_of,
            "shards": {shard: store.file for shard, store in stores.items()},
            "weight_map": index.weight_map,
        },
    )


def _groups(stores: Mapping[str, Store]) -> dict[str, str | None]:
    """Return the groups of all shards; of one that is split, only the first piece has the name."""
    groups: dict[str, str | None] = {}
    for store in stores.values():
        for group, name in store.groups.items():
            groups[group] = groups.get(group) or name
    return groups


def _merge(index: _Index, stores: Mapping[str, Store]) -> tuple[tuple[Variable, ...], dict[str, str]]:
    """Return the variables of all shards; where two hold one, that of the shard which Keras looks into first."""
    variables: dict[str, Variable] = {}
    shard_of: dict[str, str] = {}
    for shard, store in stores.items():
        for variable in store.variables:
            listed = index.weight_map.get(variable.name.rpartition("/")[0], ())
            taken = shard_of.get(variable.name)
            if taken is None or (
                shard in listed and (taken not in listed or listed.index(shard) < listed.index(taken))
            ):
                variables[variable.name] = variable
                shard_of[variable.name] = shard
    return tuple(variables.values()), shard_of


def _read_index(path: str) -> _Index:
    """Read the index.

    Raises:
        UnreadableCheckpoint: It is none.
    """

    def refuse(message: str) -> UnreadableCheckpoint:
        return UnreadableCheckpoint(path, _FORMAT, (Damage("not-a-checkpoint", path, message),))

    if size_of(path) > _LONGEST_INDEX_BYTES:
        raise refuse(f"{size_of(path)} bytes; the index of sharded weights is a short JSON file")
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file") from None
    document = _json.parsed_or_none(content)
    mapped = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(mapped, dict) or not all(_is_shards(shards) for shards in mapped.values()):
        described = _foreign.describe(content[:4096])
        if described == "a text file" and content.lstrip().startswith(b"{"):
            raise refuse("a JSON file that is truncated or has no weight_map from groups to files")
        raise refuse(f"{f'is {described}' if described else 'is not JSON'}; expected the index of sharded weights")
    weight_map = {
        str(group).strip("/"): (shards,) if isinstance(shards, str) else tuple(shards)
        for group, shards in mapped.items()
    }
    return _Index(document, weight_map)


def _is_shards(entry: object) -> bool:
    """Return whether an entry of the map names one shard or several."""
    return isinstance(entry, str) or (isinstance(entry, list) and all(isinstance(shard, str) for shard in entry))


def verify(checkpoint: Checkpoint) -> Iterator[Damage]:
    """Read every value of every shard."""
    shard_of: dict[str, str] = checkpoint.attributes["shard_of"]
    files: dict[str, Hdf5File] = checkpoint.attributes["shards"]
    inside: dict[str, dict[str, Dataset]] = {shard: {} for shard in files}
    for name, dataset in checkpoint.attributes["datasets"].items():
        inside[shard_of[name]][name] = dataset
    for shard, datasets in inside.items():
        yield from read_all(files[shard], datasets)


def _in_shard(checkpoint: Checkpoint, shard: str) -> dict[str, Any]:
    """Return the datasets that lie in one shard."""
    shard_of = checkpoint.attributes["shard_of"]
    return {name: each for name, each in checkpoint.attributes["datasets"].items() if shard_of[name] == shard}


def footprint(checkpoint: Checkpoint, target: Path) -> Footprint:
    """Return the names that a copy takes, and those of the shards of an older index there."""
    from ckpt_doctor.formats.replacing import Footprint

    if not target.name.endswith(_INDEX_ENDING):
        raise BadRequest(f"{target}: the name of sharded Keras weights must end in {_INDEX_ENDING}")
    names = _new_names(_read_index(checkpoint.place).shards, Path(checkpoint.path), target)
    new = [target.with_name(name) for name in names.values()]
    return Footprint(str(target), (target, *new), tuple(target.with_name(name) for name in _shards_named_by(target)))


def refuse_shared(older: Checkpoint) -> None:
    """Refuse to replace sharded weights of which a shard belongs to another index as well."""
    from ckpt_doctor.formats.replacing import refused

    path = Path(older.path)
    own = {Path(file).name for file in older.files}
    for other in sorted(path.parent.glob(f"*{_INDEX_ENDING}")):
        shared = sorted(own.intersection(_shards_named_by(other))) if other.name != path.name else []
        if shared:
            raise refused(path, f"its shard {path.with_name(shared[0])} also belongs to {other}; pass another name")


def refuse_shard(target: Path) -> None:
    """Refuse to write one file where an index beside it expects one of its shards."""
    from ckpt_doctor.formats.replacing import refused

    match = SHARD.fullmatch(target.name)
    if match is None:
        return
    index = target.with_name(f"{match['base']}{_INDEX_ENDING}")
    if target.name in _shards_named_by(index):
        raise refused(target, f"is a shard of {index}; pass another name")


def _shards_named_by(path: Path) -> tuple[str, ...]:
    """Return the names of files that an index gives to its shards; none where it is not an index."""
    try:
        names = _read_index(str(path)).shards
    except (BadRequest, UnreadableCheckpoint):
        return ()
    return tuple(name for name in names if Path(name).name == name)


def stage_copy(outputs: Outputs, checkpoint: Checkpoint, target: Path, changes: Changes) -> None:
    """Stage a copy of all shards with `changes`, and its index last."""
    from ckpt_doctor.formats._hdf5_edit import apply

    _refuse_incomplete(checkpoint)
    path = Path(checkpoint.place)
    index = _read_index(checkpoint.place)
    values = _by_shard(checkpoint, changes)
    names = _new_names(index.shards, path, target)
    for shard, name in names.items():
        temporary = outputs.stage(target.with_name(name), like=path.with_name(shard), copy=True)
        apply(temporary, shard, _in_shard(checkpoint, shard), values.get(shard, {}), {})
    temporary = outputs.stage(target, like=path)
    parsed = _grown(index.parsed, checkpoint, changes)
    if names == {shard: shard for shard in names} and parsed is index.parsed:
        temporary.write_bytes(path.read_bytes())
        return
    renamed = {
        group: names[shards] if isinstance(shards, str) else [names[shard] for shard in shards]
        for group, shards in parsed["weight_map"].items()
    }
    temporary.write_text(json.dumps({**parsed, "weight_map": renamed}, indent=4))


def stage_changed(outputs: Outputs, checkpoint: Checkpoint, changes: Changes) -> None:
    """Stage the shards that change, and the index where its total does."""
    from ckpt_doctor.formats._hdf5_edit import apply

    _refuse_incomplete(checkpoint)
    path = Path(checkpoint.path)
    for shard, values in _by_shard(checkpoint, changes).items():
        target = path.with_name(shard)
        apply(outputs.stage(target, like=target, copy=True), shard, _in_shard(checkpoint, shard), values, {})
    index = _read_index(checkpoint.path)
    parsed = _grown(index.parsed, checkpoint, changes)
    if parsed is not index.parsed:
        outputs.stage(path, like=path).write_text(json.dumps(parsed, indent=4))


def _refuse_incomplete(checkpoint: Checkpoint) -> None:
    """Refuse to copy a store of which a part is missing."""
    if checkpoint.damages:
        raise RepairRefused(f"{checkpoint.path}: not rewritten: {checkpoint.damages[0].message}")


def _by_shard(checkpoint: Checkpoint, changes: Changes) -> dict[str, dict[str, Array]]:
    """Return the changes of each shard; a new variable goes where its group's first weights are."""
    values: dict[str, dict[str, Array]] = {}
    for name, value in changes.values.items():
        shard = checkpoint.attributes["shard_of"].get(name)
        if shard is None:
            shards = checkpoint.attributes["weight_map"].get(name.rpartition("/")[0])
            if not shards:
                raise RepairRefused(f"{checkpoint.path}: the index has no group for the new variable {name!r}")
            shard = shards[0]
        values.setdefault(shard, {})[name] = value
    return values


def _grown(parsed: dict[str, Any], checkpoint: Checkpoint, changes: Changes) -> dict[str, Any]:
    """Return the index with the bytes of new variables in its total; the very same where there are none."""
    new = sum(int(value.nbytes) for name, value in changes.values.items() if checkpoint.variable(name) is None)
    metadata = parsed.get("metadata")
    if not new or not isinstance(metadata, dict) or not isinstance(metadata.get("total_size"), (int, float)):
        return parsed
    return {**parsed, "metadata": {**metadata, "total_size": metadata["total_size"] + new}}


def _new_names(shards: tuple[str, ...], path: Path, target: Path) -> dict[str, str]:
    """Return the new name of each shard: `x_00000.weights.h5` becomes `y_00000.weights.h5` where the index is `y`'s."""
    old, new = (each.name.removesuffix(_INDEX_ENDING) for each in (path, target))
    return {shard: new + shard[len(old) :] if shard.startswith(f"{old}_") else shard for shard in shards}
