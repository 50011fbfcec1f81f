"""The debug log of `formats/`: what was recognised, opened and read. What was passed over is in the report."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor import scan
from tests.formats.keras_samples import SAMPLES

FORMATS = SAMPLES.parent


def test_what_was_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copyfile(SAMPLES / "keras3.keras", tmp_path / "m.keras")
    shutil.copytree(FORMATS / "bundle_shards", tmp_path / "bundle")
    for file in SAMPLES.glob("keras3_sharded*"):
        shutil.copyfile(file, tmp_path / file.name)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros(3)
    (tmp_path / ".git").mkdir()
    caplog.set_level(logging.DEBUG, logger="ckpt_doctor.formats")
    assert len(scan([tmp_path]).checkpoints) == 3
    lines = [record.getMessage() for record in caplog.records]
    folder = str(tmp_path)
    for line in (
        f"{folder}/m.keras: recognised as keras-v3",
        f"{folder}/m.keras: zip archive of 3 members",
        f"{folder}/m.keras!model.weights.h5: opened, 63408 bytes of HDF5, superblock version 0",
        f"{folder}/m.keras!model.weights.h5: 38 groups, 64 arrays",
        f"{folder}/m.keras: keras-v3, 64 variables, 0 bookkeeping entries, 0 defects seen, written by Keras 3.15.1",
        f"{folder}/bundle/sample.index: index of 8 entries, 3 data files",
        f"{folder}/keras3_sharded.weights.json: index of 3 shards, 3 of them read",
        "3 checkpoints found, 0 passed over, 0 errors",
    ):
        assert line in lines
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_arrays_that_hold_no_tensor_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(3, np.float32)
        file.create_dataset("layers/dense/vars/1", (2,), [("a", "f4"), ("b", "i4")])
    caplog.set_level(logging.DEBUG, logger="ckpt_doctor.formats")
    scan([tmp_path / "m.weights.h5"])
    assert any(
        "m.weights.h5:layers/dense/vars/1: passed over: values of type" in record.getMessage()
        for record in caplog.records
    )
