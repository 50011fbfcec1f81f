"""Which TensorFlow wrote a `.meta` or a `saved_model.pb`, without parsing the graph in it (it may be 100 MB)."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ckpt_doctor.formats._table import decode_varint
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_META_INFO = 1  # MetaGraphDef.meta_info_def
_META_GRAPHS = 2  # SavedModel.meta_graphs


def producer_of_meta_graph(serialised: bytes | memoryview) -> str | None:
    """Return `TensorFlow 1.15.5` from a serialised `MetaGraphDef`, None where it does not say."""
    info = _first(memoryview(serialised), _META_INFO)
    if info is None:
        return None
    try:
        version = pb.MetaInfoDef.FromString(bytes(info)).tensorflow_version
    except DecodeError:
        return None
    return f"TensorFlow {version.decode('utf-8', 'replace')}" if version else None


def producer_of_saved_model(serialised: bytes) -> str | None:
    """Return the same from a serialised `SavedModel`."""
    meta_graph = _first(memoryview(serialised), _META_GRAPHS)
    return None if meta_graph is None else producer_of_meta_graph(meta_graph)


def _first(data: memoryview, wanted: int) -> memoryview | None:
    """Return the first field of this number that has a length, None where there is none or the message is damaged."""
    position = 0
    try:
        while position < len(data):
            tag, position = decode_varint(data, position)
            kind = tag & 7
            if kind == 2:
                length, position = decode_varint(data, position)
                if position + length > len(data):
                    return None
                if tag >> 3 == wanted:
                    return data[position : position + length]
                position += length
            elif kind == 0:
                _, position = decode_varint(data, position)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                return None
    except (IndexError, ValueError):
        return None
    return None
