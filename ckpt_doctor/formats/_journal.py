"""The journal of a commit: what is about to be done to files, on the disk before it is done.

It lies beside the checkpoint while files are written and put in place, one JSON object a line. A process that dies
leaves it, and `recovery` finishes the commit or takes it back. Its paths are relative to its folder and lead to nothing
outside of it: a journal may come from strangers, as the checkpoint beside it may.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_doctor.formats._file_steps import JOURNAL, UNDO, flush_folder, hidden_beside, own_kind

_SCHEMA = "ckpt-doctor/journal/1"
# A commit names a few files; a larger file is none of ours.
_LARGEST = 16 << 20


@dataclass(frozen=True)
class Seen:
    """What tells a file or a folder from another in its place.

    Attributes:
        size: In bytes; of a folder, that of all files below it.
        time: When its content was last changed, in nanoseconds; of a folder, when the content of a file below it was.
        inode: Its number in the file system, which some network file systems make up.
    """

    size: int
    time: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> Seen | None:
        """Return what is at `path` now; None where nothing is."""
        try:
            status = path.lstat()
        except OSError:
            return None
        if not stat.S_ISDIR(status.st_mode):
            return cls(status.st_size, status.st_mtime_ns, status.st_ino)
        # A folder's own time changes with the locks in it.
        files = [file.lstat() for file in path.rglob("*") if own_kind(file.name) is None and not file.is_dir()]
        return cls(
            sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0), status.st_ino
        )

    def is_at(self, path: Path, *, not_this: Seen | None = None) -> bool:
        """Return whether it is what is at `path`, and not the other that may be there."""
        there = Seen.at(path)
        if there is None or (there.size, there.time) != (self.size, self.time):
            return False
        alike = not_this is not None and (not_this.size, not_this.time) == (self.size, self.time)
        return there.inode == self.inode or not alike


@dataclass(frozen=True)
class Move:
    """One step of a commit: what is at `new` takes the name `target`, what was there takes the name `old`.

    Attributes:
        target: The final name.
        new: The hidden name of the new file or folder; None: what is at `target` goes away.
        old: The hidden name that what is at `target` gets; None where nothing is there.
        new_seen: What is at `new` before the commit.
        old_seen: What is at `target` before the commit.
    """

    target: Path
    new: Path | None
    old: Path | None
    new_seen: Seen | None
    old_seen: Seen | None

    @property
    def is_placed(self) -> bool:
        """Whether the new one is at the target."""
        return self.new_seen is not None and self.new_seen.is_at(self.target, not_this=self.old_seen)

    @property
    def is_untouched(self) -> bool:
        """Whether what was there is there, or nothing, if nothing was."""
        if self.old_seen is None:
            return not os.path.lexists(self.target)
        return self.old_seen.is_at(self.target, not_this=self.new_seen)


@dataclass(frozen=True)
class Append:
    """Bytes behind the end of a file.

    Attributes:
        path: The file.
        before: Its size before, in bytes.
        after: Its size with them.
        index: The file that names what is in it.
        index_seen: What is at `index` before the commit.
    """

    path: Path
    before: int
    after: int
    index: Path
    index_seen: Seen

    @property
    def is_unnamed(self) -> bool:
        """Whether the index is unchanged, so that it names nothing of the added bytes: it was not saved again."""
        return self.index_seen.is_at(self.index)


@dataclass
class Record:
    """What a transaction has done, and is about to do.

    Attributes:
        new: Hidden names of what is being written.
        appended: What is added to files that are there.
        backups: The name of each backup, and the file that it is of.
        views: Folders of symbolic links that show what is staged.
        moves: The commit, in order; None before it began.
        in_place: Whether each move replaces a file by a newer version of it in one step.
        state: `staging`, `committing`, `done` (only what was replaced is to be removed) or `undoing`.
    """

    new: list[Path] = field(default_factory=list)
    appended: list[Append] = field(default_factory=list)
    backups: list[tuple[Path, Path]] = field(default_factory=list)
    views: list[Path] = field(default_factory=list)
    moves: list[Move] | None = None
    in_place: bool = False
    state: str = "staging"


class Journal:
    """A journal that is being written.

    Args:
        owner: The name of the checkpoint; the journal lies beside it.
    """

    def __init__(self, owner: Path) -> None:
        self.path = journal_of(owner)
        self._folder = owner.parent
        self._undo = hidden_beside(owner, UNDO)
        if os.path.lexists(self._undo):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._undo))
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            self._write({"schema": _SCHEMA, "process": os.getpid()}, durable=True)
            flush_folder(self._folder)
        except BaseException:
            self.end()
            raise

    def add(self, kind: str, *, durable: bool = False, **fields: Any) -> None:
        """Write down what is about to be done.

        Args:
            kind: The kind of the record.
            durable: Whether it must be on the disk before this returns.
            **fields: What the record says.
        """
        self._write({"do": kind, **fields}, durable=durable)

    def commit(self, moves: Iterable[Move], *, in_place: bool) -> None:
        """Write down the commit; from here on it is finished even if this process is not there to do it."""
        self.add("commit", durable=True, in_place=in_place, moves=[self._told(move) for move in moves])

    def tell_undoing(self) -> None:
        """Write down that the commit is taken back, in the journal or, where nothing can be written, by its name.

        Raises:
            OSError: Neither can be done: what is there still says that the commit is to be finished.
        """
        try:
            self.add("undoing", durable=True)
        except OSError:
            self.path.rename(self._undo)
            self.path = self._undo
            flush_folder(self._folder)

    def append(self, appended: Append) -> None:
        """Write down what is about to be added to a file."""
        self.add(
            "append",
            durable=True,
            path=self.relative(appended.path),
            before=appended.before,
            after=appended.after,
            index=self.relative(appended.index),
            index_seen=_told(appended.index_seen),
        )

    def end(self, folders: Iterable[Path] = ()) -> None:
        """Remove the journal: nothing is left to be done.

        Args:
            folders: Where names of ours were removed. Elsewhere than beside the journal that is flushed first: the
                journal must not be gone before them.

        Raises:
            OSError: It cannot be removed.
        """
        self.close()
        end(self.path, folders)

    def close(self) -> None:
        """Leave the journal to the next run."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def relative(self, path: Path) -> str:
        """Return the name of a file as the journal says it."""
        return os.path.relpath(path, self._folder)

    def _told(self, move: Move) -> dict[str, Any]:
        return {
            "target": self.relative(move.target),
            "new": move.new and self.relative(move.new),
            "old": move.old and self.relative(move.old),
            "new_seen": move.new_seen and _told(move.new_seen),
            "old_seen": move.old_seen and _told(move.old_seen),
        }

    def _write(self, document: dict[str, Any], *, durable: bool) -> None:
        # Names that are not UTF-8 hold surrogates, which JSON escapes.
        line = json.dumps(document).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]
        if durable:
            os.fsync(self._descriptor)


def _told(seen: Seen) -> list[int]:
    return [seen.size, seen.time, seen.inode]


def end(journal: Path, folders: Iterable[Path]) -> None:
    """Remove a journal of which everything is done; see `Journal.end`."""
    for folder in {folder for folder in folders if folder != journal.parent and folder.is_dir()}:
        flush_folder(folder)
    journal.unlink(missing_ok=True)


def journal_of(owner: Path) -> Path:
    """Return the path of the journal of a checkpoint."""
    return hidden_beside(owner, JOURNAL)


class NoJournal(ValueError):
    """A file is not a journal of ckpt-doctor, or names files that a journal may not name."""


def read(path: Path) -> Record:
    """Read what a process that died was about to do.

    A last line that is torn was never acted upon.

    Raises:
        NoJournal: It is none.
        OSError: It cannot be read.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        raise NoJournal("is not a journal of ckpt-doctor")
    lines = path.read_bytes().split(b"\n")[:-1]
    record = Record()
    undone = path.suffix == UNDO
    try:
        documents = [json.loads(line) for line in lines]
        # An empty one was just made: nothing was done after it.
        if documents and documents[0].get("schema") != _SCHEMA:
            raise NoJournal("is not a journal of this version of ckpt-doctor")
        for document in documents[1:]:
            _take(record, document, path.parent)
    except (AttributeError, KeyError, TypeError, RecursionError, ValueError) as error:
        raise NoJournal(f"is not a journal of ckpt-doctor: {error}") from error
    if undone:
        record.state = "undoing"
    return record


def _take(record: Record, document: dict[str, Any], folder: Path) -> None:
    """Add one line of a journal to what is known."""
    kind = document["do"]
    if kind == "new":
        record.new.append(_inside(folder, document["path"], "new"))
    elif kind == "append":
        path = _inside(folder, document["path"])
        before, after = (_count(document[key]) for key in ("before", "after"))
        seen = _seen(document["index_seen"])
        if seen is None:
            raise NoJournal("it tells of no index")
        record.appended.append(Append(path, before, after, _inside(folder, document["index"]), seen))
    elif kind == "backup":
        backup, original = _inside(folder, document["path"]), _inside(folder, document["of"])
        if not backup.name.startswith(f"{original.name}.bak"):
            raise NoJournal(f"it names {document['path']!r} as a backup")
        record.backups.append((backup, original))
    elif kind == "view":
        record.views.append(Path(str(document["path"])))
    elif kind == "commit":
        record.moves = [_move(folder, one) for one in document["moves"]]
        record.in_place = document["in_place"] is True
        record.state = "committing"
    elif kind in ("done", "undoing"):
        record.state = kind
    else:
        raise NoJournal(f"it holds {kind!r}")


def _move(folder: Path, told: dict[str, Any]) -> Move:
    new, old = (None if told[key] is None else _inside(folder, told[key], key) for key in ("new", "old"))
    return Move(_inside(folder, told["target"]), new, old, _seen(told["new_seen"]), _seen(told["old_seen"]))


def _seen(told: list[Any] | None) -> Seen | None:
    if told is None:
        return None
    size, time, inode = map(_count, told)
    return Seen(size, time, inode)


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise NoJournal(f"{number!r} is not a valid number")
    return number


def _inside(folder: Path, text: Any, kind: str | None = None) -> Path:
    """Return a path of a journal.

    Raises:
        NoJournal: It leads out of the folder, or should be a hidden name of ours and is none.
    """
    path = Path(str(text))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in str(text):
        raise NoJournal(f"it names {str(text)!r}, which is not below its folder")
    whole = folder / path
    if whole.parent.resolve() != folder.resolve() / path.parent:
        raise NoJournal(f"it names {str(text)!r}, which a symbolic link leads elsewhere")
    if kind is not None and own_kind(path.name) != kind:
        raise NoJournal(f"it names {str(text)!r}, which is not a file name of ckpt-doctor")
    return whole
