"""Keras' legacy HDF5 files: whole models (`keras-hdf5`) and weights only (`keras-weights-hdf5`), Keras 0.3 to 3.

Layout, from Keras 1 on (keras/src/legacy/saving/legacy_h5_format.py)::

    /                          whole model: attributes model_config, training_config (JSON), keras_version, backend
      model_weights/           in a weights file this is the root itself
                               attributes layer_names, backend, keras_version
        <layer>/               attribute weight_names: the paths of its weights below this group
          <layer>/gamma:0      Keras 3: <model>/<layer>/gamma, without ":0"
        top_level_model_weights/
      optimizer_weights/       attribute weight_names

A nested model or a wrapper lies under the one layer group of its outermost name. Keras loads by the order of
`weight_names`, whatever the names are, so a rewrite keeps that order. Before: Keras 0.3 numbers everything,
`layer_3/param_2` with attributes `nb_layers` and `nb_params`, and a `Graph` model is one group `graph` of `param_k`.
Keras 1 has layer and weight names and no version.

Files of 0.3 and 1.x are read and never rewritten: what a name means there depends on a version that the file does not
say.

HDF5 has no checksum here: a lost tail is always noticed, a broken structure where it breaks, a flipped bit in a value
never.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_doctor.checkpoint import Checkpoint, Damage, FormatName, ModelDescriptions
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5 import (
    Tree,
    walk,
)
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_objects import (
    OpenFile,
    Refused,
    find,
    has_attribute,
    names_attribute,
    text_attribute,
)
from ckpt_doctor.formats._hdf5_open import (
    is_numbered_graph,
    is_sound,
    layout_at,
    layout_of,
    read_all,
    unreadable,
    variable,
)
from ckpt_doctor.formats._hdf5_superblock import has_signature
from ckpt_doctor.formats._kept import claimed
from ckpt_doctor.formats._keras_shards import refuse_shard
from ckpt_doctor.formats._storage import size_of
from ckpt_doctor.formats.interface import Changes, Format

# What writes is imported where it writes: a scan needs none of it.
if TYPE_CHECKING:
    from ckpt_doctor.formats._atomic import Outputs
    from ckpt_doctor.formats.replacing import Footprint
    from ckpt_doctor.formats.staging import Staged

_TOP_LEVEL = "top_level_model_weights"
_OPTIMIZER = "optimizer_weights"
_READ_ONLY = {
    "0.3": "a Keras 0.3 file holds numbered parameters without names, and its fourth is a standard deviation",
    "1.x": "in a Keras 1 file running_std is a variance or a standard deviation, by a version that few files state",
}


class KerasHdf5(Format):
    """Legacy Keras HDF5, both layouts."""

    name: FormatName = "keras-hdf5"

    def recognises(self, path: str, head: bytes) -> bool:
        """Return whether `path` is an HDF5 file in Keras' legacy layout, or one too damaged to say."""
        if not has_signature(head):
            return False
        layout = layout_at(path)
        if layout is None:
            return not path.lower().endswith(".weights.h5") and not is_sound(path)
        return layout in ("keras-hdf5", "keras-weights-hdf5")

    def read(self, path: str) -> Checkpoint:
        """Read names, shapes, order, and the model's config. See `Format.read`."""
        source = claimed(Hdf5File.at, path)
        try:
            with source.reading() as file:
                tree = walk(file, path)
                return _checkpoint(path, source, file, tree)
        except Damaged as error:
            raise unreadable(path, self.name, error) from error

    def verify(self, checkpoint: Checkpoint) -> Iterator[Damage]:
        """Read every value; HDF5 has no checksum, so this finds what is unreadable, not what is wrong."""
        yield from checkpoint.damages
        yield from read_all(checkpoint.attributes["file"], checkpoint.attributes["datasets"])

    def footprint(self, checkpoint: Checkpoint, target: Path) -> Footprint:
        """See `Format.footprint`."""
        from ckpt_doctor.formats.replacing import Footprint

        refuse_shard(target)
        return Footprint(str(target), (target,))

    def parts(self, checkpoint: Checkpoint) -> tuple[Path, ...]:
        """See `Format.parts`."""
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
        """See `Format.stage`; the bytes of everything that does not change stay where they are in the file.

        Raises:
            RepairRefused: The file is of Keras 0.3 or 1.x; or a new weight has no place in `weight_names`.
        """
        from ckpt_doctor.formats._hdf5_edit import apply
        from ckpt_doctor.formats.staging import stage_copy, stage_in_place

        plan = _plan(checkpoint, changes)
        path = Path(checkpoint.path) if target is None else target

        def fill(outputs: Outputs) -> None:
            temporary = outputs.stage(path, like=Path(checkpoint.place), copy=True)
            apply(temporary, checkpoint.path, checkpoint.attributes["datasets"], changes.values, plan)

        if target is None:
            return stage_in_place(self, checkpoint, fill, owner=path, backups=None if backup else ())
        return stage_copy(self, checkpoint, target, fill, overwrite=overwrite)


def _checkpoint(path: str, source: Hdf5File, file: OpenFile, tree: Tree) -> Checkpoint:
    """Put together what an open file says."""
    format = source.fact(layout_of)  # noqa: A001 - the field's name
    if format is None:
        raise Refused("a sound HDF5 file that Keras did not write: no layer_names, model_config or `vars` group")
    root = "model_weights" if format == "keras-hdf5" else ""
    weights = find(file.h5, root) if root in tree.groups else file.h5
    damages = list(tree.damages)
    attributes: dict[str, Any] = {"file": source, "root": root, "datasets": tree.datasets}
    attributes["unread"] = dict(tree.others)
    version = text_attribute(file, file.h5, "keras_version") or text_attribute(file, weights, "keras_version")
    backend = text_attribute(file, file.h5, "backend") or text_attribute(file, weights, "backend")
    attributes |= {"keras_version": version, "backend": backend}
    attributes["layer_names"] = names_attribute(file, weights, "layer_names") or ()
    attributes["weight_names"] = _weight_names(file, root, tree, attributes["layer_names"], path, damages)
    attributes["optimizer_weight_names"] = ()
    if _OPTIMIZER in tree.groups:
        attributes["optimizer_weight_names"] = names_attribute(file, find(file.h5, _OPTIMIZER), "weight_names") or ()
    attributes["era"] = _era(version, weights, file.h5)

    order, labels, absent = _order(attributes, root, tree)
    attributes["absent"] = absent
    producer = {"0.3": "Keras 0.3", "1.x": "Keras 1" if attributes["layer_names"] else None}.get(attributes["era"])
    if version is not None:
        producer = f"Keras {version}" + (f" ({backend})" if backend else "")
    return Checkpoint(
        path=path,
        format=format,
        variables=tuple(variable(source, path, format, tree.datasets[name], labels.get(name)) for name in order),
        files=(path,),
        bytes=size_of(path),
        producer=producer,
        descriptions=ModelDescriptions(
            keras_config=text_attribute(file, file.h5, "model_config"),
            keras_training=text_attribute(file, file.h5, "training_config"),
        ),
        damages=tuple(damages),
        attributes=attributes,
    )


def _era(version: str | None, weights: Any, file: Any) -> str:
    """Return `0.3`, `1.x`, `2.x` or `3.x`.

    Keras itself takes a file without `keras_version` for one of Keras 1 (`load_weights_from_hdf5_group`).
    """
    if version is not None:
        major = version.split(".", 1)[0]
        return f"{major}.x" if major.isdigit() else "2.x"
    if has_attribute(weights, "nb_layers") or is_numbered_graph(file):
        return "0.3"
    return "1.x"


def _weight_names(
    file: OpenFile, root: str, tree: Tree, layers: tuple[str, ...], path: str, damages: list[Damage]
) -> dict[str, tuple[str, ...]]:
    """Return the ordered `weight_names` of every layer group; a layer whose group is gone has none."""
    names: dict[str, tuple[str, ...]] = {}
    groups = set(tree.groups)
    for layer in (*layers, _TOP_LEVEL):
        group = f"{root}/{layer}" if root else layer
        if group in groups:
            names[layer] = names_attribute(file, file.take(group), "weight_names") or ()
        elif layer != _TOP_LEVEL:
            message = f"layer_names lists {layer!r}, and there is no such group"
            damages.append(Damage("not-a-checkpoint", f"{path}:{group}", message))
    return names


def _order(attributes: dict[str, Any], root: str, tree: Tree) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """Return the variables in the order of the file's own lists, their names there, and what is listed and absent."""
    order: dict[str, None] = {}
    labels: dict[str, str] = {}
    absent: list[str] = []
    lists = [(f"{root}/{layer}" if root else layer, names) for layer, names in attributes["weight_names"].items()]
    lists.append((_OPTIMIZER, attributes["optimizer_weight_names"]))
    for group, names in lists:
        for name in names:
            full = path_below(group, name)
            if full in tree.datasets:
                order[full] = None
                labels.setdefault(full, name)
            else:
                absent.append(full)
    for name in tree.datasets:
        order.setdefault(name)
    return list(order), labels, tuple(absent)


def path_below(group: str, name: str) -> str:
    """Return the path of a weight; HDF5 takes a name that starts with a slash from the root."""
    parts = name.split("/") if name.startswith("/") else [*group.split("/"), *name.split("/")]
    return "/".join(part for part in parts if part not in ("", "."))


def _plan(checkpoint: Checkpoint, changes: Changes) -> dict[str, tuple[str, ...]]:
    """Return the new `weight_names` of the groups that get new weights: path of the group → names.

    Raises:
        RepairRefused: The file is too old to be rewritten; or the place of a new weight is not known.
    """
    from ckpt_doctor.formats._hdf5_weight_names import plan_weight_names

    era = checkpoint.attributes["era"]
    if era in _READ_ONLY:
        advice = "load it with Keras 2 and save it again"
        raise RepairRefused(f"{checkpoint.path}: not rewritten: {_READ_ONLY[era]}; {advice}")
    return plan_weight_names(checkpoint, changes)
