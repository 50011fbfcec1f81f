"""Code that a Keras model carries with it, which runs only by the user's leave.

A Lambda layer holds Python's bytecode. In Keras 2 an operation on what a layer gives (`2 * x`, `tf.concat`) is a layer
as well and holds the name of any function of TensorFlow, be it one that writes files; those that only compute may run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ckpt_doctor.capture.runtime import keras
from ckpt_doctor.errors import RepairRefused

# Where a SavedModel of Keras 2 keeps the configs of its layers.
METADATA = "keras_metadata.pb"
_OPERATIONS = ("TFOpLambda", "SlicingOpLambda")
_COMPUTING = ("__operators__.", "math.", "nn.", "image.")
_COMPUTING_TOO = frozenset(
    "broadcast_to cast clip_by_value concat convert_to_tensor einsum expand_dims gather gather_nd identity one_hot "
    "ones_like pad repeat reshape reverse roll shape split squeeze stack stop_gradient strided_slice tile transpose "
    "unstack where zeros_like".split()
)


def refuse_code(where: str, config: str | None, allow_code: bool) -> None:
    """Refuse a config with layers whose code comes from the file.

    Raises:
        RepairRefused: It has some, and `allow_code` is false.
    """
    try:
        found = sorted(set(_code(json.loads(config or "null"))))
    except (ValueError, RecursionError) as error:
        raise RepairRefused(f"{where}: the model's config is not valid JSON: {error}") from error
    if found and not allow_code:
        raise RepairRefused(f"{where}: the model contains {found[0]}; if you trust it, allow it with --allow-code")


def refuse_code_in(saved_model: str, allow_code: bool) -> None:
    """Refuse a Keras 2 model's SavedModel with layers whose code comes from the file.

    Raises:
        RepairRefused: It has some, and `allow_code` is false; or the configs of its layers cannot be read.
    """
    keras(legacy=True)
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    try:
        metadata = SavedMetadata.FromString((Path(saved_model) / METADATA).read_bytes())
    except (OSError, DecodeError) as error:
        raise RepairRefused(f"{saved_model}: its {METADATA} cannot be read: {error}") from error
    for node in metadata.nodes:
        refuse_code(saved_model, node.metadata, allow_code)


def _code(entry: Any) -> Iterator[str]:
    """Yield what of a config is code, in words."""
    if isinstance(entry, dict):
        kind = entry.get("class_name")
        if kind == "Lambda":
            yield "Lambda layers, with Python code from the file"
        elif kind in _OPERATIONS:
            config = entry.get("config")
            function = str(config.get("function") if isinstance(config, Mapping) else None)
            plain = function.removeprefix("compat.v1.")
            if not plain.startswith(_COMPUTING) and plain not in _COMPUTING_TOO:
                yield f"a call of tf.{function}, which the file names"
        for value in entry.values():
            yield from _code(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _code(value)
