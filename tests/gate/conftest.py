"""Folders of checkpoints for the gate."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from ckpt_doctor.cli import main

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"


def copy_bundle(sick: bool, folder: Path) -> Path:
    """Copy a sick or healthy bundle of TensorFlow 1.15 to a folder of its own; return its prefix.

    The graph of a healthy one stays behind: reading 27 of them is most of the time of a scan.
    """
    source = FIXTURES / "tf1_layers" / ("trainable" if sick else "full")
    folder.mkdir(parents=True)
    for file in source.glob("model.ckpt-400.*"):
        if sick or file.suffix != ".meta":
            shutil.copy(file, folder)
    return folder / "model.ckpt-400"


def build_zoo(folder: Path, numbers: Iterable[int]) -> Path:
    """Make a folder of checkpoints in three formats, of which 4, 17 and 25 are sick."""
    for number in numbers:
        place = folder / f"model{number:02}"
        if number == 4 or number % 3 == 0:
            source = FIXTURES / ("keras_h5/broken.h5" if number == 4 else "keras_v3/healthy.keras")
            place.mkdir(parents=True)
            shutil.copy(source, place / f"model{source.suffix}")
        else:
            copy_bundle(number in (17, 25), place)
    return folder


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder with three sick checkpoints and three healthy ones; the working folder is its parent."""
    monkeypatch.chdir(tmp_path)
    return build_zoo(tmp_path / "zoo", (0, 3, 4, 5, 17, 25))


@pytest.fixture
def zoo_of_30(tmp_path, monkeypatch):
    """Likewise, with 27 healthy ones."""
    monkeypatch.chdir(tmp_path)
    return build_zoo(tmp_path / "zoo", range(30))


@pytest.fixture
def run(capsys):
    """Run one command line; return its code, stdout and stderr."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run
