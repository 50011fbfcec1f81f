"""SavedModels: folders that hold a model and its variables.

::

    saved_model.pb                 a `SavedModel`: graphs, signatures, the object graph
    fingerprint.pb                 hashes of the above, since TensorFlow 2.12 (see `_fingerprint`)
    variables/variables.index …    a tensor bundle; absent where there are no variables
    assets/, assets.extra/, …      whatever the model needs

A rewrite copies the folder and changes the bundle in the copy; the model itself stays as it is, unless its restore op
has to load variables that are added.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpt_doctor.checkpoint import Checkpoint, Damage, FormatName, ModelDescriptions
from ckpt_doctor.errors import RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._file_steps import own_kind
from ckpt_doctor.formats._fingerprint import with_checkpoint_hash
from ckpt_doctor.formats._meta_graph import is_saved_model, is_whole, producer_of_saved_model
from ckpt_doctor.formats._storage import is_file, join, names_in, read_all, size_of, split
from ckpt_doctor.formats.interface import Changes, Format
from ckpt_doctor.formats.tensor_bundle import TensorBundle, bundle_of

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats._atomic import Outputs
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged

_log = logging.getLogger(__name__)

FORMAT: Final = "saved-model"
# The text form; and the form in chunks for models above 2 GB, of which the variables are read and the graph is not.
_BINARY = "saved_model.pb"
MODEL_FILES = frozenset({_BINARY, "saved_model.pbtxt", "saved_model.cpb"})
_FINGERPRINT = "fingerprint.pb"
# What a SavedModel consists of, besides its variables: tensorflow/python/saved_model/constants.py, keras_metadata.pb of
# tf_keras/src/saving/legacy/saved_model/constants.py, tfhub_module.pb of TensorFlow Hub's TF1 format. A folder that a
# Saver wrote the variables into has a `checkpoint` file there (tf.contrib.saved_model).
OWN_FILES = (_BINARY, "saved_model.pbtxt", _FINGERPRINT, "keras_metadata.pb", "tfhub_module.pb")
_OWN_FOLDERS = ("assets", "assets.extra", "debug")
PARTS_OF_A_MODEL = (*_OWN_FOLDERS, "variables")
_VARIABLES = "variables"
_STATE_FILE = "checkpoint"


class SavedModel(Format):
    """See the module."""

    name: FormatName = FORMAT

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is a SavedModel's folder or model file."""
        if head:
            return split(path)[1] in MODEL_FILES
        return any(is_file(join(path, name)) for name in MODEL_FILES)

    def read(self, path: str) -> Checkpoint:
        """See `Format.read`.

        Raises:
            UnreadableCheckpoint: The index of its variables is damaged.
        """
        folder = path
        if split(path)[1] in MODEL_FILES and is_file(path):
            folder = split(path)[0] or os.curdir
        model_path = next(full for name in MODEL_FILES if is_file(full := join(folder, name)))
        serialised, unread, damages = _read_model(model_path)
        prefix = join(join(folder, "variables"), "variables")
        _log.debug("%s: model in %s%s", folder, model_path, "" if serialised is not None else ", not read")
        files = [model_path]
        bundle = None
        if is_file(f"{prefix}.index"):
            try:
                bundle = TensorBundle().read(prefix)
            except UnreadableCheckpoint as error:
                raise UnreadableCheckpoint(folder, FORMAT, (*damages, *error.damages)) from error
            damages += bundle.damages
            files += bundle.files
        elif beside := [name for name, _ in names_in(join(folder, "variables")) if name.startswith("variables.")]:
            message = f"is not there, and {', '.join(beside[:3])} cannot be read without it"
            damages.append(Damage("unfinished-save", f"{prefix}.index", message))
        if is_file(join(folder, _FINGERPRINT)):
            files.insert(0, join(folder, _FINGERPRINT))
        return Checkpoint(
            path=folder,
            format=FORMAT,
            variables=bundle.variables if bundle else (),
            bookkeeping=bundle.bookkeeping if bundle else (),
            files=tuple(files),
            bytes=sum(size_of(file) for file in files),
            producer=None if serialised is None else producer_of_saved_model(serialised),
            descriptions=ModelDescriptions(
                saved_model=serialised,
                object_graph=bundle.descriptions.object_graph if bundle else None,
                unread=unread,
            ),
            damages=tuple(damages),
            attributes=dict(bundle.attributes) if bundle else {},
        )

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """See `Format.verify`; yields what is not among the checkpoint's `damages` already."""
        if "bundle" in checkpoint.attributes:
            yield from TensorBundle().verify(checkpoint)

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """See `Format.footprint`."""
        from ckpt_doctor.formats.replacing import Footprint, refused

        if target.name in MODEL_FILES:
            raise refused(target, f"is the name of a file of a SavedModel; give its folder, {target.parent}")
        return Footprint(str(target), (target,))

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """See `Format.parts`: the folder and the files in it, if nothing else is in there."""
        from ckpt_doctor.formats.replacing import foreign, refused

        folder = Path(checkpoint.path)
        model = next(folder / name for name in MODEL_FILES if (folder / name).is_file())
        if not is_saved_model(model.read_bytes()):
            raise refused(folder, f"{model} is not a SavedModel that can be recognised; pass another name")
        own = set(map(Path, checkpoint.files))
        for entry in sorted(folder.iterdir()):
            if entry.name in OWN_FILES and entry.is_file():
                continue
            if entry.name in _OWN_FOLDERS and entry.is_dir():
                _refuse_checkpoints_in(entry, checkpoint)
                continue
            inside = sorted(entry.iterdir()) if entry.name == _VARIABLES and entry.is_dir() else [entry]
            for path in inside:
                if path not in own and not _goes_along(path, folder):
                    raise foreign(path, checkpoint, folder)
        return folder, *sorted(own)

    def stage(
        self,
        checkpoint: Checkpoint,
        target: Path | None,
        changes: Changes,
        *,
        overwrite: bool = False,
        backup: bool = True,
    ) -> Staged:
        """See `Format.stage`; `target` is a new folder, and everything is copied into it.

        In place only the bundle and the fingerprint change, and the model where variables are added; the backup is the
        old index (and the old model).
        """
        from ckpt_doctor.formats.staging import stage_copy, stage_in_place

        _check(checkpoint, changes)
        if target is not None:
            return stage_copy(
                self,
                checkpoint,
                target,
                lambda outputs: _stage_folder(checkpoint, target, changes, outputs),
                overwrite=overwrite,
                whole_folder=True,
                also_locked=_written_under(target) if target.is_dir() else (),
            )
        if "bundle" not in checkpoint.attributes:
            raise RepairRefused(f"{checkpoint.path}: has no variables to change")
        variables = Path(checkpoint.path, _VARIABLES)
        if variables.is_symlink():
            raise RepairRefused(
                f"{variables}: is a symbolic link: others may share its target, and an interrupted repair in place "
                "could not be completed through it; pass --output NEW"
            )
        from ckpt_doctor.formats import _bundle_writer

        folder = Path(checkpoint.path)
        bundle = bundle_of(checkpoint)

        def fill(outputs: Outputs) -> None:
            index = _bundle_writer.stage_changes(bundle, changes, outputs)
            fingerprint = None if index is None else _new_fingerprint(folder, index)
            if fingerprint is not None:
                outputs.stage(folder / _FINGERPRINT).write_bytes(fingerprint)
            if changes.saved_model is not None:
                outputs.stage(folder / _BINARY).write_bytes(changes.saved_model)

        others = [entry for entry in folder.iterdir() if entry.name != _VARIABLES]
        kept = [Path(bundle.index_path), *([folder / _BINARY] if changes.saved_model is not None else [])]
        return stage_in_place(
            self,
            checkpoint,
            fill,
            owner=_written_under(folder)[0],
            also_locked=_written_under(folder)[1:],
            backups=kept if backup else (),
            unchanged=[*others, *(folder / _VARIABLES).iterdir()],
        )

    def entries(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """See `Format.entries`."""
        return TensorBundle().entries(checkpoint)


def _goes_along(path: Path, folder: Path) -> bool:
    """Return whether a file below a SavedModel's folder that is not of the model is lost with nobody's regret."""
    if own_kind(path.name) == "lock":
        return True
    return path.name == _STATE_FILE and path.parent != folder and path.is_file()


def _written_under(folder: Path) -> tuple[Path, Path]:
    """Return the names under which what is in a SavedModel's folder is changed: the model's own, and its bundle's."""
    return folder / Path(_BINARY).stem, folder / _VARIABLES / _VARIABLES


def _stage_folder(checkpoint: Checkpoint, target: Path, changes: Changes, outputs: Outputs) -> None:
    """Stage a copy of the whole folder with a changed bundle in it."""
    source = Path(checkpoint.place)
    folder = outputs.stage_folder(target, like=source)
    own = {Path(checkpoint.place_of(path)) for path in checkpoint.files if Path(path).parent.name == _VARIABLES}
    _copy_tree(source, folder, {path.resolve() for path in own})
    if "bundle" not in checkpoint.attributes:
        return
    if changes.saved_model is not None:
        _replace(folder / _BINARY, changes.saved_model, like=source / _BINARY)
    prefix = folder / _VARIABLES / _VARIABLES
    prefix.parent.mkdir(exist_ok=True)
    from ckpt_doctor.formats import _bundle_writer
    from ckpt_doctor.formats._atomic import Outputs

    inner = Outputs()
    with inner.all_or_nothing():
        _bundle_writer.stage_copy(bundle_of(checkpoint), str(prefix), changes, inner)
        inner.commit()
    fingerprint = _new_fingerprint(source, prefix.with_suffix(".index").read_bytes())
    if fingerprint is not None:
        _replace(folder / _FINGERPRINT, fingerprint, like=source / _FINGERPRINT)


def _replace(path: Path, data: bytes, *, like: Path) -> None:
    """Write a file of the copy again, which may be read-only, as the original is."""
    path.unlink()
    path.write_bytes(data)
    shutil.copymode(like, path)


def _new_fingerprint(folder: Path, index: bytes) -> bytes | None:
    """Return the fingerprint for a new index; None where there is none, or it is damaged: it is only a label."""
    path = folder / _FINGERPRINT
    if not path.is_file():
        return None
    try:
        return with_checkpoint_hash(path.read_bytes(), index)
    except Damaged:
        return None


def _refuse_checkpoints_in(folder: Path, older: Checkpoint) -> None:
    """Refuse to replace a SavedModel whose assets are checkpoints themselves."""
    from ckpt_doctor.formats.discovery import discover
    from ckpt_doctor.formats.replacing import foreign

    found = discover([folder])
    for path in (*found.checkpoints, *(error.path for error in found.unopened)):
        raise foreign(Path(path), older, older.path)


def _copy_tree(source: Path, target: Path, skip: set[Path]) -> None:
    """Copy everything below a folder but the files in `skip`; symbolic links become what they point to.

    Files keep their modes; folders stay writable for their owner, without which nothing could be put into them.
    """
    for entry in sorted(source.iterdir()):
        if own_kind(entry.name) is not None:  # Of a run that changes the source.
            continue
        if entry.is_dir():
            folder = target / entry.name
            folder.mkdir()
            _copy_tree(entry, folder, skip)
            folder.chmod(stat.S_IMODE(entry.stat().st_mode) | stat.S_IRWXU)
        elif entry.resolve() not in skip:
            shutil.copyfile(entry, target / entry.name)
            shutil.copymode(entry, target / entry.name)


def _check(checkpoint: Checkpoint, changes: Changes) -> None:
    if changes.meta_graph is not None:
        raise RepairRefused(f"{checkpoint.path}: a SavedModel has no .meta")
    if changes.saved_model is not None:
        _check_model(checkpoint, changes.saved_model)
    if changes.values and "bundle" not in checkpoint.attributes:
        raise RepairRefused(f"{checkpoint.path}: has no variables, and none can be added")
    added = next((name for name in changes.values if checkpoint.variable(name) is None), None)
    if added is not None and changes.saved_model is None and checkpoint.descriptions.object_graph is None:
        raise RepairRefused(
            f"{checkpoint.path}: {added} would be added, and the graph would not load it: only the restore op of a "
            f"{_BINARY} with a saver is extended; save the model again with all of its variables, or bring a model in "
            f"text form into {_BINARY} by google.protobuf.text_format first"
        )


def _check_model(checkpoint: Checkpoint, saved_model: bytes) -> None:
    """Refuse a new model that cannot take the place of the old one."""
    fingerprint = next((file for file in checkpoint.files if Path(file).name == _FINGERPRINT), None)
    if fingerprint is not None:
        raise RepairRefused(
            f"{fingerprint}: names the graph by hashes that only TensorFlow can compute, but the graph must change to "
            "load the added variables; remove the file (TensorFlow does not need it) and start again"
        )
    if not any(Path(file).name == _BINARY for file in checkpoint.files) or not is_saved_model(saved_model):
        raise RepairRefused(f"{checkpoint.path}: its model is not a {_BINARY}, and only that form is rewritten")


def _read_model(path: str) -> tuple[bytes | None, str | None, list[Damage]]:
    """Return the serialised model, or why it is not read; and what is damaged of it."""
    if path.endswith(".cpb"):
        return None, "it is in chunks, as models above 2 GB are", []
    data = read_all(path)
    if path.endswith(".pbtxt"):
        from ckpt_doctor.formats._saved_model_text import NotRead, saved_model_of

        try:
            return saved_model_of(data), None, []
        except NotRead as error:
            return None, str(error), []
    foreign = _foreign.describe(data[:4096])
    if foreign is not None:
        return None, None, [Damage("not-a-checkpoint", path, f"is {foreign}")]
    if not is_whole(data):
        return None, None, [Damage("truncated", path, f"{len(data)} bytes are not a complete SavedModel message")]
    return data, None, []


def model_of_a_part(path: Path) -> Path | None:
    """Return the folder of the SavedModel that a file belongs to; None for other files and if no such file:."""
    if not path.is_file():
        return None
    for folder in path.absolute().parents:
        if any((folder / name).is_file() for name in MODEL_FILES):
            first = path.absolute().relative_to(folder).parts[0]
            return folder if first in (*OWN_FILES, *MODEL_FILES, *PARTS_OF_A_MODEL) else None
    return None
