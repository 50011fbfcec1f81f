"""From the PATH arguments of a user to checkpoints, each once, in a steady order.

Folders are walked. What a `checkpoint` state file lists is taken as versions of one model, of which the latest counts.
What is left of saves that never finished is reported, not opened. Every file is entered in the books (`_books`): as one
of a checkpoint, or as passed over and why. What cannot be read is an error and stops nothing else.

Symbolic links to files are followed wherever they lead, because content-addressed caches are made of them, and the
books say how many lead out of the given path. Links to folders are followed within it only: one that leads out could
lead to everything that the machine has.

Source of the state file and of temporary names: tensorflow/python/checkpoint/checkpoint_management.py
(get_checkpoint_state), tensor_bundle.cc (`.tempstate…`), tensorflow/python/training/saver.py (`_temp_…/part-…`).
"""

# Paths are strings, as in `_storage`.
# ruff: noqa: PTH207
from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ckpt_doctor.checkpoint import Damage, FormatName
from ckpt_doctor.errors import BadRequest, CkptDoctorError, UnreadableCheckpoint
from ckpt_doctor.formats import _others, absent, by_name, recognise, tidy
from ckpt_doctor.formats._books import Books
from ckpt_doctor.formats._bundle_index import FORMAT as BUNDLE
from ckpt_doctor.formats._bundle_index import prefix_of
from ckpt_doctor.formats._checkpoint_names import files_by_checkpoint, identity_of, is_part_of, name_of
from ckpt_doctor.formats._file_steps import own_kind
from ckpt_doctor.formats._hdf5_data import holds_data_only
from ckpt_doctor.formats._index_files import bundle_indexes
from ckpt_doctor.formats._kept import Keeper, keeping
from ckpt_doctor.formats._keras_shards import SHARD as KERAS_SHARD
from ckpt_doctor.formats._natural import in_natural_order
from ckpt_doctor.formats._passed_over import enter_hidden, enter_no_file, enter_unknown
from ckpt_doctor.formats._state_file import State, read_state
from ckpt_doctor.formats._storage import (
    Entry,
    entries_in,
    expand,
    is_file,
    is_folder,
    is_remote,
    join,
    names_in,
    read_head,
    split,
)
from ckpt_doctor.formats.saved_model import MODEL_FILES, OWN_FILES, PARTS_OF_A_MODEL
from ckpt_doctor.formats.settling import folders_around, settle
from ckpt_doctor.formats.tensor_slices_v1 import base_of, sharded_name

_log = logging.getLogger(__name__)

STATE_FILE = "checkpoint"
# Of our own hidden files, those of a run that was cut off (or still goes on); a lock is none.
_LEFT_OVERS = ("new", "old", "journal")
_TEMPORARY = re.compile(r"(?P<prefix>.+?)(\.(index|data-\d{5}-of-\d{5}))?\.tempstate\d+|(?P<temp>.+)_temp(_[0-9a-f]+)?")
# In a walk, a file that only its name claims must claim it clearly: `.ckpt` is what PyTorch's files are called, too.
_CLEAR_NAMES: tuple[FormatName, ...] = ("tensor-bundle", "keras-hdf5", "keras-v3")


@dataclass(frozen=True)
class Discovery:
    """What there is to scan.

    Attributes:
        checkpoints: Paths for `open_checkpoint`, in the order of the arguments and of names.
        damages: What the folder says of a checkpoint: path → damages, to be added to those that opening it finds.
        unopened: Damage where there is no checkpoint to open: a stale state file alone, remains of a save.
        errors: `(path, message)` of arguments at which there is nothing.
        passed_over: Checkpoints that a state file lists and that are not the latest.
        books: What became of every file.
        keeper: Holds what was opened to recognise them, for whoever reads them while this is kept.
    """

    checkpoints: tuple[str, ...]
    damages: dict[str, tuple[Damage, ...]] = field(default_factory=dict)
    unopened: tuple[UnreadableCheckpoint, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    passed_over: int = 0
    books: Books = field(default_factory=Books, repr=False, compare=False)
    keeper: Keeper | None = field(default=None, repr=False, compare=False)


def discover(
    paths: Iterable[str | os.PathLike[str]],
    all_listed: bool = False,
    skip_non_checkpoints: bool = False,
    *,
    opened_by: Callable[[str], bool] = holds_data_only,
) -> Discovery:
    """Return every checkpoint under `paths`, each once.

    Args:
        paths: Prefixes or any of their files, SavedModel folders, files, other folders (walked), globs, URLs.
        all_listed: Take every checkpoint that a state file lists, not only the latest.
        skip_non_checkpoints: Take a file that is named as one that is found in a folder: what is not a checkpoint is
            passed over.
        opened_by: Does `holds_data_only`, which opens HDF5 files, perhaps in a process of its own.
    """
    search = _Search(all_listed, skip_non_checkpoints, opened_by)
    with keeping() as keeper:
        for path in paths:
            try:
                search.settle_around(tidy(os.fspath(path)))
                search.argument(tidy(os.fspath(path)))
            except CkptDoctorError as error:  # noqa: PERF203 - one bad argument stops no other
                search.errors.append((os.fspath(path), str(error)))
    found = tuple(search.found.values())
    _log.debug("%d checkpoints found, %d passed over, %d errors", len(found), search.passed_over, len(search.errors))
    # The bundle inside a SavedModel that is named as well is a part of it.
    parts = {join(join(path, "variables"), "variables") for path in found}
    return Discovery(
        tuple(path for path in found if path not in parts),
        {path: tuple(damages) for path, damages in search.damages.items()},
        tuple(search.unopened),
        tuple(search.errors),
        search.passed_over,
        search.books,
        keeper,
    )


class _Folder(NamedTuple):
    """A folder that is to be walked; `real` is its path without symbolic links."""

    path: str
    real: str
    link: bool = False


class _Search:
    def __init__(self, all_listed: bool, skip_non_checkpoints: bool, opened_by: Callable[[str], bool]) -> None:
        self._all_listed = all_listed
        self._skip_non_checkpoints = skip_non_checkpoints
        self._holds_data_only = opened_by
        self._visited: set[str] = set()
        self._settled: set[str] = set()
        self.found: dict[str, str] = {}  # Identity → path as given.
        self.damages: dict[str, list[Damage]] = {}
        self.unopened: list[UnreadableCheckpoint] = []
        self.errors: list[tuple[str, str]] = []
        self.passed_over = 0
        self.books = Books()
        self._groups: dict[str, dict[str, list[str]]] = {}
        self._found_by_name: set[tuple[str, str]] = set()  # Folder, name of a checkpoint.
        self._root = ""  # The folder that is searched, without symbolic links.

    def settle_around(self, path: str) -> None:
        """Finish or take back what runs that were cut off have left where a path leads."""
        for folder in folders_around(path):
            self.settle(folder)

    def settle(self, folder: str) -> None:
        """Do so in one folder, once; what cannot be settled cannot be judged."""
        if folder not in self._settled:
            self._settled.add(folder)
            self.errors += [(one.name, one.message) for one in settle(folder) if one.how == "stuck"]

    def argument(self, path: str) -> None:
        """Take one argument; every path that is named is a checkpoint or an error."""
        if split(path)[1] == STATE_FILE and is_file(path) and self._state_only(path):
            return
        if self._skip_non_checkpoints and is_file(path) and split(path)[1] not in MODEL_FILES:
            self._as_in_a_folder(path)
        elif recognise(path) is not None:
            self._recognised(path)
        elif is_folder(path):
            before = len(self.found) + len(self.unopened)
            self._search(path)
            if len(self.found) + len(self.unopened) == before and not any(
                known.startswith(path) for known in self.found.values()
            ):
                self.errors.append((path, f"{path}: no checkpoint in this folder"))
        elif any(sign in path for sign in "*?[") and not is_file(path):
            self._glob(path)
        elif is_file(path) and prefix_of(path) is None:
            self._take(path)  # Opening it says what it is.
        else:
            self.errors.append((path, str(absent(path))))

    def _as_in_a_folder(self, path: str) -> None:
        """Take a file that was named as the search of its folder takes it, with the files of the same checkpoint."""
        folder, name = split(path)
        prefix = prefix_of(name)
        if (folder, prefix or name) in self._found_by_name:
            return
        self._found_by_name.add((folder, prefix or name))
        self._root = folder if is_remote(folder) else os.path.realpath(folder or os.curdir)
        entries = entries_in(folder)
        try:
            state = read_state(folder, [entry.name for entry in entries if entry.kind == "file"])
            listed: Collection[str] = () if state is None else _listed_by(state)
        except FileNotFoundError:
            listed = ()
        except CkptDoctorError:  # It may list this one.
            listed = (prefix or name,)
        self._files(folder, [one for one in entries if is_part_of(folder, one.name, name)], listed)

    def _glob(self, pattern: str) -> None:
        matches = expand(pattern) if is_remote(pattern) else in_natural_order(glob.glob(pattern, recursive=True))
        taken = 0
        for match in matches:
            before = len(self.found)
            try:
                form = recognise(match)
                if form is not None:
                    self._recognised(match)
                elif is_folder(match):
                    self._search(match)
                elif is_file(match):
                    enter_unknown(self.books, match)
            except CkptDoctorError as error:
                self._unreadable(match, error)
            # What an earlier argument took is no reason to complain.
            names = (name_of(match), f"{match.rstrip('/')}/")
            taken += len(self.found) - before or any(
                known == names[0] or known.startswith(names[1]) for known in self.found.values()
            )
        if not taken:
            what = f"the {len(matches)} paths that match are not checkpoints" if matches else "nothing matches"
            self.errors.append((pattern, f"{pattern}: {what}"))

    def _add(self, path: str) -> str:
        """Enter a checkpoint; return the path that it was found by first."""
        return self.found.setdefault(identity_of(path), path)

    def _take(self, path: str) -> None:
        """Enter a checkpoint that was named itself, with the files that it consists of."""
        owner = self._add(path)
        folder, name = split(path)
        if not is_remote(path) and not is_folder(path):
            if folder not in self._groups:
                self._groups[folder] = files_by_checkpoint(folder)
            for part in self._groups[folder].get(name, ()):
                self.books.claim(join(folder, part), owner)
        if is_file(path):
            self.books.claim(path, owner)
        if MODEL_FILES.intersection(name for name, _ in self._listed(path)):
            self._model_files(path, owner)

    def _recognised(self, path: str) -> None:
        """Take a checkpoint, and walk a folder that is one or has its name."""
        self._take(name_of(path))
        if not is_remote(path) and is_folder(path):
            self._search(path)

    def _search(self, folder: str) -> None:
        """Walk a folder that was named: links to folders are followed within it."""
        self._root = folder if is_remote(folder) else os.path.realpath(folder)
        # No recursion: folders may be nested more deeply than Python's stack.
        waiting = [_Folder(folder, self._root)]
        while waiting:
            waiting += reversed(self._walk(waiting.pop()))

    def _listed(self, folder: str) -> tuple[tuple[str, bool], ...]:
        """Return the entries of a local folder that can be listed; nothing else matters where this is asked."""
        if is_remote(folder) or not is_folder(folder):
            return ()
        try:
            return names_in(folder)
        except CkptDoctorError:  # The walk reports it.
            return ()

    def _walk(self, place: _Folder) -> list[_Folder]:
        """Take every checkpoint in a folder, and return the folders in it that are to be walked.

        A folder that cannot be read is an error and stops no other.
        """
        folder = place.path
        if place.real in self._visited:
            if place.link:
                self.books.pass_over(folder, "seen-folder", folder=True)
            return []
        self._visited.add(place.real)
        self.settle(folder)
        self.settle(join(folder, "variables"))
        try:
            entries = entries_in(folder)
        except CkptDoctorError as error:
            self._unreadable(folder, error, is_directory=True)
            return []
        self.books.searched(folder, place.real)
        files = [entry for entry in entries if entry.kind != "folder"]
        self._files(folder, files)
        owner = None
        if not MODEL_FILES.isdisjoint(entry.name for entry in files if entry.kind == "file"):
            owner = self._add(folder)
            self._model_files(folder, owner)
        has_snapshots = any(entry.name == "snapshots" and entry.kind == "folder" for entry in entries)
        folders = [entry for entry in entries if entry.kind == "folder"]
        if owner is not None:
            folders = [entry for entry in folders if entry.name not in PARTS_OF_A_MODEL]
        # Links come last: a folder is named by its own path and not by that of a link to it.
        folders.sort(key=lambda entry: entry.link)
        return [
            _Folder(path, os.path.realpath(path) if entry.link else join(place.real, entry.name), entry.link)
            for entry in folders
            if self._enters(folder, entry, has_snapshots)
            for path in (join(folder, entry.name),)
        ]

    def _enters(self, folder: str, entry: Entry, has_snapshots: bool) -> bool:
        """Return whether a folder inside another one is to be walked; if not, enter why."""
        path = join(folder, entry.name)
        remains = _TEMPORARY.fullmatch(entry.name)
        if entry.name.startswith("."):
            kind = "left-over" if own_kind(entry.name) in _LEFT_OVERS else "hidden-folder"
            self.books.pass_over(path, kind, folder=True)
        elif entry.name in ("__pycache__", "node_modules"):
            self.books.pass_over(path, "code-folder", folder=True)
        elif entry.link and not _is_within(path, self._root):
            self.books.pass_over(path, "link-out", unopened=True, folder=True)
        elif remains and remains["temp"]:
            self._remains(folder, remains["temp"], f"{entry.name}/", path)
            self._claim_below(path, join(folder, remains["temp"]))
        elif entry.name == "blobs" and has_snapshots:
            # The cache of the Hugging Face hub.
            self.books.pass_over(path, "hub-blobs", folder=True)
        else:
            try:
                if recognise(path) is not None:
                    self._add(name_of(path))
            except CkptDoctorError as error:
                self._unreadable(path, error, is_directory=True)
                return False
            return True
        return False

    def _model_files(self, folder: str, owner: str) -> None:
        """Enter the files of a SavedModel, those in its own folders too."""
        for name, is_directory in self._listed(folder):
            if is_directory and name in PARTS_OF_A_MODEL:
                self._claim_below(join(folder, name), owner)
            elif not is_directory and (name in MODEL_FILES or name in OWN_FILES):
                self.books.claim(join(folder, name), owner)

    def _claim_below(self, folder: str, owner: str) -> None:
        """Enter every file in a folder and below as one of a checkpoint; links to folders are not followed."""
        waiting = [folder]
        while waiting:
            inner = waiting.pop()
            try:
                entries = entries_in(inner)
            except CkptDoctorError as error:
                self._unreadable(inner, error, is_directory=True)
                continue
            self.books.searched(inner, inner if is_remote(inner) else os.path.realpath(inner))
            outside = not is_remote(inner) and not _is_within(inner, self._root)
            for entry in entries:
                path = join(inner, entry.name)
                if entry.kind == "file":
                    if outside or (entry.link and not _is_within(path, self._root)):
                        self.books.leads_out(path)
                    self.books.claim(path, owner)
                elif entry.kind != "folder":
                    self._no_file(path, entry.kind)
                elif entry.link:
                    self.books.pass_over(path, "link-out", unopened=True, folder=True)
                else:
                    waiting.append(path)

    def _files(self, folder: str, entries: list[Entry], listed: Collection[str] = ()) -> None:
        # An index that is a pipe or a dangling link stands for a checkpoint that nobody can read.
        names = [entry.name for entry in entries if entry.kind == "file" or entry.name.endswith(".index")]
        present = set(names)
        for entry in entries:
            if entry.link and entry.kind == "file" and not _is_within(join(folder, entry.name), self._root):
                self.books.leads_out(join(folder, entry.name))
            if entry.name not in present:
                self._no_file(join(folder, entry.name), entry.kind)
        state = self._state(folder, names)
        skipped = set() if state is None or self._all_listed else set(state.older)
        listed = listed if state is None else _listed_by(state)
        indexes = bundle_indexes(folder, entries, listed, self.books, self._unreadable)
        latest: str | None = None
        remains: dict[str, list[str]] = {}
        graphs: list[str] = []
        for name in names:
            path = join(folder, name)
            prefix = prefix_of(name)
            temporary = _TEMPORARY.fullmatch(name)
            if temporary:
                remains.setdefault(temporary["prefix"] or temporary["temp"], []).append(name)
            elif prefix is not None and f"{prefix}.index" in indexes:
                if prefix in skipped:
                    self.passed_over += name.endswith(".index")
                    self.books.pass_over(path, "older")
                    continue
                bundle = join(folder, prefix) if prefix else join(folder, ".index")
                self.books.claim(path, self._add(bundle))
                if state is not None and prefix == state.latest:
                    latest = bundle
            elif name.endswith(".index"):
                continue  # `bundle_indexes` has passed it over.
            elif prefix is not None and not name.endswith(".meta"):
                remains.setdefault(prefix, []).append(name)
            elif prefix is not None:
                graphs.append(name)
            elif name == STATE_FILE:
                continue
            else:
                try:
                    self._file(folder, name, present)
                except CkptDoctorError as error:
                    self._unreadable(path, error)
        if state is not None and state.problem is not None:
            self._stale(folder, state, latest)
        for prefix, beside in remains.items():
            self._remains(folder, prefix, ", ".join(beside[:3]), join(folder, beside[0]))
            for name in beside:
                self.books.claim(join(folder, name), join(folder, prefix))
        for name in graphs:
            self._graph(folder, name, names)

    def _file(self, folder: str, name: str, present: set[str]) -> None:
        """Take a file that is a checkpoint or a part of one, or enter why it is passed over."""
        path = join(folder, name)
        shard = KERAS_SHARD.fullmatch(name)
        if own_kind(name) in _LEFT_OVERS:
            self.books.pass_over(path, "left-over")
        elif name.startswith("."):
            enter_hidden(self.books, path)
        elif name in MODEL_FILES:
            return  # `_walk` takes the folder.
        elif shard and f"{shard['base']}.weights.json" in present:
            self.books.claim(path, self._add(join(folder, f"{shard['base']}.weights.json")))
        elif by_name(path) is None and _others.is_plain(name):
            self.books.pass_over(path, "other")
        else:
            head = b"" if is_remote(path) and not _is_claimed(path) else read_head(path, _others.HEAD_BYTES)
            if self._is_checkpoint(path, head):
                self.books.claim(path, self._add(name_of(path)))
            else:
                enter_unknown(self.books, path, head)

    def _no_file(self, path: str, kind: str) -> None:
        if kind == "unreadable":
            self._unreadable(path, BadRequest(f"{path}: cannot be read: Permission denied behind this link"))
        else:
            enter_no_file(self.books, path, kind)

    def _graph(self, folder: str, name: str, names: list[str]) -> None:
        """Enter a `.meta` without an index: a V1 checkpoint may be beside it."""
        prefix = name.removesuffix(".meta")
        shards = (self.books.owner_of(join(folder, other)) for other in names if base_of(other) == prefix)
        owner = self.books.owner_of(join(folder, prefix)) or next((one for one in shards if one is not None), None)
        if owner is None:
            self.books.pass_over(join(folder, name), "other")
        else:
            self.books.claim(join(folder, name), owner)

    def _unreadable(self, path: str, error: CkptDoctorError, *, is_directory: bool = False) -> None:
        self.errors.append((path, str(error)))
        self.books.pass_over(path, "unreadable", folder=is_directory)

    def _state(self, folder: str, names: list[str]) -> State | None:
        path = join(folder, STATE_FILE)
        if STATE_FILE not in names:
            return None
        try:
            state = read_state(folder, names)
        except FileNotFoundError:
            self.books.pass_over(path, "vanished")
            return None
        except CkptDoctorError as error:
            self._unreadable(path, error)
            return None
        if state is None:
            enter_unknown(self.books, path)
        else:
            self.books.claim(path, path)
        return state

    def _is_checkpoint(self, path: str, head: bytes) -> bool:
        if is_remote(path) and not _is_claimed(path):
            return False  # Every look at a remote file costs a round trip.
        form = recognise(path, head)
        if form is None:
            return False
        if form.name == "keras-hdf5" and self._holds_data_only(path):
            return False
        # By its bytes, or by a name that nothing else has.
        return form is not by_name(path) or form.name in _CLEAR_NAMES or form.recognises(path, head)

    def _state_only(self, path: str) -> bool:
        """Take what a state file that was named itself lists; return False if the file is something else."""
        folder, _ = split(path)
        names = [name for name, is_directory in names_in(folder) if not is_directory]
        state = read_state(folder, names)
        if state is None:
            return False
        taken = [*([state.latest] if state.latest else []), *(state.older if self._all_listed else ())]
        self.books.claim(path, path)
        for prefix in taken:
            self._take(join(folder, prefix))
        for prefix in () if self._all_listed else state.older:
            for name in names:
                if name == prefix or prefix_of(name) == prefix:
                    self.books.pass_over(join(folder, name), "older")
        self.passed_over += 0 if self._all_listed else len(state.older)
        if state.problem is not None:
            self._stale(folder, state, join(folder, state.latest) if state.latest else None)
        elif not taken:
            self.errors.append((path, f"{path}: lists no checkpoint that is there"))
        return True

    def _stale(self, folder: str, state: State, latest: str | None) -> None:
        path = join(folder, STATE_FILE)
        damage = Damage("stale-checkpoint-state", path, state.problem or "")
        beside = latest or next((known for known in self.found.values() if split(known)[0] == folder), None)
        if beside is not None:
            self.damages.setdefault(beside, []).append(damage)
        else:
            self.unopened.append(UnreadableCheckpoint(path, BUNDLE, (damage,)))

    def _remains(self, folder: str, prefix: str, names: str, where: str) -> None:
        path = join(folder, prefix)
        whole = identity_of(path) in self.found
        message = f"{names}: parts of a save of {prefix} that never finished; " + (
            "the whole checkpoint of that name is not touched by them" if whole else f"there is no {prefix}.index"
        )
        damage = Damage("unfinished-save", where, message)
        if whole:
            self.damages.setdefault(self.found[identity_of(path)], []).append(damage)
        else:
            self.unopened.append(UnreadableCheckpoint(path, BUNDLE, (damage,)))


def _listed_by(state: State) -> tuple[str, ...]:
    """Return the prefixes of the checkpoints that a state file lists and that are there."""
    return (*state.older, *([state.latest] if state.latest else []))


def _is_claimed(path: str) -> bool:
    """Return whether the name of a file is one that checkpoints have."""
    return by_name(path) is not None or sharded_name(path) is not None


def _is_within(path: str, root: str) -> bool:
    """Return whether a local path, after symbolic links, is in the folder `root`."""
    real = os.path.realpath(path)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)
