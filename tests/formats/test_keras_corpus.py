"""Published Keras files: names, shapes, types and bytes are those that h5py gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from tests.formats.keras_samples import raw_values

pytestmark = pytest.mark.corpus

READABLE = {
    "A030": ("keras-v3", "Keras 3.4.1", 56),
    "A065": ("keras-hdf5", "Keras 2.2.4 (tensorflow)", 32),
    "A068": ("keras-v3", "Keras 3.6.0", 116),
    "A166": ("keras-v3", "Keras 3.8.0", 3),
    "A174": ("keras-weights-hdf5", "Keras 1", 48),
    "A175": ("keras-weights-hdf5", "Keras 1", 36),
    "A184": ("keras-weights-hdf5", "Keras 1", 36),
    "A193": ("keras-hdf5", "Keras 2.4.0 (tensorflow)", 185),
    "A208": ("keras-hdf5", "Keras 2.4.0 (tensorflow)", 31),
    "A225": ("keras-hdf5", None, 0),
    "A243": ("keras-v3", "Keras 3.8.0", 42),
}
DAMAGED = {
    "A027": ("truncated", "was never closed"),
    "A206": ("not-a-checkpoint", "text-mode copy"),
    "A209": ("not-a-checkpoint", "git lfs pull"),
    "A222": ("not-a-checkpoint", "no superblock after it"),
}


@pytest.mark.parametrize("name", READABLE)
def test_readable(corpus: Path, name: str) -> None:
    (path,) = (corpus / name).iterdir()
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.producer, len(checkpoint.variables)) == READABLE[name]
    assert not checkpoint.damages
    raw = raw_values(str(path))
    assert {variable.name for variable in checkpoint.variables} == set(raw)
    for variable in checkpoint.variables:
        value = raw[variable.name]
        assert (variable.shape, variable.dtype) == (value.shape, value.dtype.name)
        assert same_values(variable.read(), value)
    assert not list(format_of(checkpoint).verify(checkpoint))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(corpus: Path, name: str) -> None:
    (path,) = (corpus / name).iterdir()
    with pytest.raises(UnreadableCheckpoint) as raised:
        open_checkpoint(path)
    (damage,) = raised.value.damages
    kind, words = DAMAGED[name]
    assert damage.kind == kind
    assert words in damage.message
