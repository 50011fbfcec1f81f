"""Which TensorFlow wrote a `.meta` or a `saved_model.pb`, without parsing the graph in it (it may be 100 MB)."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from ckpt_doctor.formats._table import BadVarint, decode_varint
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_META_INFO = 1  # MetaGraphDef.meta_info_def
_META_GRAPHS = 2  # SavedModel.meta_graphs


def producer_of_meta_graph(serialised: bytes | memoryview) -> str | None:
    """Return `TensorFlow 1.15.5` from a serialised `MetaGraphDef`, None where it does not say."""
    info = first_field(memoryview(serialised), _META_INFO)
    if info is None:
        return None
    try:
        version = pb.MetaInfoDef.FromString(bytes(info)).tensorflow_version
    except DecodeError:
        return None
    return f"TensorFlow {version.decode('utf-8', 'replace')}" if version else None


def producer_of_saved_model(serialised: bytes) -> str | None:
    """Return the same from a serialised `SavedModel`."""
    meta_graph = first_field(memoryview(serialised), _META_GRAPHS)
    return None if meta_graph is None else producer_of_meta_graph(meta_graph)


def first_field(data: memoryview, wanted: int) -> memoryview | None:
    """Return the first field of this number that has a length, None where there is none or the message is damaged."""
    position = 0
    while position < len(data):
        following = _after_field(data, position)
        if following is None:
            return None
        tag, start = decode_varint(data, position)
        if tag >> 3 == wanted and tag & 7 == 2:
            _, start = decode_varint(data, start)
            return data[start:following]
        position = following
    return None


def is_whole(serialised: bytes) -> bool:
    """Return whether the top level of a message can be read to its end."""
    data = memoryview(serialised)
    position = 0
    while position < len(data):
        following = _after_field(data, position)
        if following is None:
            return False
        position = following
    return True


def is_meta_graph(data: bytes) -> bool:
    """Return whether these bytes are a `MetaGraphDef`, in binary or in text form."""
    return data.lstrip()[:14].startswith(b"meta_info_def") or _has_only(data, dict.fromkeys(range(1, 8), 2))


def is_saved_model(data: bytes) -> bool:
    """Return whether these bytes are a `SavedModel`, in binary or in text form."""
    texts = (b"saved_model_schema_version", b"meta_graphs")
    return data.lstrip()[:26].startswith(texts) or _has_only(data, {1: 0, 2: 2})


def _has_only(serialised: bytes, wire_types: Mapping[int, int]) -> bool:
    """Return whether a message has fields, and only of these numbers and wire types."""
    data = memoryview(serialised)
    position = 0
    while position < len(data):
        following = _after_field(data, position)
        if following is None:
            return False
        tag, _ = decode_varint(data, position)
        if wire_types.get(tag >> 3) != tag & 7:
            return False
        position = following
    return position > 0


def _after_field(data: memoryview, position: int) -> int | None:
    """Return the position after the field that begins here, None where it is damaged."""
    try:
        tag, position = decode_varint(data, position)
        if tag & 7 == 2:
            length, position = decode_varint(data, position)
            position += length
        elif tag & 7 == 0:
            _, position = decode_varint(data, position)
        elif tag & 7 in (1, 5):
            position += 8 if tag & 7 == 1 else 4
        else:
            return None
    except BadVarint:
        return None
    return position if position <= len(data) and tag >> 3 else None
