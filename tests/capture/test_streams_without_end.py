"""Data that a user's function gives without end: asked about at once, read once by their length, or stopped."""

import itertools
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from ckpt_doctor.capture import streams
from ckpt_doctor.capture.data import read_samples
from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import DataOptions

pytestmark = pytest.mark.tensorflow

X = np.arange(40, dtype=np.float32).reshape(20, 2)


@pytest.fixture
def read(monkeypatch):
    """Return the samples of what a function gives, in a row."""

    def read(source, heard=lambda progress: None, **options):
        monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(data=lambda: source))
        with ExitStack() as kept:
            samples = read_samples(
                DataOptions(data=["ours:data"], **options), [ModelInput("x", "x:0", "float32", (None, 2))], kept, heard
            )
            return np.concatenate([batch["x:0"] for batch in samples])

    return read


class Sequence:
    """As the generators of Keras are: it says how many batches an epoch has, and begins anew after it."""

    def __len__(self):
        return 4

    def __iter__(self):
        return itertools.cycle(np.split(X, 4))


def test_a_repeated_dataset_is_refused_before_it_is_read(tf, read):
    def element(x):
        raise AssertionError("was read")

    dataset = tf.data.Dataset.from_tensor_slices(X).map(lambda x: tf.py_function(element, [x], tf.float32))
    with pytest.raises(BadRequest, match=r"--data ours:data: returned an endless dataset \(repeat\(\)\).*--samples N"):
        read(dataset.repeat().batch(8))


def test_of_a_repeated_dataset_the_first_samples_are_taken(tf, read):
    dataset = tf.data.Dataset.from_tensor_slices(X).repeat().batch(8)
    assert read(dataset, samples=25).tolist() == np.concatenate([X, X[:5]]).tolist()


def test_no_more_is_asked_for_than_is_needed(read):
    def batches():
        yield X[:8]
        yield X[8:16]
        raise AssertionError("a third batch was asked for")

    assert read(batches(), samples=16).tolist() == X[:16].tolist()


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_dataset_that_ends_is_read_to_its_end(tf, read, repeats):
    dataset = tf.data.Dataset.from_tensor_slices(X).repeat(repeats).filter(lambda x: x[0] >= 0).batch(8)
    assert len(read(dataset)) == 20 * repeats


def test_what_has_a_length_is_read_once(read):
    assert read(Sequence()).tolist() == X.tolist()


def test_batches_by_number(read):
    keras = pytest.importorskip("keras")

    class Numbered(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return X[10 * number : 10 * number + 10], None

    assert read(Numbered()).tolist() == X.tolist()


@pytest.mark.parametrize(("name", "bound"), [("MOST_SAMPLES", 100), ("MOST_BYTES", 800)])
def test_a_generator_without_end_is_stopped(read, monkeypatch, name, bound):
    monkeypatch.setattr(streams, name, bound)
    with pytest.raises(BadRequest, match=r"ours:data: has returned 120 samples.*may not end.*--samples N"):
        read(itertools.repeat(X))
    assert len(read(itertools.repeat(X), samples=500)) == 500
    assert len(read(itertools.repeat(X, 5))) == 100


def test_what_ends_is_not_stopped(tf, read, monkeypatch):
    monkeypatch.setattr(streams, "MOST_SAMPLES", 10)
    assert len(read([X, X])) == 40
    assert len(read(tf.data.Dataset.from_tensor_slices(X).batch(8))) == 20


def test_how_much_has_been_read_is_told(read):
    heard = []
    read(iter([X, X]), heard.append)
    assert [(progress.stage, progress.done, progress.total) for progress in heard] == [
        ("reading the data (samples)", 20, None),
        ("reading the data (samples)", 40, None),
    ]
