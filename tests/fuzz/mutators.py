"""Ways to damage a file, from single bits to the fields of what it holds; checksums are made right where asked."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from ckpt_doctor.formats import _checksum, _table

Mutate = Callable[[bytes, random.Random], bytes]

# Numbers at which varints, signed numbers, sizes and indices change their nature.
NUMBERS = (
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    65535,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
)
_EXTREMES = (
    *(struct.pack("<q", number) for number in NUMBERS),
    *(struct.pack("<I", number & 0xFFFFFFFF) for number in NUMBERS),
    *(_table.encode_varint(number & (1 << 64) - 1) for number in NUMBERS),
    b"\xff" * 11,
)
_TEXTS = (
    "", "\0", "\x1b[31m", "\n::error::x", "<script>", "²", "٣", "..", "/", "a/b:0",
    "9" * 5000, "é" * 50, "\ud800", "nan",
    "gamma", "moving_mean", "bn/moving_variance:0", "BatchNormalization", "layer", "layers", "batch_normalization",
)  # fmt: skip


def in_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip, insert, delete, duplicate, swap and overwrite bytes and blocks; cut the end off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        size = max(1, len(data))
        start = chance.randrange(size)
        end = start + min(chance.choice((1, 2, 4, 8, 16, 64, 512, 4096)), size - start)
        kind = chance.randrange(9)
        if kind == 0:
            data[start : start + 1] = bytes([chance.randrange(256)])
        elif kind == 1 and data:
            data[start] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[start:]
        elif kind == 3:
            data[start:end] = bytes(end - start)
        elif kind == 4:
            other = chance.randrange(size)
            data[start:end], data[other : other + end - start] = data[other : other + end - start], data[start:end]
        elif kind == 5:
            extreme = chance.choice(_EXTREMES)
            data[start : start + len(extreme)] = extreme
        elif kind == 6:
            data[start:end] *= 2
        elif kind == 7:
            del data[start:end]
        else:
            data[start:start] = chance.choice((*_EXTREMES, chance.randbytes(end - start)))
    return bytes(data)


class InMemory:
    """Bytes as the table reader takes them."""

    path = "memory"

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = memoryview(data)

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


def table(inner: Mutate) -> Mutate:
    """Return a mutator of one key or one value of a table, all checksums of which are right afterwards."""

    def mutate(content: bytes, chance: random.Random) -> bytes:
        items = dict(_table.Table(InMemory(content)).items())  # type: ignore[arg-type]
        for _ in range(chance.choice((1, 1, 3))):
            key = chance.choice(sorted(items))
            kind = chance.randrange(8)
            if kind == 0:
                items[in_bytes(key, chance)] = items.pop(key)
            elif kind == 1:
                items[key] = items[chance.choice(sorted(items))]
            elif kind == 2 and len(items) > 1:
                del items[key]
            else:
                items[key] = inner(items[key], chance)
        return _table.build(sorted(items.items()))

    return mutate


def block(content: bytes, chance: random.Random) -> bytes:
    """Damage one block of a table, and make its checksum right again."""
    data = bytearray(content)
    if len(data) < 64:
        return in_bytes(content, chance)
    handle, _ = _table._handle(data[-48:], chance.choice((0, _table._handle(data[-48:], 0)[1])))
    offset, size = (handle.offset, handle.size) if chance.random() < 0.5 else (0, max(4, handle.offset - 5))
    inner = in_bytes(bytes(data[offset : offset + size]), chance)[:size].ljust(size, b"\0")
    kind = bytes([chance.choice((0, 0, 0, 1, 2))])
    data[offset : offset + size + 5] = inner + kind + struct.pack("<I", _checksum.masked(inner + kind))
    return bytes(data)


def archive(inner: Mutate) -> Mutate:
    """Return a mutator of a zip archive's members: content with a right CRC-32, names, sizes, methods, flags."""

    def mutate(content: bytes, chance: random.Random) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as copy:
            infos = source.infolist()
            chosen = chance.choice(infos)
            for info in infos:
                data = source.read(info)
                if info is chosen:
                    kind = chance.randrange(6)
                    if kind == 0:
                        continue
                    if kind == 1:
                        info.filename = chance.choice(("../up", "/abs", "a\0b", "x/" * 99, "\x1b[2J"))
                    elif kind == 2:
                        info.compress_type = zipfile.ZIP_DEFLATED
                    else:
                        data = inner(data, chance)
                copy.writestr(info, data)
        result = out.getvalue()
        return _headers(result, chance) if chance.random() < 0.3 else result

    return mutate


def _headers(content: bytes, chance: random.Random) -> bytes:
    """Put a number into a field of a header in the directory of an archive."""
    data = bytearray(content)
    places = [place for place in range(len(data) - 46) if data[place : place + 4] == b"PK\x01\x02"]
    if places:
        place = chance.choice(places) + chance.choice((8, 10, 16, 20, 24, 28, 30, 32, 42))
        data[place : place + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
    return bytes(data)


def in_json(content: bytes, chance: random.Random) -> bytes:
    """Change, drop, double, nest and exchange parts of a JSON document."""
    document = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = _changed(document, chance, chance.randrange(1, 12))
    return json.dumps(document).encode()


def _any_value(chance: random.Random) -> Any:
    return chance.choice(
        (
            None,
            True,
            False,
            [],
            {},
            [[]],
            {"": None},
            1.5,
            float("nan"),
            float("inf"),
            10**400,
            -1,
            0,
            *NUMBERS,
            *_TEXTS,
        )
    )


def _changed(value: Any, chance: random.Random, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = chance.choice(sorted(value))
        return {**value, key: _changed(value[key], chance, depth - 1)}
    if depth and isinstance(value, list) and value:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(value[place], chance, depth - 1), *value[place + 1 :]]
    kind = chance.randrange(8)
    if kind == 0 and isinstance(value, dict) and value:
        gone = chance.choice(sorted(value))
        return {key: one for key, one in value.items() if key != gone}
    if kind == 1 and isinstance(value, dict):
        return {**value, chance.choice(_TEXTS): _any_value(chance)}
    if kind == 2 and isinstance(value, list) and value:
        return [*value, *value]
    if kind == 3:
        for _ in range(chance.choice((1, 5, 40, 150))):
            value = [value] if chance.random() < 0.5 else {"config": value}
        return value
    if kind == 4 and isinstance(value, str):
        return in_bytes(value.encode("utf-8", "replace"), chance).decode("utf-8", "replace")
    if kind == 5 and isinstance(value, list):
        return value[::-1]
    return _any_value(chance)


_VALUES = ("3", "[]", "{}", "true", '""', "[[1]]", "1e999", "1979-05-27", "{a = {b = 1}}", "[" * 200 + "]" * 200)


def in_toml(content: bytes, chance: random.Random) -> bytes:
    """Exchange values and tables of a TOML file for those of other types."""
    lines = content.decode().splitlines()
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(lines))
        name = lines[place].partition("=")[0].strip(" []")
        lines[place] = chance.choice((f"{name} = {chance.choice(_VALUES)}", f"[[{name}]]", lines[place - 1], ""))
    return "\n".join(lines).encode()


def in_message(kind: type[Message]) -> Mutate:
    """Return a mutator of the fields of a serialised message."""

    def mutate(content: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.15:
            return in_bytes(content, chance)
        message = kind()
        try:
            message.ParseFromString(content)
        except DecodeError:  # The key of another message led here, or it was damaged before.
            return in_bytes(content, chance)
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            _change_field(message, chance)
        return message.SerializeToString()

    return mutate


def _change_field(message: Any, chance: random.Random) -> None:
    """Change a field somewhere inside a message, maps included."""
    for _ in range(30):
        fields = [field for field, _ in message.ListFields()]
        if not fields or chance.random() < 0.05:
            fields = list(message.DESCRIPTOR.fields)
        field = chance.choice(fields)
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if not len(value):
                return
            key = chance.choice(sorted(value))
            if field.message_type.fields_by_name["value"].message_type is None:
                if chance.random() < 0.5:
                    del value[key]
                else:
                    value[key] = _scalar(field.message_type.fields_by_name["value"], value[key], chance)
                return
            if chance.random() < 0.1:
                del value[key]
                return
            message = value[key]
        elif isinstance(value, Message):
            if chance.random() < 0.05:
                message.ClearField(field.name)
                return
            message = value
        elif hasattr(value, "append"):
            if not len(value):
                return
            place = chance.randrange(len(value))
            how = chance.random()
            if how < 0.08:
                del value[place]
                return
            if how < 0.16:
                value.append(value[place])
                return
            if field.message_type is None:
                # Splice: an element in the place of another is what makes cycles and cross-references.
                value[place] = chance.choice(list(value)) if how < 0.5 else _scalar(field, value[place], chance)
                return
            if how < 0.24:
                value[place].CopyFrom(value[chance.randrange(len(value))])
                return
            message = value[place]
        else:
            setattr(message, field.name, _scalar(field, value, chance))
            return


def _scalar(field: Any, value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-3))
    if isinstance(value, str):
        text = chance.choice(
            (*_TEXTS, in_bytes(value.encode(), chance).decode("utf-8", "replace"), f"{value}:1", f"^{value}")
        )
        return text.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        return in_bytes(value, chance)
    bits = 31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM) else 63
    number = chance.choice((*NUMBERS, value + 1, value - 1))
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    if unsigned:
        return number & ((1 << (32 if field.cpp_type == field.CPPTYPE_UINT32 else 64)) - 1)
    return number if -(1 << bits) <= number < 1 << bits else chance.randrange(100)
