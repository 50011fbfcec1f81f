"""Where a checkpoint lies, for programs that show findings beside files: a file of the repository, and its URI."""

from __future__ import annotations

import posixpath
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
        return quote(path, safe="/:?=&%@+,;", errors="surrogateescape")
    quoted = quote(path, errors="surrogateescape")  # The bytes of a name that is not UTF-8.
    return f"file://{quoted}" if path.startswith("/") else quoted
