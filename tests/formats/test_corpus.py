"""Published checkpoints that nobody tuned to this project, against what TensorFlow reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.formats.interface import Changes

pytestmark = [pytest.mark.corpus, pytest.mark.filterwarnings("ignore")]

READABLE = {
    "A004": ("cnn_0.92_ckpt", 58),
    "A008": ("ds_cnn_0.94_ckpt", 136),
    "A018": ("wgan-999", 229),
    "A023": ("wgan-1999", 116),
    "A041": ("model.ckpt", 400),
    "A047": ("ch11-exercise_model_0_to_4.ckpt", 38),
    "A092": ("gan.ckpt-0", 58),
    "A168": ("ckpt", 10),
    "A169": ("", 12),
    "A194": ("", 103),
    "A234": ("", 3),
    "A250": ("export-?????-of-00001", 2),
}


@pytest.mark.parametrize("artefact", READABLE)
def test_every_value_passes_its_checksum(corpus: Path, artefact: str) -> None:
    name, count = READABLE[artefact]
    checkpoint = open_checkpoint(corpus / artefact / name)
    assert len(checkpoint.variables) == count
    assert not checkpoint.damages
    assert not list(format_of(checkpoint).verify(checkpoint))


@pytest.mark.tensorflow
@pytest.mark.parametrize("artefact", READABLE)
def test_values_are_those_of_tensorflow(corpus: Path, artefact: str) -> None:
    tf = pytest.importorskip("tensorflow")
    checkpoint = open_checkpoint(corpus / artefact / READABLE[artefact][0])
    prefix = f"{checkpoint.path}/variables/variables" if checkpoint.format == "saved-model" else checkpoint.path
    reader = tf.train.load_checkpoint(prefix)
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    stored = [*checkpoint.variables, *checkpoint.bookkeeping]
    assert sorted(variable.name for variable in stored) == sorted(shapes)
    for variable in stored:
        assert list(variable.shape) == list(shapes[variable.name])
        assert variable.dtype == types[variable.name].name
        expected: Any = np.array(reader.get_tensor(variable.name), object if variable.dtype == "string" else None)
        assert same_values(variable.read(), expected)


@pytest.mark.tensorflow
@pytest.mark.parametrize("artefact", READABLE)
def test_rewritten_copies_load_in_tensorflow(corpus: Path, tmp_path: Path, artefact: str) -> None:
    tf = pytest.importorskip("tensorflow")
    checkpoint = open_checkpoint(corpus / artefact / READABLE[artefact][0])
    old = {variable.name: variable.read() for variable in checkpoint.variables}
    name = max((name for name in old if old[name].dtype == np.float32), key=lambda name: old[name].size)
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({name: old[name] + 1}))
    written = open_checkpoint(tmp_path / "out")
    prefix = f"{written.path}/variables/variables" if written.format == "saved-model" else written.path
    reader = tf.train.load_checkpoint(prefix)
    for known, value in {**old, name: old[name] + 1}.items():
        if value.dtype != object:
            assert same_values(np.asarray(reader.get_tensor(known)), value)


@pytest.mark.parametrize("artefact", ["A162", "A164"])
def test_index_alone_gives_names(corpus: Path, artefact: str) -> None:
    (path,) = discover([corpus / artefact]).checkpoints
    checkpoint = open_checkpoint(path)
    assert [damage.kind for damage in checkpoint.damages] == ["missing-shard"]
    assert checkpoint.variables


@pytest.mark.parametrize(("artefact", "words"), [("A010", "git-LFS pointer"), ("A221/checkpoint.ckpt", "pickle")])
def test_what_only_looks_like_a_checkpoint(corpus: Path, artefact: str, words: str) -> None:
    with pytest.raises(UnreadableCheckpoint, match=words) as caught:
        open_checkpoint(corpus / artefact)
    assert caught.value.damages[0].kind == "not-a-checkpoint"


def test_a_walk_finds_every_artefact(corpus: Path) -> None:
    found = discover([corpus])
    assert not found.errors
    assert len(found.checkpoints) == 31  # All but A221, a pickle under a name that PyTorch's checkpoints have as well.
