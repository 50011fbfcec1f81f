"""Graphs of TensorFlow 1 that were made for batches of one size, held against NumPy in float64 on the samples used."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ckpt_doctor.capture.samples import from_arrays
from ckpt_doctor.errors import BadRequest, RepairRefused
from tests.capture.small_graphs import IMAGES, Model, assert_close, moments, normal, product

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def model(tf, tmp_path):
    with tf.Graph().as_default():
        yield Model(tf.compat.v1, tmp_path)


def two_layers(model, images):
    front = model.norm(model.v1.matmul(images, model.weights("w", [6, 4])), "front")
    return model.norm(model.v1.matmul(front, model.weights("w2", [4, 3])), "behind")


def assert_both(stored, samples):
    front = product(stored, "w", samples)
    assert_close(stored, "front", moments(front))
    assert_close(stored, "behind", moments(product(stored, "w2", normal(front, moments(front)))))


def shuffled(count):
    """Return the first samples in the order that seed 0 decides, which `fix` takes them in."""
    return IMAGES[np.random.default_rng(0).permutation(len(IMAGES))[:count]]


def placeholder(model):
    return model.v1.placeholder("float32", [7, 6], name="x")


def iterator(model):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).repeat().batch(7, drop_remainder=True)
    images = model.v1.data.make_one_shot_iterator(dataset).get_next()
    return model.v1.reshape(images, [int(images.shape[0]), -1])


def queue(model):
    queue = model.v1.FIFOQueue(9, ["float32"], [(6,)])
    images = queue.dequeue_many(7)
    return model.v1.reshape(images, [int(images.shape[0]), -1])


@pytest.mark.parametrize("source", [placeholder, iterator, queue])
def test_the_size_of_the_graph_is_taken_and_the_remainder_left_out(model, source):
    two_layers(model, source(model))
    model.save()
    result, stored = model.fix()
    assert result.complete
    assert (result.samples, result.batches) == (91, 13)
    assert "the model takes batches of 7 samples, so 5 of 96 samples were not used" in result.notes
    assert_both(stored, shuffled(91))


def test_batches_of_other_sizes_are_cut_to_that_of_the_graph(model, monkeypatch):
    two_layers(model, placeholder(model))
    model.save()
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(data=lambda: [IMAGES[:10], IMAGES[10:11], IMAGES[11:50]]))
    result, stored = model.fix(data="ours:data")
    assert (result.samples, result.batches) == (49, 7)
    assert_both(stored, IMAGES[:49])


def test_fewer_samples_than_a_batch_are_refused(model):
    two_layers(model, placeholder(model))
    model.save()
    with pytest.raises(
        BadRequest, match="the data contain 6 samples, but the model takes batches of exactly 7; pass 7"
    ):
        model.fix(samples=6)


def test_fewer_samples_than_a_batch_of_an_iterator_are_tried(model, tf):
    """What is fed in its place has no size, and nothing behind it need have one."""
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).repeat().batch(7, drop_remainder=True)
    two_layers(model, model.v1.data.make_one_shot_iterator(dataset).get_next())
    model.save()
    result, stored = model.fix(samples=6)
    assert result.samples == 6
    assert_both(stored, shuffled(6))


def test_towers_get_equal_parts(model):
    v1 = model.v1
    with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
        for part in v1.split(model.images(), 5):
            two_layers(model, part)
    model.save()
    result, stored = model.fix(batch_size=64)
    assert (result.samples, result.batches) == (95, 2)
    assert "the model splits its batches into 5 equal parts, so 1 of 96 samples were not used" in result.notes
    assert_both(stored, shuffled(95))


def test_a_last_batch_that_does_not_run_is_left_out(model):
    v1 = model.v1
    groups = v1.reshape(model.images(), [-1, 4, 6])
    two_layers(model, v1.reshape(groups - v1.reduce_mean(groups, 1, keepdims=True), [-1, 6]))
    model.save()
    result, stored = model.fix(batch_size=20, samples=90)
    assert (result.samples, result.batches) == (80, 4)
    assert result.notes[-1].startswith(
        "the model does not run on the last 10 of 90 samples, which do not fill a batch of 20"
    )
    centred = shuffled(80).reshape(-1, 4, 6).astype("f8")
    assert_both(stored, (centred - centred.mean(1, keepdims=True)).reshape(-1, 6))
    with pytest.raises(RepairRefused, match=r"Reshape.*if the graph was built for a fixed batch size.*--batch-size N"):
        model.fix(batch_size=30, overwrite=True)


def test_batches_are_put_together_and_cut():
    samples = from_arrays({"x:0": np.arange(23)}, range(23), 8).regrouped(5, 22)
    assert samples.lengths == (5, 5, 5, 5, 2)
    assert [samples.read(number)["x:0"].tolist() for number in (4, 1)] == [[20, 21], [5, 6, 7, 8, 9]]
    assert samples.fetch(1, 2, 4)["x:0"].tolist() == [7, 8]
    pieces = samples.split(2)
    assert np.concatenate([piece["x:0"] for piece in pieces]).tolist() == list(range(22))
