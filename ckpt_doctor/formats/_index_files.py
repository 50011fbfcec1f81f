"""Whether a file named `.index` is the index of a tensor bundle, or of something else: FAISS and others use the ending.

Something else is passed over in a folder. A damaged index must not be, and its bytes may tell nothing. So every sign
counts that there is, or was, a checkpoint of this name; only without any is the file another program's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import _table
from ckpt_doctor.formats._books import Books
from ckpt_doctor.formats._bundle_index import looks_like_index, prefix_of
from ckpt_doctor.formats._passed_over import enter_hidden, enter_unknown
from ckpt_doctor.formats._storage import Entry, join, open_source, read_head

# `tf.train.Saver` and Keras call a checkpoint so in all their examples.
_NAME_OF_CHECKPOINT = ("ckpt", "checkpoint")
# How a `MetaGraphDef` begins: field 1 or 2, of wire type 2 (meta_graph.proto).
_META_GRAPH = (b"\x0a", b"\x12")


def bundle_indexes(
    folder: str,
    entries: Iterable[Entry],
    listed: Collection[str],
    books: Books,
    unreadable: Callable[[str, CkptDoctorError], None],
) -> set[str]:
    """Return the names of the indexes of bundles; other files of this ending are entered as passed over.

    Args:
        folder: The folder.
        entries: What is in it. An index that is a pipe or leads nowhere counts as that of a bundle.
        listed: Prefixes that the state file of the folder lists.
        books: Where to enter the others.
        unreadable: Is told of an index that cannot be read.
    """
    beside: dict[str, list[str]] = {}
    indexes: list[Entry] = []
    for entry in entries:
        if entry.name.endswith(".index"):
            indexes.append(entry)
        elif entry.kind == "file" and (prefix := prefix_of(entry.name)) is not None:
            beside.setdefault(prefix, []).append(entry.name)
    found = set()
    for entry in indexes:
        try:
            parts = beside.get(entry.name.removesuffix(".index"), ())
            if entry.kind != "file" or _is_bundle_index(folder, entry.name, parts, listed):
                found.add(entry.name)
            else:
                (enter_hidden if entry.name.startswith(".") else enter_unknown)(books, join(folder, entry.name))
        except CkptDoctorError as error:  # noqa: PERF203 - one that cannot be read stops no other
            unreadable(join(folder, entry.name), error)
    return found


def _is_bundle_index(folder: str, name: str, beside: Collection[str], listed: Collection[str]) -> bool:
    """Return whether an index is that of a tensor bundle, perhaps a damaged one.

    Args:
        folder: Its folder.
        name: Its name, which ends in `.index`.
        beside: Names of the data files and graphs of the same prefix in the folder.
        listed: Prefixes that the state file of the folder lists.

    Raises:
        BadRequest: It cannot be read.
    """
    prefix = name.removesuffix(".index")
    if prefix in listed or any(word in name.lower() for word in _NAME_OF_CHECKPOINT):
        return True
    if any(not other.endswith(".meta") or _is_graph(read_head(join(folder, other))) for other in beside):
        return True
    source = open_source(join(folder, name))
    head = bytes(source.read(0, min(source.size, 64)))
    tail = bytes(source.read(source.size - len(_table.MAGIC), len(_table.MAGIC))) if source.size >= 8 else b""
    # A file that is empty or all zeros was never written to its end, and does not say by whom.
    return looks_like_index(head) or tail == _table.MAGIC or not any(head)


def _is_graph(head: bytes) -> bool:
    """Return whether a `.meta` begins as a graph does; other programs write text (Unity) or pickles there."""
    if head.lstrip().startswith(b"meta_info_def"):  # In text form.
        return True
    return head.startswith(_META_GRAPH) and any(byte < 9 or byte > 126 for byte in head[:64])
