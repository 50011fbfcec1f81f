"""HDF5 that unfolds into far more than is stored: arrays looked through chunk by chunk, chunks and groups refused."""

from __future__ import annotations

import weakref
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor import scan
from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.formats import _hdf5, _hdf5_open, format_of, open_checkpoint

ROWS = 4096


@pytest.fixture(autouse=True)
def small_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hdf5, "BOMB_FLOOR_BYTES", 1 << 20)


def packed(path: Path, chunk: int, *, value: float = 0.0) -> Path:
    """Write weights of 2 MB that gzip packs into a few kB, the last of which has a value."""
    kernel = np.zeros((ROWS, 128), np.float32)
    kernel[-1, -1] = value
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=kernel, chunks=(chunk, 128), compression="gzip")
    return path


def test_it_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "m.weights.h5", 64, value=np.nan)
    sizes = []
    real = _hdf5.read_numbers
    monkeypatch.setattr(_hdf5, "read_numbers", lambda *a: sizes.append((value := real(*a)).size) or value)
    monkeypatch.setattr(Variable, "read", lambda self: pytest.fail(f"{self.name} is read whole"))
    (checkpoint,) = scan([path]).checkpoints
    (finding,) = checkpoint.findings
    assert finding.rule == "CK201"
    assert finding.message.startswith("1 ")
    assert sizes == [64 * 128] * (2 * ROWS // 64)


def test_who_wants_its_value_gets_it(tmp_path: Path) -> None:
    (variable,) = open_checkpoint(packed(tmp_path / "m.weights.h5", 64, value=3)).variables
    assert variable.pieces is not None
    assert variable.read().sum() == sum(float(piece.sum()) for piece in variable.pieces()) == 3


def test_damage_inside_is_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "m.weights.h5", 64)
    with h5py.File(path) as file:
        place = file["layers/dense/vars/0"].id.get_chunk_info(40).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = bytes(8)
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    (damage,) = format_of(checkpoint).verify(checkpoint)
    assert damage.variables == ("layers/dense/vars/0",)
    assert scan([path]).checkpoints[0].findings[0].rule.startswith("CK")


def test_a_chunk_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    (damage,) = open_checkpoint(packed(tmp_path / "m.weights.h5", ROWS)).damages
    assert "a chunk of shape (4096, 128), 2097152 bytes, for" in damage.message


def test_what_is_packed_as_arrays_are_is_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        value = np.random.default_rng(0).normal(size=(ROWS, 128)).astype(np.float32)
        file.create_dataset("layers/dense/vars/0", data=value, chunks=(64, 128), compression="gzip")
    (variable,) = open_checkpoint(path).variables
    assert variable.pieces is None


def test_groups_that_are_nested_without_end_are_not_entered(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        group = file
        for _ in range(600):
            group = group.create_group("g")
    (damage,) = open_checkpoint(tmp_path / "m.weights.h5").damages
    assert "groups are nested more than 500 deep" in damage.message
    assert len(damage.variables[0]) == 1001


def test_the_search_for_variables_keeps_no_group_that_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file
        for _ in range(600):
            group = group.create_group("g")
    open_groups: set[int] = set()
    most = entered = 0
    real = _hdf5_open.follow

    def follow(group: h5py.Group, name: str) -> h5py.Group:
        nonlocal most, entered
        child = real(group, name)
        open_groups.add(id(child))
        weakref.finalize(child, open_groups.discard, id(child))
        most, entered = max(most, len(open_groups)), entered + 1
        return child

    monkeypatch.setattr(_hdf5_open, "follow", follow)
    assert _hdf5_open.layout_at(str(tmp_path / "m.h5")) is None
    assert entered == 501
    assert most <= 3
