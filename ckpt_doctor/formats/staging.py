"""A checkpoint as it will be: written, and readable, but not yet where it belongs.

`Format.stage` writes a changed copy under temporary names beside the files that it will become (see `_atomic`) and
returns a `Staged`. `open` reads it through the format's own reader: a folder of symbolic links shows the staged files,
and those that stay as they are, under their final names. `commit` gives them these names for good. Leaving without a
commit takes everything back.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats._atomic import Outputs
from ckpt_doctor.formats._storage import is_remote
from ckpt_doctor.formats.replacing import check_still, replaced

if TYPE_CHECKING:
    from ckpt_doctor.formats.interface import Format

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Committed:
    """What a commit has put in place.

    Attributes:
        files: Every file that is new or changed.
        backups: Files that hold what was there before, when a checkpoint was changed in place.
        notes: What could not be tidied up, in words for the user.
    """

    files: tuple[Path, ...]
    backups: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class Staged:
    """A changed checkpoint, written and not yet in place; as a context manager it takes back what is not committed.

    Attributes:
        target: The path that it is opened by once it is committed.
        only_added: Whether every byte of the old values stays where it is, in the same file: then `Format.entries` says
            of a value whether it is the same.
    """

    def __init__(
        self,
        outputs: Outputs,
        read: Callable[[str], Checkpoint],
        target: str,
        *,
        check: Callable[[], None],
        unchanged: Iterable[Path] = (),
        backups: Iterable[Path] = (),
        in_place: bool = False,
        only_added: bool = False,
    ) -> None:
        """Take over the outputs.

        Args:
            outputs: The files, staged and filled.
            read: Reads a checkpoint of this format.
            target: See the attribute.
            check: Called right before the commit; raises where it would take something away unseen.
            unchanged: Files that belong to the checkpoint, or that its reader looks at, and stay as they are.
            backups: Files of which a backup is kept.
            in_place: Whether every output is a newer version of what is there.
            only_added: See the attribute.
        """
        self.target = target
        self.only_added = only_added
        self._outputs = outputs
        self._read = read
        self._check = check
        self._unchanged = tuple(unchanged)
        self._backups = tuple(backups)
        self._in_place = in_place
        self._view: str | None = None
        self._is_over = False
        _log.debug("staged %s: %s", target, ", ".join(str(path) for path, _ in outputs.staged()) or "nothing new")

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def open(self) -> Checkpoint:
        """Return what will be there, read from the staged bytes.

        It has the names that it will have; `Checkpoint.place_of` says where the bytes are. It can be read until the
        commit or the end of the transaction.

        Raises:
            UnreadableCheckpoint: The staged bytes are not a checkpoint.
            BadRequest: There is no folder for temporary files.
        """
        view = self._view or self._make_view()
        opened = self._read(str(Path(view, self._name)))
        names = {place: self.named(place) for place in (opened.path, *opened.files)}
        meta_path = opened.descriptions.meta_graph_path
        return replace(
            opened,
            path=names[opened.path],
            files=tuple(names[file] for file in opened.files),
            damages=tuple(
                replace(damage, where=self.named(damage.where), message=self.named(damage.message))
                for damage in opened.damages
            ),
            descriptions=replace(
                opened.descriptions, meta_graph_path=None if meta_path is None else self.named(meta_path)
            ),
            places={name: place for place, name in names.items()},
        )

    def named(self, text: str) -> str:
        """Return a message or a path in which the names are those after the commit."""
        if self._view is None:
            return text
        folder = self.target.removesuffix(self._name) if self.target.endswith(self._name) else ""
        return text.replace(str(Path(self._view, self._name)), self.target).replace(f"{self._view}{os.sep}", folder)

    def commit(self) -> Committed:
        """Put everything in place; all of it, or nothing.

        Raises:
            BadRequest: Something else is there by now, another program has changed the checkpoint, or the file system
                refuses. Nothing was changed.
        """
        if self._is_over:
            raise RuntimeError(f"{self.target}: is committed or dropped already")
        self._close()
        with self._outputs.all_or_nothing():
            self._check()
            backups = tuple(self._outputs.keep_backup(path) for path in self._backups if os.path.lexists(path))
            placed = self._outputs.commit(in_place=self._in_place)
        files = (path for place in placed for path in (place, *sorted(place.rglob("*"))))
        return Committed(tuple(path for path in files if path.is_file()), backups, tuple(self._outputs.notes))

    @property
    def is_committed(self) -> bool:
        """Whether everything is in place, even if something failed or interrupted after that."""
        return self._outputs.is_committed

    def drop(self) -> None:
        """Take everything back; does nothing after a commit."""
        is_over = self._is_over
        self._close()
        if not is_over:
            self._outputs.undo()

    @property
    def _name(self) -> str:
        return _absolute(self.target).name

    def _make_view(self) -> str:
        """Make the folder in which everything has its final name."""
        if self._is_over:
            raise RuntimeError(f"{self.target}: is committed or dropped already")
        root = _absolute(self.target).parent
        staged = dict(self._outputs.staged())
        places = staged | {path: path for path in self._unchanged if path not in staged}
        with self._outputs.all_or_nothing():
            # They load `random` and OpenSSL, which no scan needs.
            import secrets
            import tempfile

            for folder in (tempfile.gettempdir(), root):
                view = Path(folder, f".ckpt-doctor-{secrets.token_hex(6)}.tmp")
                self._outputs.shown_in(view)
                self._view = str(view)
                try:
                    view.mkdir(mode=0o700)
                    break
                except OSError as error:
                    if folder == root:
                        raise
                    _log.debug("%s: %s", view, error)
            for path, place in places.items():
                link = view / _absolute(path).relative_to(root)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(_absolute(place))
        return str(view)

    def _close(self) -> None:
        """Remove the view, before the journal that names it is."""
        self._is_over = True
        if self._view is not None:
            shutil.rmtree(self._view, ignore_errors=True)


def stage_copy(
    form: Format,
    checkpoint: Checkpoint,
    target: Path,
    fill: Callable[[Outputs], None],
    *,
    overwrite: bool,
    opened_by: str | None = None,
    unchanged: Iterable[Path] = (),
    whole_folder: bool = False,
    also_locked: Iterable[Path] = (),
) -> Staged:
    """Stage a changed copy of a checkpoint.

    Args:
        form: Its format.
        checkpoint: What is copied.
        target: Where to.
        fill: Stages the files.
        overwrite: Whether a checkpoint of the same format may be replaced there.
        opened_by: The path that the copy is opened by, if that is not `target`.
        unchanged: See `Staged`.
        whole_folder: Whether an older checkpoint is one folder, so that its files go with it.
        also_locked: Other names under which the files at the target may be changed.

    Raises:
        BadRequest: Something else is there, or the file system refuses.
        RepairRefused: The format cannot hold the change.
    """
    _refuse_remote(checkpoint)
    older = replaced(form, checkpoint, target, overwrite=overwrite)
    owner = Path(form.footprint(checkpoint, target).name)
    outputs = Outputs(owner, also_locked=also_locked, overwrite=bool(older))
    with outputs.all_or_nothing():
        fill(outputs)
        if not whole_folder:
            outputs.discard(older)
    return Staged(
        outputs,
        form.read,
        opened_by or str(target),
        check=lambda: check_still(form, checkpoint, target, older, overwrite=overwrite),
        unchanged=unchanged,
    )


def stage_in_place(
    form: Format,
    checkpoint: Checkpoint,
    fill: Callable[[Outputs], object],
    *,
    owner: Path,
    also_locked: Iterable[Path] = (),
    backups: Iterable[Path] | None,
    unchanged: Iterable[Path] = (),
) -> Staged:
    """Stage a change of a checkpoint where it is.

    Args:
        form: Its format.
        checkpoint: What is changed.
        fill: Stages the files, or appends to them.
        owner: The name that it is changed under; its folder holds all of its files.
        also_locked: Other names under which the same files may be changed.
        backups: The files of which a backup is kept; None: every file that is replaced.
        unchanged: See `Staged`; the files of the checkpoint are known.

    Raises:
        BadRequest: The file system refuses.
        RepairRefused: The format cannot hold the change.
    """
    _refuse_remote(checkpoint)
    before = _stamps(map(Path, checkpoint.files))
    outputs = Outputs(owner, also_locked=also_locked, overwrite=True)
    with outputs.all_or_nothing():
        fill(outputs)
    staged = dict(outputs.staged())
    appended = outputs.appended()
    before |= _stamps(appended)

    def check() -> None:
        for file, stamp in _stamps(before).items():
            if before[file] != stamp:
                raise BadRequest(f"{file}: was changed by another program while it was worked on; start again")

    return Staged(
        outputs,
        form.read,
        checkpoint.path,
        check=check,
        unchanged=(*map(Path, checkpoint.files), *unchanged),
        backups=[path for path in staged if os.path.lexists(path)] if backups is None else backups,
        in_place=True,
        only_added=bool(appended),
    )


def _refuse_remote(checkpoint: Checkpoint) -> None:
    if is_remote(checkpoint.path):
        raise BadRequest(f"{checkpoint.path}: remote checkpoints are read-only; download it first")


def _absolute(path: Path | str) -> Path:
    """Return a path from the root, with the symbolic links that are on it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _stamps(files: Iterable[Path]) -> dict[Path, _Stamp | None]:
    """Return what changes when a file does; None where it is not there."""
    stamps: dict[Path, _Stamp | None] = {}
    for file in files:
        status = file.stat() if file.exists() else None
        stamps[file] = status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return stamps
