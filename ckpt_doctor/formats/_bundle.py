"""An open tensor bundle: its index, its data files, and the variables in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property, partial
from operator import attrgetter

import numpy as np

from ckpt_doctor.checkpoint import Array, Damage, Variable
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import _bundle_small, _bundle_values, _dtypes, _foreign, _object_graph, _slices
from ckpt_doctor.formats._bundle_index import FORMAT, Record, read_index, shard_path
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._storage import Source, open_source, read_head

_log = logging.getLogger(__name__)

# Where an index claims more data files than this, only those that entries name are looked for.
_MOST_SHARDS = 4096


class Bundle:
    """One tensor bundle.

    Attributes:
        path: As its user would name it.
        prefix: What its file names begin with.
        index_size: Size of the index in bytes.
        header: The serialised `BundleHeader`.
        shards: Number of data files.
        big_endian: Whether numbers are stored most significant byte first.
        records: Every entry by key, in the order of the file.

    Raises:
        FileNotFoundError: There is no index.
        UnreadableCheckpoint: The index is damaged.
    """

    def __init__(self, path: str, prefix: str) -> None:
        self.path = path
        self.prefix = prefix
        source = open_source(self.index_path)
        self.index_size = source.size
        self.header, self.shards, self.big_endian, self.records = read_index(path, source)
        self._sources: dict[int, Source | None] = {}
        self._verified = _bundle_small.Verified()
        _log.debug("%s: index of %d entries, %d data files", self.index_path, len(self.records), self.shards)

    @property
    def index_path(self) -> str:
        """The file that commits a save."""
        return f"{self.prefix}.index"

    def shard_path(self, number: int) -> str:
        """Return the path of a data file."""
        return shard_path(self.prefix, number, self.shards)

    def shard(self, number: int) -> Source | None:
        """Return a data file, None where it is not there."""
        if number not in self._sources:
            try:
                self._sources[number] = open_source(self.shard_path(number))
            except FileNotFoundError:
                self._sources[number] = None
        return self._sources[number]

    def shard_numbers(self) -> list[int]:
        """Return the numbers of the data files that may be there."""
        named = {record.shard for record in self.records.values() if not record.slices}
        return sorted(named.union(range(self.shards)) if self.shards <= _MOST_SHARDS else named)

    def variables(self) -> tuple[list[Variable], list[Variable]]:
        """Return the variables of the model, and the bookkeeping entries."""
        labels: dict[str, str] = {}
        serialised = self.object_graph()
        if serialised is not None:
            labels = _object_graph.labels(serialised)
        parts = self._parts
        variables: list[Variable] = []
        bookkeeping: list[Variable] = []
        type_names = {dtype: _dtypes.name_of(dtype) for dtype in {record.dtype for record in self.records.values()}}
        for key, record in self.records.items():
            if key in parts:
                continue
            name = name_of(key)
            variable = Variable(
                name,
                record.shape,
                type_names[record.dtype],
                record.size if not record.slices else self._stored_size(record),
                partial(self.value, record),
                labels.get(name),
            )
            is_ours = record.dtype == _bundle_values.STRING and (
                name == _object_graph.KEY or name.endswith(_object_graph.CONFIG_SUFFIX)
            )
            (bookkeeping if is_ours else variables).append(variable)
        return variables, bookkeeping

    def object_graph(self) -> bytes | None:
        """Return the serialised object graph, None where there is none or it cannot be read."""
        record = self.records.get(_object_graph.KEY.encode())
        if record is None or record.dtype != _bundle_values.STRING or record.shape != ():
            return None
        try:
            return bytes(self.value(record).item())
        except UnreadableCheckpoint:
            return None

    def value(self, record: Record) -> Array:
        """Return the value of an entry, assembled where it is stored in slices.

        Raises:
            UnreadableCheckpoint: Bytes are missing or fail their checksum.
        """
        try:
            return self._assembled(record) if record.slices else self._stored(record, record.shape)
        except Damaged as error:
            raise UnreadableCheckpoint(self.path, FORMAT, (self._damage(record, error),)) from error

    def _assembled(self, record: Record) -> Array:
        dtype = _dtypes.array_type(record.dtype)
        if dtype is None:
            raise Damaged("not-a-checkpoint", f"holds {_dtypes.name_of(record.dtype)}, which has no array")
        # Before anything is allocated, the slices must be there and hold as much as the shape claims.
        parts = list(self._slices_of(record))
        if sum(int(np.prod([b.stop - b.start for b in where], dtype=object)) for where, _, _ in parts) != _count(
            record.shape
        ):
            raise Damaged("truncated", f"its slices do not make up shape {list(record.shape)}")
        room = sum({part.shard: self._source_of(part).size for _, part, _ in parts}.values())
        if sum(part.size for _, part, _ in parts) > room:
            raise Damaged("truncated", f"its slices need more than the {room} bytes of its files")
        for _, part, shape in parts:
            if part.dtype != record.dtype:
                raise Damaged("checksum-mismatch", "a slice has another type than its variable")
            _bundle_values.check_size(part, shape)
        try:
            out = np.empty(record.shape, dtype)
        except ValueError as error:
            raise _bundle_values.no_array(record.shape) from error
        for where, part, shape in parts:
            out[where] = self._stored(part, shape)
        return out

    def _stored(self, record: Record, shape: tuple[int, ...]) -> Array:
        """Return what lies in one place: a whole variable, or one slice."""
        data = self._verified.values.get(record.key)
        if data is not None:
            return _bundle_values.decode(data, record, shape, big_endian=self.big_endian)
        return _bundle_values.read(self._source_of(record), record, shape, big_endian=self.big_endian)

    def damages(self) -> tuple[Damage, ...]:
        """Return what can be seen without reading values: absent or too short data files, slices that do not fit."""
        return self._damages

    @cached_property
    def _damages(self) -> tuple[Damage, ...]:
        return tuple(self._find_damages())

    def _find_damages(self) -> Iterator[Damage]:
        owners = self._parts
        inside: dict[int, list[Record]] = {}
        for record in self.records.values():
            if not record.slices:
                inside.setdefault(record.shard, []).append(record)
        for number, records in sorted(inside.items()):
            path = self.shard_path(number)
            try:
                source = self.shard(number)
            except BadRequest as error:
                yield Damage("missing-shard", path, str(error), _names(records, owners))
                continue
            if source is None:
                message = f"is missing; it holds {len(records)} of the {len(self.records)} entries of the index"
                yield Damage("missing-shard", path, message, _names(records, owners))
                continue
            beyond = [record for record in records if record.offset + record.size > source.size]
            if beyond and (foreign := _foreign.describe(read_head(path))):
                yield Damage("not-a-checkpoint", path, f"is {foreign}", _names(records, owners))
            elif beyond:
                needed = max(record.offset + record.size for record in beyond)
                message = f"has {source.size} bytes, the index expects {needed}"
                yield Damage("truncated", path, message, _names(beyond, owners))
        for record in self.records.values():
            if record.slices:
                try:
                    list(self._slices_of(record))
                except Damaged as error:
                    yield self._damage(record, error)

    def verify(self) -> Iterator[Damage]:
        """Read every value and yield those that fail their checksum, in the order in which they lie.

        Small ones that do not are kept for `value`.
        """
        owners = self._parts
        # What stands in a data file's place has no values of ours, not even where it is long enough for some.
        foreign = {damage.where for damage in self.damages() if damage.kind == "not-a-checkpoint"}
        numbers = {record.shard for record in self.records.values()}
        skipped = {number for number in numbers if self.shard_path(number) in foreign}
        records = [record for record in self.records.values() if not record.slices and record.shard not in skipped]
        window: _bundle_small.Window | None = None
        for record in sorted(records, key=attrgetter("shard", "offset")):
            source = self._sources.get(record.shard)
            if source is None or record.offset + record.size > source.size:
                continue  # Told by `damages`.
            shape = owners[record.key][1] if record.key in owners else record.shape
            if window is None or window.source is not source:
                window = _bundle_small.Window(source)
            try:
                self._verify(window, record, shape)
            except Damaged as error:
                owner = owners[record.key][0] if record.key in owners else record.key
                yield self._damage(self.records.get(owner, record), error, part=record)

    def _verify(self, window: _bundle_small.Window, record: Record, shape: tuple[int, ...]) -> None:
        if record.size > _bundle_small.LARGEST or record.dtype in _bundle_values.OF_NO_NUMBERS:
            _bundle_values.verify(window.source, record, shape, big_endian=self.big_endian)
            return
        _bundle_values.check_size(record, shape)
        try:
            data = window.read(record.offset, record.size)
        except OutOfBounds as error:
            raise _bundle_values.short(record, error) from error
        _bundle_values.verify_bytes(data, record)
        self._verified.keep(record, data)

    def entries(self) -> dict[str, bytes]:
        """Return the entry of every variable as the index holds it, with those of its slices."""
        parts: dict[bytes, list[bytes]] = {}
        owners = self._parts
        for key, record in self.records.items():
            parts.setdefault(owners[key][0] if key in owners else key, []).append(key + b"\0" + record.raw)
        return {name_of(key): b"".join(raw) for key, raw in parts.items()}

    def slice_keys(self, record: Record) -> list[tuple[tuple[slice, ...], bytes]]:
        """Return where each slice of a partitioned variable lies in it, and its key.

        Raises:
            Damaged: A slice does not lie within its variable.
        """
        return [
            (_slices.bounds(extents, record.shape), _slices.key_of(record.key, extents)) for extents in record.slices
        ]

    def _slices_of(self, record: Record) -> Iterator[tuple[tuple[slice, ...], Record, tuple[int, ...]]]:
        for where, key in self.slice_keys(record):
            part = self.records.get(key)
            if part is None:
                raise Damaged("truncated", f"slice {_words(where)} is not in the index")
            yield where, part, tuple(index.stop - index.start for index in where)

    @cached_property
    def _parts(self) -> dict[bytes, tuple[bytes, tuple[int, ...]]]:
        """For the key of every slice, the key of its variable and the slice's shape."""
        out: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}
        for record in self.records.values():
            if record.slices:
                try:
                    for where, key in self.slice_keys(record):
                        out[key] = (record.key, tuple(index.stop - index.start for index in where))
                except Damaged:
                    continue
        return out

    def _stored_size(self, record: Record) -> int:
        try:
            return sum(part.size for _, part, _ in self._slices_of(record))
        except Damaged:
            return record.size

    def _source_of(self, record: Record) -> Source:
        source = self.shard(record.shard)
        if source is None:
            raise Damaged("missing-shard", f"{self.shard_path(record.shard)} is not there")
        return source

    def _damage(self, record: Record, error: Damaged, *, part: Record | None = None) -> Damage:
        name = name_of(record.key)
        place = part or record
        where = f"{self.shard_path(place.shard)}, byte {place.offset}"
        return Damage(error.kind, where, f"{name}: {error.reason}", (name,))


def name_of(key: bytes) -> str:
    """Return a key as a variable's name; bytes that are not UTF-8 survive the way back."""
    return key.decode("utf-8", "surrogateescape")


def key_of(name: str) -> bytes:
    """Return the key of a variable's name."""
    return name.encode("utf-8", "surrogateescape")


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object)) if shape else 1


def _names(records: list[Record], owners: dict[bytes, tuple[bytes, tuple[int, ...]]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name_of(owners[r.key][0] if r.key in owners else r.key) for r in records))


def _words(where: tuple[slice, ...]) -> str:
    return "[" + ", ".join(f"{index.start}:{index.stop}" for index in where) + "]"
