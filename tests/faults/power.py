"""What a loss of power can leave: what was not flushed is lost, or only some of it is there.

The model: a file has the content of its last `fsync`, or what was written since, or half of that; a name in a
folder is there or not as of any moment since the folder's last `fsync`, in the order in which names changed. Files and
folders lose independently. That is what journalling file systems (ext4, XFS, Btrfs, APFS) promise and not more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_Entries = dict[str, int]  # Name -> inode; of a folder too.


@dataclass
class _File:
    data: bytes
    mode: int
    time: int


@dataclass
class Moment:
    """What could be on the disk if the power failed now."""

    folders: dict[int, list[_Entries]]
    files: dict[int, list[_File]]
    root: int


@dataclass
class Disk:
    """Follows a folder: what is in it, and what of that is known to be on the disk.

    Attributes:
        root: The folder.
        moments: One for each call that was made.
    """

    root: Path
    moments: list[Moment] = field(default_factory=list)
    _folders: dict[int, list[_Entries]] = field(default_factory=dict)
    _files: dict[int, list[_File]] = field(default_factory=dict)

    def start(self) -> None:
        """Take what is there as on the disk."""
        folders, files = self._look()
        self._folders = {inode: [entries] for inode, entries in folders.items()}
        self._files = {inode: [file] for inode, file in files.items()}

    def called(self, _: str) -> None:
        """Note what a call has changed."""
        folders, files = self._look()
        for inode, entries in folders.items():
            history = self._folders.setdefault(inode, [{}])
            if history[-1] != entries:
                history.append(entries)
        for number, file in files.items():
            versions = self._files.setdefault(number, [_File(b"", file.mode, file.time)])
            if (versions[-1].data, versions[-1].mode) != (file.data, file.mode):
                versions[1:] = [_File(_half(versions[0].data, file.data), file.mode, file.time), file]
        self.moments.append(
            Moment(
                {inode: list(history) for inode, history in self._folders.items()},
                {inode: list(versions) for inode, versions in self._files.items()},
                self.root.stat().st_ino,
            )
        )

    def flushed(self, inode: int) -> None:
        """Take note that a file or folder is on the disk as it is."""
        for known in (self._folders, self._files):
            if inode in known:
                del known[inode][:-1]  # type: ignore[attr-defined]

    def _look(self) -> tuple[dict[int, _Entries], dict[int, _File]]:
        folders: dict[int, _Entries] = {}
        files: dict[int, _File] = {}
        pending = [str(self.root)]
        while pending:
            folder = pending.pop()
            entries: _Entries = {}
            with os.scandir(folder) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    entries[entry.name] = status.st_ino
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files[status.st_ino] = _File(Path(entry.path).read_bytes(), status.st_mode, status.st_mtime_ns)
            folders[Path(folder).stat().st_ino] = entries
        return folders, files


def _half(flushed: bytes, data: bytes) -> bytes:
    """Return a file of which half of what was written since it was flushed is on the disk."""
    start = len(flushed) if data.startswith(flushed) else 0
    return data[: start + (len(data) - start) // 2]


def outcomes(moment: Moment, draws: int, chance: random.Random) -> Iterator[dict[str, _File | None]]:
    """Yield trees that a loss of power may leave: path -> file, or None for a folder.

    The first has all that was done, the second only what was flushed; the others are drawn.
    """
    for number in range(2 + draws):

        def choose(count: int, number: int = number) -> int:
            return count - 1 if number == 0 else 0 if number == 1 else chance.randrange(count)

        tree: dict[str, _File | None] = {}
        # A file with two names keeps both: what is chosen for it is one object.
        chosen = {inode: versions[choose(len(versions))] for inode, versions in moment.files.items()}
        pending = [(moment.root, "")]
        while pending:
            inode, path = pending.pop()
            history = moment.folders[inode]
            for name, inner in history[choose(len(history))].items():
                below = f"{path}{name}"
                if inner in moment.folders:
                    tree[below] = None
                    pending.append((inner, f"{below}/"))
                elif inner in chosen:
                    tree[below] = chosen[inner]
        yield tree


def build(tree: dict[str, _File | None], root: Path) -> None:
    """Make a tree of files."""
    root.mkdir(parents=True)
    made: dict[int, Path] = {}
    for name in sorted(tree):
        file = tree[name]
        if file is None:
            (root / name).mkdir(parents=True, exist_ok=True)
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if id(file) in made:
            os.link(made[id(file)], path)
            continue
        made[id(file)] = path
        path.write_bytes(file.data)
        path.chmod(file.mode & 0o777)
        os.utime(path, ns=(file.time, file.time))
