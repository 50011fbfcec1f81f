"""What a file is that is not what its name says.

The commonest damage of published checkpoints is a file of another kind under a checkpoint's name: a git-LFS pointer
from a clone without LFS, the HTML page of a failed download.
"""

from __future__ import annotations

GIT_LFS = b"version https://git-lfs.github.com/spec/"
_SIGNATURES = (
    (GIT_LFS, "a git-LFS pointer; fetch the real file with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive (a `.keras` model, or a PyTorch checkpoint)"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ\x00", "xz-compressed"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
)
_TEXT = frozenset(range(32, 127)) | {9, 10, 13}


def is_tensorflow_lite(head: bytes) -> bool:
    """Return whether a file with these first bytes is a model of TensorFlow Lite (schema.fbs, `file_identifier`)."""
    return head[4:8] == b"TFL3"


def is_msgpack_map(head: bytes) -> bool:
    """Return whether the first bytes are those of a map whose first key is a text, in msgpack.

    Flax, T5X and Orbax keep a train state so, under the name `checkpoint` (msgpack spec.md, "map" and "str" formats).
    """
    after = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x80 < head[0] < 0x90 else 0) if head else 0
    return after > 0 and (0xA0 <= head[after] < 0xC0 or head[after] in (0xD9, 0xDA)) if len(head) > after else False


def describe(head: bytes) -> str | None:
    """Return what a file with these first bytes is, in words that follow "is"; None where they say nothing.

    Args:
        head: The first bytes, at least 64 where the file has them.
    """
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if is_tensorflow_lite(head):
        return "a TensorFlow Lite model"
    if is_msgpack_map(head):
        return "a msgpack file, as Flax, T5X and Orbax write them"
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page; the download failed"
    if start.startswith(b"<?xml"):
        return "an XML document; the download failed"
    if len(head) >= 16 and not any(head[:512]):
        return "filled with zeros"
    if len(head) >= 16 and all(byte in _TEXT for byte in head[:512]):
        return "a text file"
    return None
