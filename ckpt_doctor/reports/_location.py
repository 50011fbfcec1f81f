"""Where a checkpoint lies, for programs that show findings beside files: a file of the repository, and its URI."""

from __future__ import annotations

import os
import posixpath
from typing import Any
from urllib.parse import quote

from ckpt_doctor.checkpoint import LAYOUTS
from ckpt_doctor.result import CheckpointResult


def file_of(checkpoint: CheckpointResult, root: str) -> str:
    """Return the file that stands for a checkpoint, relative to the folder `root` where it lies below it.

    A prefix is no file, and a SavedModel a folder; both have one file that says what the checkpoint holds.
    """
    layout = LAYOUTS[checkpoint.format]
    path = checkpoint.path.rstrip("/") if layout.folder else checkpoint.path
    return relative(path + layout.suffix, root)


def relative(path: str, root: str) -> str:
    """Return a local path relative to `root` where it lies below it; a URL, or any other path, as it is."""
    if not root or "://" in path:
        return path
    whole = posixpath.normpath(posixpath.join(root, path))
    return whole[len(root) + 1 :] if whole.startswith(f"{root.rstrip('/')}/") else whole


def uri(path: str) -> str:
    """Return `path` as a URI: relative if it is, with what a URI cannot hold written in percent."""
    if "://" in path:
        return quote(_bytes_of(path), safe="/:?=&%@+,;")
    quoted = quote(_bytes_of(path))
    return f"file://{quoted}" if path.startswith("/") else quoted


def _bytes_of(path: str) -> bytes:
    """Return the bytes of a name as the file system has them, whatever its encoding."""
    try:
        return path.encode("utf-8", "surrogateescape") if "://" in path else os.fsencode(path)
    except UnicodeEncodeError:  # Half of a pair of surrogates: Windows has such names.
        return path.encode("utf-8", "surrogatepass")


def unicode_only(value: Any) -> Any:
    """Return a document with what is not Unicode in its texts written out (a backslash, `udcff`).

    A name that is not UTF-8 is a text with lone surrogates. Many readers of JSON refuse the whole document for one
    (RFC 8259, section 8.2: their behaviour is unpredictable).
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {unicode_only(key): unicode_only(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unicode_only(one) for one in value]
    return value
