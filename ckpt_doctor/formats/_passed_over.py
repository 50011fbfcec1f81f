"""Enters in the books why a file is passed over that this package does not read."""

# Paths are strings, as in `_storage`.
# ruff: noqa: PTH114, PTH115
from __future__ import annotations

import os

from ckpt_doctor.formats import _others, by_name, recognise
from ckpt_doctor.formats._books import Books
from ckpt_doctor.formats._bundle_index import prefix_of
from ckpt_doctor.formats._storage import is_remote, read_head, split

# What macOS keeps of a file on a foreign disk, as `._NAME` (RFC 1740, AppleDouble).
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


def enter_unknown(books: Books, path: str, head: bytes | None = None) -> None:
    """Enter a file that no format of ours reads.

    Args:
        books: The books of the search.
        path: The file.
        head: Its first bytes, where they were read already.

    Raises:
        BadRequest: It cannot be read.
    """
    folder, name = split(path)
    if head is None:
        head = b"" if is_remote(path) or _others.is_plain(name) else read_head(path, _others.HEAD_BYTES)
    if not head and not is_remote(path) and not os.path.lexists(path):
        books.pass_over(path, "vanished")
        return
    kind = _others.kind_of(folder, name, head)
    books.pass_over(path, kind.kind, unopened=kind.unopened)


def enter_hidden(books: Books, path: str) -> None:
    """Enter a file whose name begins with a dot; if its bytes are those of a model, as one that was not opened.

    Raises:
        BadRequest: It has the name of a model and cannot be read.
    """
    folder, name = split(path)
    looked_at = not is_remote(path) and _has_name_of_model(path)
    head = read_head(path, _others.HEAD_BYTES) if looked_at else b""
    # Not by the name alone: macOS keeps attributes of `x.h5` in a `._x.h5`.
    form = recognise(path, head) if head and not head.startswith(_APPLE_DOUBLE) else None
    model = form is not None and form.recognises(path, head)
    if head and not model and not head.startswith(_APPLE_DOUBLE):
        model = _others.kind_of(folder, name, head).unopened
    books.pass_over(path, "hidden-file", unopened=model)


def enter_no_file(books: Books, path: str, kind: str) -> None:
    """Enter what leads to no file; nothing is read, as reading a pipe would wait for ever.

    Args:
        books: The books of the search.
        path: The entry of the folder.
        kind: As in `_storage.Entry`: `special` or `nowhere`.
    """
    name = split(path)[1]
    annexed = kind == "nowhere" and os.path.islink(path) and _others.is_annexed(os.readlink(path))
    what = "pointer" if annexed else "dangling-link" if kind == "nowhere" else "special"
    books.pass_over(path, what, unopened=_others.may_be_model(name) if annexed else _has_name_of_model(path))


def _has_name_of_model(path: str) -> bool:
    folder, name = split(path)
    claimed = by_name(path) is not None or prefix_of(name) is not None
    return claimed or (not name.endswith(".dvc") and _others.kind_of(folder, name, b"").unopened)
