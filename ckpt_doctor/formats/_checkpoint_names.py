"""The names of a checkpoint: the one by which it is opened, and what is the same for all of them."""

# Paths are strings, as in `_storage`.
# ruff: noqa: PTH114, PTH118
from __future__ import annotations

import os

from ckpt_doctor.formats._bundle_index import prefix_of
from ckpt_doctor.formats._keras_shards import SHARD as KERAS_SHARD
from ckpt_doctor.formats._others import is_plain
from ckpt_doctor.formats._storage import is_file, is_remote, join, names_in, read_head, split
from ckpt_doctor.formats.saved_model import MODEL_FILES
from ckpt_doctor.formats.tensor_slices_v1 import SHARD as V1_SHARD
from ckpt_doctor.formats.tensor_slices_v1 import TensorSlicesV1, base_of, sharded_name


def files_by_checkpoint(folder: str) -> dict[str, list[str]]:
    """Return the files of a folder by the checkpoint that their names make them part of, each as it is named by a user.

    Raises:
        BadRequest: The folder cannot be read.
    """
    groups: dict[str, list[str]] = {}
    names = dict.fromkeys(name for name, is_directory in names_in(folder) if not is_directory)
    for name in names:
        prefix, keras, shard = prefix_of(name), KERAS_SHARD.fullmatch(name), V1_SHARD.fullmatch(name)
        if prefix is not None:
            groups.setdefault(prefix, []).append(name)
        elif keras:
            groups.setdefault(f"{keras['base']}.weights.json", []).append(name)
        elif shard:
            pattern = f"{shard['base']}-?????-of-{shard['count']}"
            if pattern not in groups and f"{shard['base']}.meta" in names:
                groups[pattern] = [f"{shard['base']}.meta"]
            groups.setdefault(pattern, []).append(name)
    return groups


def name_of(path: str) -> str:
    """Return the one name under which a checkpoint is opened, from any of its files."""
    prefix = prefix_of(path)
    if prefix is not None and is_file(f"{prefix}.index"):
        return prefix if split(prefix)[1] else f"{prefix}.index"
    folder, name = split(path)
    if name in MODEL_FILES:
        return folder or os.curdir
    if is_file(path) and V1_SHARD.fullmatch(path):
        return sharded_name(path) or path
    return path


def identity_of(path: str) -> str:
    """Return what is the same for two names of one checkpoint.

    Two snapshots in the cache of the Hugging Face hub link to one file: what counts is where the links lead.
    """
    if is_remote(path):
        return path
    if is_file(path):
        return os.path.realpath(path)
    folder, name = split(path)
    if os.path.islink(f"{path}.index"):
        parts = [join(folder, other) for other, _ in names_in(folder) if prefix_of(other) == name]
    elif any(os.path.islink(join(path, model)) for model in MODEL_FILES):
        inside = join(path, "variables")
        parts = [join(path, model) for model in MODEL_FILES if is_file(join(path, model))]
        parts += [join(inside, other) for other, _ in names_in(inside)]
    else:
        return os.path.join(os.path.realpath(folder or os.curdir), name)
    return "\0".join(sorted(map(os.path.realpath, parts)))


def is_part_of(folder: str, other: str, name: str) -> bool:
    """Return whether a file of a folder is the file `name`, or one of the same checkpoint.

    Args:
        folder: The folder of both.
        other: A name in it.
        name: A name in it.
    """
    prefix = prefix_of(name)
    if other == name:
        return True
    if prefix is None:
        shard = KERAS_SHARD.fullmatch(name)
        return shard is not None and other == f"{shard['base']}.weights.json"
    if prefix_of(other) == prefix:
        return True
    if prefix not in (other, base_of(other)) or is_plain(other):
        return False
    # The V1 checkpoint of a `.meta`.
    path = join(folder, other)
    return TensorSlicesV1().recognises(path, read_head(path))
