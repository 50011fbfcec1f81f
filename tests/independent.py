"""Checkpoints read and written by TensorFlow and h5py, for tests that must not trust the code under test."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@dataclass(eq=False)
class Stored:
    """What lies in a file.

    Attributes:
        values: Every stored tensor by name.
        surroundings: Everything else that a reader can see: attributes, members of an archive.
        lists_of_names: Those surroundings that list the variables, and so must grow with them.
    """

    values: dict[str, np.ndarray]
    surroundings: dict[str, Any] = field(default_factory=dict)
    lists_of_names: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Stored)
        same = self.values.keys() == other.values.keys() and self.surroundings == other.surroundings
        return same and all(
            (value.dtype, value.shape, value.tobytes())
            == (other.values[name].dtype, other.values[name].shape, other.values[name].tobytes())
            for name, value in self.values.items()
        )

    __hash__ = None  # type: ignore[assignment]


def read_file(path: Path) -> Stored:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with h5py.File(io.BytesIO(members.pop("model.weights.h5"))) as file:
            stored = _hdf5(file)
        stored.surroundings |= members
        return stored
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            return _hdf5(file)
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path))
    return Stored({name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()})


def _hdf5(file: h5py.File) -> Stored:
    stored = Stored({})

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            stored.values[name] = np.asarray(node[()])
        for key, value in node.attrs.items():
            plain = value.tobytes() if isinstance(value, np.ndarray) and value.dtype != object else str(value)
            stored.surroundings[f"{name}@{key}"] = plain
            if key == "weight_names":
                stored.lists_of_names[f"{name}@{key}"] = plain

    file.visititems(visit)
    visit("/", file)
    return stored


def write_bundle(prefix: Path, values: dict[str, np.ndarray], meta_of: Path | None = None) -> None:
    import tensorflow as tf

    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )
    if meta_of is not None:
        shutil.copy(f"{meta_of}.meta", f"{prefix}.meta")


def write_shadowed_bundle(prefix: Path, layers: int = 2) -> dict[str, np.ndarray]:
    """Write layers `bn0`, `bn1` … whose statistics have the names of their shadows: repaired without data."""
    channels = 12
    random = np.random.default_rng(3)
    values: dict[str, np.ndarray] = {}
    for number in range(layers):
        values[f"bn{number}/gamma"] = random.uniform(0.5, 1.5, channels)
        values[f"bn{number}/beta"] = random.normal(0, 0.3, channels)
        values[f"bn{number}/moving_mean/ExponentialMovingAverage"] = random.normal(0, 1, channels)
        values[f"bn{number}/moving_variance/ExponentialMovingAverage"] = random.uniform(0.2, 3, channels)
        values[f"bn{number}_conv/kernel"] = np.full((3, 3, 4, channels), 0.1)
    values = {name: value.astype(np.float32) for name, value in values.items()}
    write_bundle(prefix, values)
    return values


def saver_names(prefix: Path) -> tuple[set[str], set[str]]:
    """Return the names that the saver in a `.meta` writes, and those that it restores into a variable."""
    import tensorflow as tf

    meta = tf.compat.v1.MetaGraphDef.FromString(Path(f"{prefix}.meta").read_bytes())
    nodes = {node.name: node for node in meta.graph_def.node}

    def plain(tensor: str) -> str:
        return tensor.lstrip("^").partition(":")[0]

    def before(name: str) -> set[str]:
        seen: set[str] = set()
        stack = [name]
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack += [plain(entry) for entry in nodes[name].input]
        return seen

    def text(tensor: str) -> list[str]:
        return [name.decode() for name in tf.make_ndarray(nodes[plain(tensor)].attr["value"].tensor).reshape(-1)]

    written: list[str] = []
    for name in before(plain(meta.saver_def.save_tensor_name)):
        if nodes[name].op == "SaveV2":
            names = text(nodes[name].input[1])
            data = [entry for entry in nodes[name].input if not entry.startswith("^")]
            assert len(data) == 3 + len(names) == 3 + len(nodes[name].attr["dtypes"].list.type)
            assert len(text(nodes[name].input[2])) == len(names)
            written += names
    restored: list[str] = []
    for name in before(meta.saver_def.restore_op_name):
        if nodes[name].op in ("Assign", "AssignVariableOp"):
            source, _, index = nodes[name].input[1].partition(":")
            while nodes[source].op == "Identity":
                source, _, index = nodes[source].input[0].partition(":")
            assert nodes[source].op == "RestoreV2"
            restored.append(text(nodes[source].input[1])[int(index or 0)])
    assert len(written) == len(set(written))
    assert len(restored) == len(set(restored))
    return set(written), set(restored)
