"""Tables, Snappy and the keys of slices."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ckpt_doctor.formats import _slices, _snappy, _table
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._table import Table, TableError
from tests.formats import raw_bundle


class Memory:
    """A file in memory."""

    path = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise OutOfBounds(self.path, offset + length, self.size)
        return memoryview(self.data)[offset : offset + length]

    def chunks(self, offset: int, length: int) -> Any:
        yield self.read(offset, length)


@pytest.mark.parametrize("count", [0, 1, 16, 17, 1000])
def test_round_trip_and_second_reader(count: int) -> None:
    chance = random.Random(count)
    items = sorted(
        {
            f"a/{chance.randrange(count * 3)}/b" * 3: chance.randbytes(chance.randrange(900)) for _ in range(count)
        }.items()
    )
    encoded = [(key.encode(), value) for key, value in items]
    data = _table.build(encoded)
    table = Table(Memory(data))
    assert list(table.items()) == encoded
    assert not list(table.damages())
    assert raw_bundle.table(data) == encoded
    for key, value in encoded[:: max(count // 20, 1)]:
        assert table.get(key) == value
    assert table.get(b"zzz") is None
    assert len(table.blocks) == (0 if not count else 1 if count < 500 else 2)


def snappy_block(data: bytes) -> bytes:
    """Compress as Snappy allows: literals, and copies of all three widths where they fit."""
    out = bytearray(_table.encode_varint(len(data)))
    at = 0
    while at < len(data):
        best = 0
        for back in (*range(1, min(at, 70) + 1), 2000, 70_000):
            length = 0
            while (
                back <= at and length < 64 and at + length < len(data) and data[at + length] == data[at + length - back]
            ):
                length += 1
            if length > best:
                best, where = length, back
        if best >= 4:
            if where < 2048 and best <= 11:
                out += bytes([1 | (best - 4) << 2 | where >> 8 << 5, where & 255])
            elif where < 65536:
                out += bytes([2 | (best - 1) << 2]) + where.to_bytes(2, "little")
            else:
                out += bytes([3 | (best - 1) << 2]) + where.to_bytes(4, "little")
            at += best
        else:
            piece = data[at : at + 61 + at % 7]
            length = len(piece) - 1
            out += bytes([length << 2]) + piece if length < 60 else bytes([60 << 2, length]) + piece
            at += len(piece)
    return bytes(out)


def test_snappy_literals_and_copies() -> None:
    chance = random.Random(3)
    noise = chance.randbytes(2000)
    for data in (b"", b"a", b"ab" * 500, noise + noise, bytes(90_000)[:75_000] + noise[:70] + bytes(40)):
        assert _snappy.unpack(snappy_block(data)) == data


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (b"", "no length"),
        (b"\xff\xff\xff\xff\x0f\x00a", "more than Snappy can"),
        (b"\x05\x10ab", "literal ends"),
        (b"\x05\x01", "copy ends"),
        (b"\x05\x01\x01", "before the block"),
        (b"\x05\x00a", "unpacks to 1"),
        (b"\x01\x00a\x05\x01", "more than it claims"),
    ],
)
def test_snappy_refuses(block: bytes, words: str) -> None:
    with pytest.raises(_snappy.SnappyError, match=words):
        _snappy.unpack(block)


def test_snappy_survives_any_bytes() -> None:
    chance = random.Random(5)
    good = snappy_block(b"some text, some text, some more text" * 9)
    for _ in range(3000):
        damaged = bytearray(good[: chance.randrange(1, len(good))])
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            _snappy.unpack(damaged)
        except _snappy.SnappyError:
            continue


def test_compressed_blocks_are_read() -> None:
    from ckpt_doctor.formats import _checksum

    items = [(b"key%03d" % number, b"value" * 9) for number in range(50)]
    plain = Table(Memory(data := _table.build(items)))
    (handle,) = plain.blocks
    content = snappy_block(data[handle.offset : handle.offset + handle.size]) + b"\1"
    out = bytearray()

    def add(block: bytes) -> _table.Handle:
        place = _table.Handle(len(out), len(block) - 1)
        out.extend(block + _checksum.masked(block).to_bytes(4, "little"))
        return place

    first = add(content)
    builder = _table._BlockBuilder(1)
    metaindex = add(builder.finish() + b"\0")
    builder.add(b"l", _table._encode_handle(first))
    index = add(builder.finish() + b"\0")
    footer = _table._encode_handle(metaindex) + _table._encode_handle(index)
    out.extend(footer.ljust(40, b"\0") + _table.MAGIC)
    assert list(Table(Memory(bytes(out))).items()) == items


@pytest.mark.parametrize("size", [0, 10, 47])
def test_short_files_are_truncated(size: int) -> None:
    with pytest.raises(TableError, match="at least 48") as caught:
        Table(Memory(bytes(size)))
    assert caught.value.kind == "truncated"


def test_slice_keys_are_those_of_tensorflow() -> None:
    """Bytes as in files that TensorFlow wrote, and the lengths of the encoding at its borders."""
    assert _slices.key_of(b"part", ((3, 3), (0, -1))) == b"\x00part\x00\x01\x01\x02\x83\x83\x80\x7f"
    assert _slices.key_of(b"a\x00\xff", ()) == b"\x00a\x00\xff\xff\x00\x00\x01\x00"
    borders = [0, 63, 64, 8191, 8192, (1 << 20) - 1, 1 << 20, (1 << 62) - 1, 1 << 62, (1 << 63) - 1]
    encoded = [_slices._signed(value) for value in (*(~value for value in reversed(borders)), *borders)]
    assert encoded == sorted(encoded)
    assert [len(code) for code in encoded[len(borders) :]] == [1, 1, 2, 2, 3, 3, 4, 9, 10, 10]


def test_small_files_stay_small() -> None:
    """A block that is listed a thousand times, and keys that grow from a few bytes each."""
    data = _table.build([(b"key", b"value")])
    handle = Table(Memory(data)).blocks[0]
    out = bytearray(data[: handle.offset + handle.size + 5])

    def finish(builder: _table._BlockBuilder) -> bytes:
        writer = _table._Writer(out.extend)
        writer._offset = len(out)
        place = writer.block(builder.finish())
        footer = (_table._encode_handle(place) * 2).ljust(40, b"\0") + _table.MAGIC
        return bytes(out + footer)

    index = _table._BlockBuilder(1)
    for number in range(1000):
        index.add(b"l%04d" % number, _table._encode_handle(handle))
    with pytest.raises(TableError, match="do not ascend"):
        list(Table(Memory(finish(index))).items())

    out.clear()
    index = _table._BlockBuilder(1 << 30)
    for number in range(2000):
        index.add(b"x" * 20_000 + number.to_bytes(2, "big"), b"\0\0")
    with pytest.raises(TableError, match="absurdly long"):
        Table(Memory(finish(index)))
