"""Receipts of repairs that lie beside a checkpoint: which layers were repaired, if it still is what was written.

A receipt is the JSON that `fix --receipt` writes (`ckpt-doctor/fix/1`), under any name that ends in `.json`. It counts
only if it holds the SHA-256 of the file that commits the checkpoint: the index of a bundle, the file itself elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._json import parsed_or_none
from ckpt_doctor.formats._storage import is_remote, join, names_in, open_source, size_of, split

_log = logging.getLogger(__name__)

_SCHEMA = "ckpt-doctor/fix/1"
# A receipt has some hundred bytes a layer; folders of data may hold many large JSON files.
_LARGEST = 16 << 20
_MOST_FILES = 200
_CHUNK = 1 << 22


def repaired_layers(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of the layers that receipts beside a checkpoint say were repaired; none for a remote one."""
    if not checkpoint.files or is_remote(checkpoint.path):
        return frozenset()
    commits = next((file for file in checkpoint.files if file.endswith(".index")), checkpoint.files[-1])
    found: set[str] = set()
    digest: str | None = None
    for receipt in _receipts(split(checkpoint.path)[0] or "."):
        after = {split(str(entry.get("path", "")))[1]: entry.get("after") for entry in receipt["sha256"]}
        stated = after.get(split(commits)[1])
        if stated is None:
            continue
        digest = digest or _sha256(checkpoint.place_of(commits))
        _log.debug(
            "%s: a receipt for %s that %s it", checkpoint.path, commits, "matches" if stated == digest else "is not of"
        )
        if stated == digest:
            found |= {str(layer.get("name")) for layer in receipt["layers"]}
    return frozenset(found)


def _receipts(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the receipts in a folder."""
    try:
        names = sorted(name for name, is_folder in names_in(folder) if not is_folder and name.endswith(".json"))
    except (BadRequest, OSError):
        return
    for name in names[:_MOST_FILES]:
        path = join(folder, name)
        try:
            if size_of(path) > _LARGEST:
                continue
            source = open_source(path)
            text = bytes(source.read(0, source.size))
        except (BadRequest, OSError):
            continue
        if _SCHEMA.encode() not in text:
            continue
        document = parsed_or_none(text)
        if _is_receipt(document):
            yield document


def is_receipt(path: Path) -> bool:
    """Return whether the file at `path` is a receipt."""
    return path.stat().st_size <= _LARGEST and _is_receipt(parsed_or_none(path.read_bytes()))


def _is_receipt(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and document.get("schema") == _SCHEMA
        and all(
            isinstance(document.get(key), list) and all(isinstance(entry, dict) for entry in document[key])
            for key in ("sha256", "layers")
        )
    )


def _sha256(path: str) -> str:
    import hashlib  # Loads OpenSSL, which most scans do not need.

    source = open_source(path)
    digest = hashlib.sha256()
    for start in range(0, source.size, _CHUNK):
        digest.update(source.read(start, min(_CHUNK, source.size - start)))
    return digest.hexdigest()
