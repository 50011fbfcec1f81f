"""Keras 3 files: the `.keras` archive (`keras-v3`) and weights alone, `.weights.h5` or sharded (`keras-weights-v3`).

A `.keras` file is a zip archive (keras/src/saving/saving_lib.py)::

    metadata.json         keras_version, date_saved
    config.json           the model: {"class_name": …, "config": …, "compile_config": …}
    model.weights.h5      the weights, in HDF5
    assets/…              vocabularies and the like

The HDF5 file follows the tree of Python objects, by attribute and by class, not by layer name::

    layers/batch_normalization_1/vars/0 …     the layer's weights in order of creation
    bn/vars/0                                 of a subclassed model: the attribute's name
    optimizer/vars/0 …

The group `vars` has an attribute `name`, the user's name of the layer, since Keras 3.5 or so. TensorFlow 2.12 and 2.13
wrote `_layer_checkpoint_dependencies/` for `layers/`. A sharded store is a JSON file that maps `/layers/dense/vars` to
one or more of the HDF5 files `x_00000.weights.h5` … beside it.

Zip keeps a CRC-32 of every member: before the first value is read the weights' one is compared, so a value that comes
out of a `.keras` file is the one that went in. Bare HDF5 has none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from ckpt_doctor.checkpoint import Checkpoint, Damage, FormatName, ModelDescriptions
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.formats import _foreign, _keras_shards
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_open import is_sound, layout_at, read_all
from ckpt_doctor.formats._hdf5_superblock import has_signature
from ckpt_doctor.formats._json import parsed_or_none
from ckpt_doctor.formats._kept import claimed, shared
from ckpt_doctor.formats._keras_store import OLD_LAYERS, Store, read_store
from ckpt_doctor.formats._storage import is_file, join, read_head, size_of, split
from ckpt_doctor.formats._storage import read_all as read_file
from ckpt_doctor.formats._streams import stream
from ckpt_doctor.formats._zip import (
    SIGNATURE,
    Archive,
    Member,
    NoDirectory,
    copy_with,
    first_name,
)
from ckpt_doctor.formats.interface import Changes, Format

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats._atomic import Outputs
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
_METADATA = "metadata.json"
_ARCHIVE: Final = "keras-v3"
_BARE: Final = "keras-weights-v3"
_LONGEST_JSON_BYTES = 1 << 28


class KerasV3(Format):
    """Keras 3's own files, and those of tf_keras from TensorFlow 2.12 on."""

    name: FormatName = _ARCHIVE

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is a Keras archive, an HDF5 file in its layout, or the index of sharded weights."""
        if has_signature(head):
            layout = layout_at(path)
            return layout == _BARE or (layout is None and path.lower().endswith(".weights.h5") and not is_sound(path))
        if head.startswith(SIGNATURE):
            return first_name(head) in (_METADATA, _CONFIG, _WEIGHTS) or _holds_weights(path)
        return path.lower().endswith(".weights.json") and head.lstrip().startswith(b"{")

    def read(self, path: str) -> Checkpoint:
        """Read names, shapes and the model's config. See `Format.read`."""
        if path.lower().endswith(".weights.json"):
            return _keras_shards.read(path)
        head = read_head(path)
        if path.lower().endswith(".keras") or head.startswith(SIGNATURE):
            return _read_archive(path, head)
        return _read_bare(path)

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """Compare the CRC-32 of every member of an archive, then read every value."""
        yield from checkpoint.damages
        attributes = checkpoint.attributes
        if attributes["kind"] == "archive":
            damages = _check_members(attributes["member"], attributes["archive"])
            yield from damages
            if not damages:
                yield from read_all(attributes["file"], attributes["datasets"])
        elif attributes["kind"] == "sharded":
            yield from _keras_shards.verify(checkpoint)
        else:
            yield from read_all(attributes["file"], attributes["datasets"])

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """See `Format.footprint`."""
        from ckpt_doctor.formats.replacing import Footprint

        if checkpoint.attributes["kind"] == "sharded":
            return _keras_shards.footprint(checkpoint, target)
        _keras_shards.refuse_shard(target)
        return Footprint(str(target), (target,))

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """See `Format.parts`; of sharded weights the shards that the index names."""
        if checkpoint.attributes["kind"] == "sharded":
            _keras_shards.refuse_shared(checkpoint)
        return tuple(map(Path, checkpoint.files))

    def stage(
        self,
        checkpoint: Checkpoint,
        target: Path | None,
        changes: Changes,
        *,
        overwrite: bool = False,
        backup: bool = True,
    ) -> Staged:
        """See `Format.stage`.

        In an archive only `model.weights.h5` changes, the other members are copied byte for byte. Shards get names that
        fit the target's; in place, those that do not change stay.
        """
        from ckpt_doctor.formats.staging import stage_copy, stage_in_place

        path = Path(checkpoint.path) if target is None else target
        sharded = checkpoint.attributes["kind"] == "sharded"
        # The reader of bare weights looks at what an unpacked archive has beside them.
        beside = [path.with_name(name) for name in (_CONFIG, _METADATA)] if path.name == _WEIGHTS else []

        def fill(outputs: Outputs) -> None:
            if not sharded:
                _stage(outputs, checkpoint, path, changes)
            elif target is None:
                _keras_shards.stage_changed(outputs, checkpoint, changes)
            else:
                _keras_shards.stage_copy(outputs, checkpoint, target, changes)

        if target is None:
            return stage_in_place(self, checkpoint, fill, owner=path, backups=None if backup else (), unchanged=beside)
        return stage_copy(self, checkpoint, target, fill, overwrite=overwrite, unchanged=beside)


def _read_bare(path: str) -> Checkpoint:
    """Read a `.weights.h5` file, and the config beside it where it is part of an unpacked `.keras` folder."""
    store = read_store(claimed(Hdf5File.at, path), path, _BARE)
    folder, name = split(path)
    config = metadata = None
    if name == _WEIGHTS:
        config, metadata = (_text_beside(join(folder, other)) for other in (_CONFIG, _METADATA))
    return _checkpoint(path, _BARE, {"kind": "bare"}, store, config, metadata, [])


def _text_beside(path: str) -> str | None:
    """Return a small text file, or None where there is none."""
    if not is_file(path) or size_of(path) > _LONGEST_JSON_BYTES:
        return None
    return read_file(path).decode("utf-8", "replace")


def _read_archive(path: str, head: bytes) -> Checkpoint:
    """Read a `.keras` archive."""
    damages: list[Damage] = []
    texts: dict[str, str | None] = {}
    try:
        archive = claimed(Archive, path)
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file") from None
    except Damaged as error:
        raise UnreadableCheckpoint(path, _ARCHIVE, (_archive_damage(path, head, error),)) from error
    for name in (_CONFIG, _METADATA):
        texts[name] = _text_member(archive, name, damages)
    if _WEIGHTS not in archive.members:
        raise _without_weights(path, list(archive.members))
    member = Member(archive, archive.members[_WEIGHTS])

    def check() -> None:
        try:
            member.check()
        except Damaged as error:
            raise UnreadableCheckpoint(path, _ARCHIVE, (error.at(member.where),)) from error

    try:
        store = read_store(Hdf5File(member.where, member.open), path, _ARCHIVE, check)
    except UnreadableCheckpoint:
        check()  # A failed checksum explains whatever HDF5 stumbled over.
        raise
    if store.damages:
        check()
    kept = {"kind": "archive", "archive": archive, "member": member}
    return _checkpoint(path, _ARCHIVE, kept, store, texts[_CONFIG], texts[_METADATA], damages)


def _weights_of(path: str) -> Member:
    """Return the member that holds the weights.

    Raises:
        Damaged: The archive, which was read before, has none any more.
    """
    archive = Archive(path)
    if _WEIGHTS not in archive.members:
        raise Damaged("not-a-checkpoint", f"has no {_WEIGHTS} any more")
    return Member(archive, archive.members[_WEIGHTS])


def _without_weights(path: str, names: list[str]) -> UnreadableCheckpoint:
    """Return the error for an archive without weights."""
    if "model.weights.npz" in names:
        message = "its weights are an .npz of pickled objects, which is not read; save the model with Keras' defaults"
    elif any(name.endswith("data.pkl") for name in names):
        message = f"is a zip archive of PyTorch's; a Keras archive holds {_WEIGHTS}"
    else:
        message = f"a zip archive without {_WEIGHTS}; it holds {', '.join(names[:5]) or 'nothing'}"
    return UnreadableCheckpoint(path, _ARCHIVE, (Damage("not-a-checkpoint", path, message),))


def _text_member(archive: Archive, name: str, damages: list[Damage]) -> str | None:
    """Return a text of the archive; None and a damage where it cannot be read."""
    info = archive.members.get(name)
    if info is None:
        damages.append(Damage("not-a-checkpoint", archive.path, f"the archive has no {name}"))
        return None
    try:
        return archive.text(info)
    except Damaged as error:
        damages.append(error.at(f"{archive.path}!{name}"))
    return None


def _archive_damage(path: str, head: bytes, error: Damaged) -> Damage:
    """Return what is wrong with a file that zipfile does not open."""
    if head.startswith(SIGNATURE):
        if isinstance(error, NoDirectory):
            message = f"{size_of(path)} bytes, but the zip central directory is missing"
            return Damage("truncated", path, message)
        return error.at(path)
    if not head:
        return Damage("not-a-checkpoint", path, "the file is empty; a Keras archive (zip) is expected")
    described = _foreign.describe(head)
    message = f"is {described}" if described else f"starts with {head[:8].hex(' ')}"
    return Damage("not-a-checkpoint", path, f"{message}; a Keras archive (zip) is expected")


def _holds_weights(path: str) -> bool:
    """Return whether the archive at `path` holds the members of a Keras model."""
    try:
        return _WEIGHTS in shared(Archive, path).members
    except Damaged:
        return False


def _check_members(weights: Member, archive: Archive) -> tuple[Damage, ...]:
    """Compare the CRC-32 of every member."""
    damages: list[Damage] = []
    for info in archive.infos:
        try:
            if info is archive.members[_WEIGHTS]:
                weights.check()
            else:
                archive.check(info)
        except Damaged as error:  # noqa: PERF203 - each may fail alone
            damages.append(error.at(f"{archive.path}!{info.filename}"))
    return tuple(damages)


def _checkpoint(
    path: str,
    format: FormatName,  # noqa: A002
    kept: dict[str, Any],
    store: Store,
    config: str | None,
    metadata: str | None,
    damages: list[Damage],
) -> Checkpoint:
    """Put together what an archive or a bare file says."""
    training = None
    if config is not None:
        parsed = _object(config)
        if parsed is None:
            damages.append(Damage("not-a-checkpoint", path, f"{_CONFIG} is not a JSON object"))
            config = None
        elif parsed.get("compile_config") is not None:
            training = json.dumps(parsed["compile_config"])
    about = _object(metadata) or {}
    version = str(about["keras_version"]) if "keras_version" in about else None
    return Checkpoint(
        path=path,
        format=format,
        variables=store.variables,
        files=(path,),
        bytes=size_of(path),
        producer=f"Keras {version}" if version else None,
        descriptions=ModelDescriptions(keras_config=config, keras_training=training),
        damages=(*damages, *store.damages),
        attributes={
            **kept,
            "file": store.file,
            "era": f"{version.split('.', 1)[0]}.x" if version else None,
            "layout": OLD_LAYERS if store.old_layers else "layers",
            "keras_version": version,
            "date_saved": about.get("date_saved"),
            "groups": store.groups,
            "datasets": store.datasets,
            "unread": store.unread,
        },
    )


def _object(text: str | None) -> dict[str, Any] | None:
    """Return a JSON object; None where the text is none."""
    parsed = parsed_or_none(text)
    return parsed if isinstance(parsed, dict) else None


def _stage(outputs: Outputs, checkpoint: Checkpoint, target: Path, changes: Changes) -> None:
    """Stage a changed copy of an archive or a bare file."""
    from ckpt_doctor.formats._hdf5_edit import apply

    path = Path(checkpoint.place)
    datasets = checkpoint.attributes["datasets"]
    if checkpoint.attributes["kind"] == "bare" or not changes.values:
        apply(outputs.stage(target, like=path, copy=True), checkpoint.path, datasets, changes.values, {})
        return
    temporary = outputs.stage(target, like=path)
    try:
        member = _weights_of(checkpoint.path)
        # A wrong byte must not get a right checksum.
        member.check()
        import tempfile  # Loads `random` and more, which no scan needs.

        with tempfile.TemporaryFile(dir=target.parent) as weights:
            with stream(member.open()) as content:
                shutil.copyfileobj(content, weights, 1 << 20)
            apply(cast("BinaryIO", weights), checkpoint.path, datasets, changes.values, {})
            copy_with(checkpoint.place, temporary, _WEIGHTS, cast("BinaryIO", weights))
    except Damaged as error:
        damage = error.at(f"{checkpoint.path}!{_WEIGHTS}")
        raise UnreadableCheckpoint(checkpoint.path, _ARCHIVE, (damage,)) from error
