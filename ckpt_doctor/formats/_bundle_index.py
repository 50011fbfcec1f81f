"""The index of a tensor bundle: which variable lies where.

The index is a table (see `_table`). The empty key holds a `BundleHeader`, every other key is a variable's name and
holds a `BundleEntry`; a partitioned variable has one entry that lists its slices and one for each slice (see
`_slices`).

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats import _foreign, _slices
from ckpt_doctor.formats._storage import Source, read_head
from ckpt_doctor.formats._table import Table, TableError
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

FORMAT: Final = "tensor-bundle"
BIG_ENDIAN = 1
# TensorFlow's own limit on dimensions; NumPy's is 64.
_MOST_DIMENSIONS = 254
_READ_AT_ONCE = 64 << 20


class Record(NamedTuple):
    """One entry.

    Attributes:
        key: Its key in the index.
        raw: Its serialised `BundleEntry`, untouched.
        dtype: Number of the type.
        shape: Dimensions of the whole variable.
        shard: Number of the data file.
        offset: In bytes from the start of that file.
        size: In bytes.
        crc: Masked CRC32C of the value.
        slices: Extents of every slice where the variable was saved in parts; it then has no data of its own.
    """

    key: bytes
    raw: bytes
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[_slices.Extents, ...]


class Index(NamedTuple):
    """A whole index.

    Attributes:
        header: The serialised `BundleHeader`, untouched.
        shards: Number of data files.
        big_endian: Whether numbers are stored most significant byte first.
        records: Every entry by key, in the order of the file.
    """

    header: bytes
    shards: int
    big_endian: bool
    records: dict[bytes, Record]


def read_index(path: str, source: Source) -> Index:
    """Read an index.

    Args:
        path: The checkpoint as its user would name it, for errors.
        source: The `.index` file.

    Raises:
        UnreadableCheckpoint: It is damaged, or something else.
    """
    try:
        # An index is small, and read at once costs one request where it is remote.
        items = Table(_InMemory(source) if source.size <= _READ_AT_ONCE else source).items()
        key, header_bytes = next(items, (b"-", b""))
        if key != b"":
            raise _Strange(0, "has no header entry")
        header = _parse(pb.BundleHeader, header_bytes, "the header")
        if header.version.min_consumer > 1:
            raise _Strange(0, f"asks for a reader of version {header.version.min_consumer}, 1 is known")
        if header.num_shards < 0:
            raise _Strange(0, f"declares {header.num_shards} shards")
        records = {}
        shards = max(header.num_shards, 1)
        parse = pb.BundleEntry.FromString
        for key, value in items:
            entry = parse(value)
            shape = tuple([dim.size for dim in entry.shape.dim])
            shard, offset, size = entry.shard_id, entry.offset, entry.size
            slices = tuple(_slices.extents_of(part) for part in entry.slices) if entry.slices else ()
            records[key] = Record(key, value, entry.dtype, shape, shard, offset, size, entry.crc32c, slices)
            if shape and (min(shape) < 0 or len(shape) > _MOST_DIMENSIONS):
                raise _Strange(0, f"declares an impossible shape for {_words(key)}: {list(shape)[:8]}")
            if offset < 0 or size < 0 or not 0 <= shard < shards:
                raise _Strange(0, f"places {_words(key)} at an impossible offset")
        return Index(header_bytes, header.num_shards, header.endianness == BIG_ENDIAN, records)
    except DecodeError as error:
        raise _unreadable(path, source, TableError("checksum-mismatch", 0, "an entry cannot be parsed")) from error
    except TableError as error:
        raise _unreadable(path, source, error) from error


def shard_path(prefix: str, number: int, shards: int) -> str:
    """Return the path of a data file."""
    return f"{prefix}.data-{number:05d}-of-{shards:05d}"


_SHARD = re.compile(r"(?P<prefix>.*)\.data-\d{5}-of-\d{5}", re.DOTALL)


def prefix_of(path: str) -> str | None:
    """Return the prefix of which `path` is a file by its name, None where it is none."""
    for suffix in (".index", ".meta"):
        if path.endswith(suffix):
            return path[: -len(suffix)]
    match = _SHARD.fullmatch(path)
    return match["prefix"] if match else None


def looks_like_index(head: bytes) -> bool:
    """Return whether these are the first bytes of an index: an entry with the empty key and a `BundleHeader`."""
    # shared 0, unshared 0, length, then field 1 of the header (all but impossible to be left out) as a varint.
    return len(head) > 4 and head[:2] == b"\0\0" and 0 < head[2] < 64 and head[3] in (0x08, 0x10, 0x1A)


class _Strange(TableError):
    """Well-formed as a table, and not the index of a bundle."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__("not-a-checkpoint", offset, reason)


class _InMemory:
    def __init__(self, source: Source) -> None:
        self.path = source.path
        self.size = source.size
        self._data = source.read(0, source.size)

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]

    def chunks(self, offset: int, length: int) -> Any:
        yield self.read(offset, length)


def _parse(message: Any, data: bytes, what: str) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise TableError("checksum-mismatch", 0, f"{what} cannot be parsed") from error


def _words(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _unreadable(path: str, source: Source, error: TableError) -> UnreadableCheckpoint:
    head = read_head(source.path)
    kind, message = error.kind, error.reason
    foreign = _foreign.describe(head)
    if foreign is not None:
        kind, message = "not-a-checkpoint", f"is {foreign}"
    elif kind == "truncated" and not looks_like_index(head) and source.size:
        kind = "not-a-checkpoint"
    where = source.path if kind == "not-a-checkpoint" else f"{source.path}, byte {error.offset}"
    return UnreadableCheckpoint(path, FORMAT, (Damage(kind, where, message),))
