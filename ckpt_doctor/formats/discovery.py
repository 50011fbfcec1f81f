"""From the PATH arguments of a user to checkpoints, each once, in a steady order.

Folders are walked. What a `checkpoint` state file lists is taken as versions of one model, of which the latest counts.
What is left of saves that never finished is reported, not opened.

Source of the state file and of temporary names: tensorflow/python/checkpoint/checkpoint_management.py
(get_checkpoint_state), tensor_bundle.cc (`.tempstate…`), tensorflow/python/training/saver.py (`_temp_…/part-…`).
"""

# Paths are strings, as in `_storage`.
# ruff: noqa: PTH118, PTH207
from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckpt_doctor.checkpoint import Damage, FormatName
from ckpt_doctor.errors import CkptDoctorError, UnreadableCheckpoint
from ckpt_doctor.formats import absent, by_name, recognise, tidy
from ckpt_doctor.formats._bundle_index import FORMAT as BUNDLE
from ckpt_doctor.formats._bundle_index import prefix_of
from ckpt_doctor.formats._file_steps import own_kind
from ckpt_doctor.formats._hdf5_open import is_sound, layout_at
from ckpt_doctor.formats._kept import Keeper, keeping
from ckpt_doctor.formats._state_file import State, read_state
from ckpt_doctor.formats._storage import expand, is_file, is_folder, is_remote, join, names_in, read_head, split
from ckpt_doctor.formats.interface import Format
from ckpt_doctor.formats.saved_model import MODEL_FILES, PARTS_OF_A_MODEL
from ckpt_doctor.formats.tensor_slices_v1 import sharded_name

if TYPE_CHECKING:
    from ckpt_doctor.formats.recovery import Settled

_log = logging.getLogger(__name__)

STATE_FILE = "checkpoint"
_TEMPORARY = re.compile(r"(?P<prefix>.+?)(\.(index|data-\d{5}-of-\d{5}))?\.tempstate\d+|(?P<temp>.+)_temp(_[0-9a-f]+)?")
# The shards of `NAME.weights.json` (Keras 3).
_KERAS_SHARD = re.compile(r"(?P<base>.+)_\d{5}\.weights\.h5")
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
        keeper: Holds what was opened to recognise them, for whoever reads them while this is kept.
    """

    checkpoints: tuple[str, ...]
    damages: dict[str, tuple[Damage, ...]] = field(default_factory=dict)
    unopened: tuple[UnreadableCheckpoint, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    passed_over: int = 0
    keeper: Keeper | None = field(default=None, repr=False, compare=False)


def discover(paths: Iterable[str | os.PathLike[str]], all_listed: bool = False) -> Discovery:
    """Return every checkpoint under `paths`, each once.

    Args:
        paths: Prefixes or any of their files, SavedModel folders, files, other folders (walked), globs, URLs.
        all_listed: Take every checkpoint that a state file lists, not only the latest.
    """
    search = _Search(all_listed)
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
        keeper,
    )


class _Search:
    def __init__(self, all_listed: bool) -> None:
        self._all_listed = all_listed
        self._visited: set[str] = set()
        self._settled: set[str] = set()
        self.found: dict[str, str] = {}  # Identity → path as given.
        self.damages: dict[str, list[Damage]] = {}
        self.unopened: list[UnreadableCheckpoint] = []
        self.errors: list[tuple[str, str]] = []
        self.passed_over = 0

    def settle_around(self, path: str) -> None:
        """Finish or take back what runs that were cut off have left where a path leads."""
        for folder in (split(path)[0] or ".", path, join(path, "variables")):
            self.settle(folder)

    def settle(self, folder: str) -> None:
        """Do so in one folder, once; what cannot be settled cannot be judged."""
        if folder not in self._settled and not is_remote(folder):
            self._settled.add(folder)
            self.errors += [(one.name, one.message) for one in _settled(folder) if one.how == "stuck"]

    def argument(self, path: str) -> None:
        """Take one argument; every path that is named is a checkpoint or an error."""
        if split(path)[1] == STATE_FILE and is_file(path):
            self._state_only(path)
        elif recognise(path) is not None:
            self._recognised(path)
        elif is_folder(path):
            before = len(self.found) + len(self.unopened)
            self._walk(path)
            if len(self.found) + len(self.unopened) == before and not any(
                known.startswith(path) for known in self.found.values()
            ):
                self.errors.append((path, f"{path}: there is no checkpoint in this folder"))
        elif any(sign in path for sign in "*?[") and not is_file(path):
            self._glob(path)
        elif is_file(path) and prefix_of(path) is None:
            self._add(path)  # Opening it says what it is.
        else:
            self.errors.append((path, str(absent(path))))

    def _glob(self, pattern: str) -> None:
        matches = expand(pattern) if is_remote(pattern) else sorted(glob.glob(pattern, recursive=True))
        taken = 0
        for match in matches:
            before = len(self.found)
            if is_folder(match) and recognise(match) is None:
                self._walk(match)
            elif recognise(match) is not None:
                self._recognised(match)
            # What an earlier argument took is no reason to complain.
            names = (_name_of(match), f"{match.rstrip('/')}/")
            taken += len(self.found) - before or any(
                known == names[0] or known.startswith(names[1]) for known in self.found.values()
            )
        if not taken:
            what = f"the {len(matches)} paths that match are no checkpoints" if matches else "nothing matches"
            self.errors.append((pattern, f"{pattern}: {what}"))

    def _add(self, path: str) -> None:
        self.found.setdefault(_identity(path), path)

    def _recognised(self, path: str) -> None:
        """Take a checkpoint, and walk a folder that is one or has its name."""
        self._add(_name_of(path))
        if not is_remote(path) and is_folder(path):
            self._walk(path)

    def _walk(self, folder: str) -> None:
        """Take every checkpoint in a folder and below; a folder that cannot be read is an error and stops no other."""
        identity = os.path.realpath(folder) if not is_remote(folder) else folder
        if identity in self._visited:
            return
        self._visited.add(identity)
        self.settle(folder)
        self.settle(join(folder, "variables"))
        try:
            entries = names_in(folder)
        except CkptDoctorError as error:
            self.errors.append((folder, str(error)))
            return
        files = [name for name, is_directory in entries if not is_directory]
        is_model = not MODEL_FILES.isdisjoint(files)
        self._files(folder, files)
        for name, is_directory in entries:
            if not is_directory:
                continue
            inner = join(folder, name)
            if name.startswith(".") or name in ("__pycache__", "node_modules"):
                _log.debug("%s: passed over: a folder of this name holds no models", inner)
                continue
            remains = _TEMPORARY.fullmatch(name)
            if remains and remains["temp"]:
                self._remains(folder, remains["temp"], f"{name}/", inner)
            elif name == "blobs" and ("snapshots", True) in entries:
                # The cache of the Hugging Face hub.
                _log.debug("%s: passed over: snapshots/ holds the same files by their names", inner)
            elif is_model and name in PARTS_OF_A_MODEL:
                _log.debug("%s: passed over: a part of the SavedModel", inner)
            elif recognise(inner) is not None:
                self._recognised(inner)
            else:
                self._walk(inner)

    def _files(self, folder: str, names: list[str]) -> None:
        # Reading a pipe would wait for ever.
        state = read_state(folder, names) if STATE_FILE in names and is_file(join(folder, STATE_FILE)) else None
        skipped = set() if state is None or self._all_listed else set(state.older)
        present = set(names)
        latest: str | None = None
        remains: dict[str, list[str]] = {}
        for name in names:
            path = join(folder, name)
            prefix = prefix_of(name)
            temporary = _TEMPORARY.fullmatch(name)
            if temporary:
                remains.setdefault(temporary["prefix"] or temporary["temp"], []).append(name)
            elif prefix is not None and f"{prefix}.index" in present:
                if not name.endswith(".index"):
                    continue
                if prefix in skipped:
                    self.passed_over += 1
                    _log.debug("%s: passed over: %s lists a later one", path, STATE_FILE)
                    continue
                path = join(folder, prefix) if prefix else path
                self._add(path)
                if state is not None and prefix == state.latest:
                    latest = path
            elif prefix is not None and not name.endswith(".meta"):
                remains.setdefault(prefix, []).append(name)
            elif name != STATE_FILE and not name.startswith(".") and self._is_checkpoint(path, name, present):
                self._add(_name_of(path))
        if state is not None and state.problem is not None:
            self._stale(folder, state, latest)
        for prefix, beside in remains.items():
            self._remains(folder, prefix, ", ".join(beside[:3]), join(folder, beside[0]))

    def _is_checkpoint(self, path: str, name: str, present: set[str]) -> bool:
        shard = _KERAS_SHARD.fullmatch(name)
        if shard and f"{shard['base']}.weights.json" in present:
            _log.debug("%s: passed over: a shard of %s.weights.json", path, shard["base"])
            return False
        named = by_name(path)
        if is_remote(path) and named is None and sharded_name(path) is None:
            return False  # Every look at a remote file costs a round trip.
        form = recognise(path)
        if form is None:
            return False
        if form.name == "keras-hdf5" and layout_at(path) is None and is_sound(path):
            # It holds data, and is no damaged checkpoint.
            _log.debug("%s: passed over: a sound HDF5 file that Keras did not write", path)
            return False
        # By its bytes, or by a name that nothing else has.
        if form is not named or form.name in _CLEAR_NAMES or _bytes_say(form, path):
            return True
        _log.debug("%s: passed over: the name alone claims %s, and the bytes do not", path, form.name)
        return False

    def _state_only(self, path: str) -> None:
        """Take what a state file that was named itself lists."""
        folder, _ = split(path)
        names = [name for name, is_directory in names_in(folder) if not is_directory]
        state = read_state(folder, names)
        taken = [*([state.latest] if state.latest else []), *(state.older if self._all_listed else ())]
        for prefix in taken:
            self._add(join(folder, prefix))
        self.passed_over += 0 if self._all_listed else len(state.older)
        if state.problem is not None:
            self._stale(folder, state, join(folder, state.latest) if state.latest else None)
        elif not taken:
            self.errors.append((path, f"{path}: lists no checkpoint that is there"))

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
        whole = _identity(path) in self.found
        message = f"{names}: parts of a save of {prefix} that never finished; " + (
            "the whole checkpoint of that name is not touched by them" if whole else f"there is no {prefix}.index"
        )
        damage = Damage("unfinished-save", where, message)
        if whole:
            self.damages.setdefault(self.found[_identity(path)], []).append(damage)
        else:
            self.unopened.append(UnreadableCheckpoint(path, BUNDLE, (damage,)))


def _settled(folder: str) -> tuple[Settled, ...]:
    """Settle a folder; see `recovery.settle`, which loads all that writes and is needed where a name says so."""
    try:
        with os.scandir(folder) as entries:
            hidden = [entry.name for entry in entries if entry.name.startswith(".")]
    except OSError as error:
        _log.debug("%s: %s", folder, error)
        return ()
    if not any(own_kind(name) in ("journal", "lock") for name in hidden):
        return ()
    from ckpt_doctor.formats.recovery import settle

    return settle(folder)


def _name_of(path: str) -> str:
    """Return the one name under which a checkpoint is opened, from any of its files."""
    prefix = prefix_of(path)
    if prefix is not None and is_file(f"{prefix}.index"):
        return prefix if split(prefix)[1] else f"{prefix}.index"
    folder, name = split(path)
    if name in ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb"):
        return folder or os.curdir
    if is_file(path) and re.fullmatch(r".*-\d{5}-of-\d{5}", path):
        return sharded_name(path) or path
    return path


def _bytes_say(form: Format, path: str) -> bool:
    return form.recognises(path, read_head(path))


def _identity(path: str) -> str:
    """Return what is the same for two names of one checkpoint."""
    if is_remote(path):
        return path
    if is_file(path):
        return os.path.realpath(path)
    folder, name = split(path)
    return os.path.join(os.path.realpath(folder or os.curdir), name)
