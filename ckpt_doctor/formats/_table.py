"""Sorted tables of keys and values, as LevelDB makes them and TensorFlow keeps checkpoints in.

::

    data block …  metaindex block  index block  footer

    block    entries, uint32 offset of every restart point, uint32 count of them;
             then one byte (0 plain, 1 Snappy) and the masked CRC32C of block and byte
    entry    varint shared, varint unshared, varint length of value, unshared bytes of the key, value;
             the first `shared` bytes of the key are those of the key before; at a restart point shared is 0
    index    one entry a data block: a key not below its last and below the next block's first → handle
    handle   varint offset, varint size without the five bytes that follow
    footer   handle of metaindex, handle of index, zeros up to byte 40, 57 fb 80 8b 24 75 47 db

Sources: tensorflow/core/lib/io/format.cc, table_builder.cc, block.cc, block_builder.cc.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ckpt_doctor.checkpoint import DefectKind
from ckpt_doctor.formats import _checksum, _snappy
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._storage import Source

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER = 48
_TRAILER = 5
# TensorFlow's own sizes (tensorflow/core/lib/io/table_options.h).
_BLOCK_SIZE = 262144
_RESTART_INTERVAL = 16
# Keys share their beginnings, so that a few bytes can claim a long key; real ones expand less than tenfold.
_MOST_KEY_EXPANSION = 256


class TableError(Damaged):
    """A table is damaged.

    Attributes:
        offset: Where, in bytes from the start of the file.
    """

    def __init__(self, kind: DefectKind, offset: int, reason: str) -> None:
        super().__init__(kind, reason)
        self.offset = offset

    def __str__(self) -> str:
        return f"byte {self.offset}: {self.reason}"


class BadVarint(Damaged):
    """A number in base 128 is cut off, or longer than ten bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__("checksum-mismatch", reason)


class Handle(NamedTuple):
    """Where a block lies, in bytes; `size` is without its trailer."""

    offset: int
    size: int


class Table:
    """An open table: its footer and index are read, data blocks are read when they are asked for.

    Raises:
        TableError: Footer or index are damaged.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        size = source.size
        if size < FOOTER:
            raise TableError("truncated", size, f"is {size} bytes long, a table has at least {FOOTER}")
        footer = bytes(source.read(size - FOOTER, FOOTER))
        if footer[40:] != MAGIC:
            raise TableError("truncated", size - 8, "does not end as a table does (bad magic number)")
        try:
            self._metaindex, position = _handle(footer, 0)
            index, _ = _handle(footer, position)
        except BadVarint:
            raise TableError("checksum-mismatch", size - FOOTER, "the footer is damaged") from None
        self._index = index
        self._keys: list[bytes] = []
        self._last: tuple[Handle, dict[bytes, bytes]] | None = None
        self.blocks: list[Handle] = []
        for key, value in _entries(self._block(index), index.offset):
            try:
                handle, _ = _handle(value, 0)
            except BadVarint:
                raise TableError("checksum-mismatch", index.offset, "the index block is damaged") from None
            self._keys.append(key)
            self.blocks.append(handle)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its value, in the order of the file.

        Raises:
            TableError: A block is damaged.
        """
        last = None
        for handle in self.blocks:
            for key, value in _entries(self._block(handle), handle.offset):
                # Blocks that are listed twice would make a small file an endless one.
                if last is not None and key <= last:
                    raise TableError("checksum-mismatch", handle.offset, "the keys of the table do not ascend")
                last = key
                yield key, value

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where there is none.

        Raises:
            TableError: Its block is damaged.
        """
        handle = self.block_of(key)
        if handle is None:
            return None
        last = self._last
        if last is None or last[0] != handle:
            # Who asks for one entry of a block asks for its neighbours next, and each needs all of it.
            entries: dict[bytes, bytes] = {}
            for found, value in _entries(self._block(handle), handle.offset):
                entries.setdefault(found, value)
            last = self._last = handle, entries
        return last[1].get(key)

    def block_of(self, key: bytes) -> Handle | None:
        """Return where a key lies if it is there."""
        number = bisect_left(self._keys, key)
        return self.blocks[number] if number < len(self.blocks) else None

    def damages(self) -> Iterator[TableError]:
        """Read every block and yield what is wrong with it."""
        for handle in (*self.blocks, self._metaindex):
            try:
                for _ in _entries(self._block(handle), handle.offset):
                    pass
            except TableError as error:  # noqa: PERF203 - each may fail alone
                yield error

    def _block(self, handle: Handle) -> bytes:
        """Return the content of a block, unpacked, after checking its checksum."""
        offset, size = handle
        if offset + size + _TRAILER > self._source.size - FOOTER:
            raise TableError("truncated", offset, f"a block of {size} bytes ends after the file")
        try:
            stored = self._source.read(offset, size + _TRAILER)
        except OutOfBounds as error:
            raise TableError("truncated", offset, str(error)) from error
        found = _checksum.masked(stored[: size + 1])
        expected = int.from_bytes(stored[size + 1 :], "little")
        if found != expected:
            raise TableError(
                "checksum-mismatch", offset, f"a block has checksum {found:#010x}, {expected:#010x} is stored"
            )
        kind = stored[size]
        if kind == 0:
            return bytes(stored[:size])
        if kind == 1:
            try:
                return _snappy.unpack(stored[:size])
            except _snappy.SnappyError as error:
                raise TableError("checksum-mismatch", offset, f"a compressed block {error.reason}") from error
        raise TableError("checksum-mismatch", offset, f"a block has the unknown compression {kind}")


def encode_varint(value: int) -> bytes:
    """Return a number from 0 in base 128, least digit first, the top bit set in all bytes but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return a number and the position after it.

    Raises:
        BadVarint: The data end within it, or it is longer than ten bytes.
    """
    size = len(data)
    if position >= size:
        raise BadVarint("a number is cut off")
    byte = data[position]
    if byte < 128:
        return byte, position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= size:
            raise BadVarint("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise BadVarint("a number is longer than ten bytes")


def build(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table of these entries; see `write`."""
    out = bytearray()
    write(items, out.extend)
    return bytes(out)


def write(items: Iterable[tuple[bytes, bytes]], sink: Callable[[bytes], object]) -> None:
    """Write a table as TensorFlow lays it out, uncompressed.

    Args:
        items: Keys in strictly ascending order, with their values.
        sink: Takes the bytes, block by block.
    """
    writer = _Writer(sink)
    index: list[tuple[bytes, bytes]] = []
    block = _BlockBuilder(_RESTART_INTERVAL)
    last = b""
    full: Handle | None = None
    for key, value in items:
        if full is not None:
            index.append((_separator(last, key), _encode_handle(full)))
            full = None
        block.add(key, value)
        last = key
        if block.size() >= _BLOCK_SIZE:
            full = writer.block(block.finish())
            block = _BlockBuilder(_RESTART_INTERVAL)
    if not block.empty:
        full = writer.block(block.finish())
    metaindex = writer.block(_BlockBuilder(_RESTART_INTERVAL).finish())
    if full is not None:
        index.append((_successor(last), _encode_handle(full)))
    last_block = _BlockBuilder(1)
    for key, value in index:
        last_block.add(key, value)
    handle = writer.block(last_block.finish())
    footer = _encode_handle(metaindex) + _encode_handle(handle)
    sink(footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)


class _Writer:
    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._offset = 0

    def block(self, content: bytes) -> Handle:
        handle = Handle(self._offset, len(content))
        content += b"\0"
        content += _checksum.masked(content).to_bytes(4, "little")
        self._sink(content)
        self._offset += len(content)
        return handle


class _BlockBuilder:
    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._data = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self._last = b""

    @property
    def empty(self) -> bool:
        return not self._data

    def size(self) -> int:
        return len(self._data) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since_restart < self._interval:
            shared = _common(self._last, key)
        else:
            self._restarts.append(len(self._data))
            self._since_restart = 0
        self._data += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        self._data += key[shared:]
        self._data += value
        self._last = key
        self._since_restart += 1

    def finish(self) -> bytes:
        numbers = (*self._restarts, len(self._restarts))
        return bytes(self._data) + b"".join(number.to_bytes(4, "little") for number in numbers)


def _entries(block: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of an unpacked block; `offset` is where it lies, for messages."""
    if len(block) < 4:
        raise TableError("checksum-mismatch", offset, f"a block of {len(block)} bytes has no restart points")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise TableError("checksum-mismatch", offset, "a block has more restart points than bytes")
    position = 0
    key = b""
    room = len(block) * _MOST_KEY_EXPANSION + 65536
    try:
        while position < end:
            # Three numbers of one byte each are the rule (DecodeEntry of block.cc looks for them first, too).
            if position + 3 <= end and (block[position] | block[position + 1] | block[position + 2]) < 128:
                shared, unshared, length = block[position : position + 3]
                position += 3
            else:
                shared, position = decode_varint(block, position)
                unshared, position = decode_varint(block, position)
                length, position = decode_varint(block, position)
            after_key = position + unshared
            after = after_key + length
            if shared > len(key) or after > end:
                raise TableError("checksum-mismatch", offset, f"an entry at byte {position} of a block leaves it")
            key = key[:shared] + block[position:after_key]
            position = after
            room -= len(key)
            if room < 0:
                raise TableError("checksum-mismatch", offset, "the keys of a block are absurdly long")
            yield key, block[after_key:after]
    except BadVarint as error:
        raise TableError("checksum-mismatch", offset, f"an entry at byte {position} of a block is damaged") from error


def _handle(data: bytes, position: int) -> tuple[Handle, int]:
    offset, position = decode_varint(data, position)
    size, position = decode_varint(data, position)
    return Handle(offset, size), position


def _encode_handle(handle: Handle) -> bytes:
    return encode_varint(handle.offset) + encode_varint(handle.size)


def _common(left: bytes, right: bytes) -> int:
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low = 0
    while left[low] == right[low]:
        low += 1
    return low


def _separator(last: bytes, following: bytes) -> bytes:
    """Return a short key that is not below `last` and below `following`."""
    shared = _common(last, following)
    if shared < min(len(last), len(following)):
        byte = last[shared]
        if byte < 255 and byte + 1 < following[shared]:
            return last[:shared] + bytes([byte + 1])
    return last


def _successor(last: bytes) -> bytes:
    """Return a short key that is not below `last`."""
    for position, byte in enumerate(last):
        if byte != 255:
            return last[:position] + bytes([byte + 1])
    return last
