"""Small TF1 graphs with something special in them, repaired end to end and held against NumPy in float64."""

import numpy as np
import pytest

from ckpt_doctor.errors import BadRequest, RepairRefused
from tests.capture.small_graphs import EPSILON, IMAGES, Model, assert_close, moments, normal, product, relu
from tests.independent import saver_names

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def model(v1, tmp_path):
    return Model(v1, tmp_path)


def test_a_layer_in_a_loop_and_what_lies_behind_it_are_left(model, v1):
    before = model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "before")
    weights = model.weights("loop/w", [4, 4])
    _, turned = v1.while_loop(
        lambda i, _: i < 3, lambda i, a: (i + 1, model.norm(v1.matmul(a, weights), "inside")), [0, before]
    )
    model.norm(v1.matmul(turned, model.weights("w2", [4, 3])), "behind")
    model.save()
    result, stored = model.fix()
    assert not result.complete
    reasons = {entry.name: entry.reason for entry in result.left}
    assert reasons.keys() == {"inside", "behind"}
    assert "inside a loop (tf.while_loop, dynamic_rnn)" in reasons["inside"]
    assert "computed with variables that the checkpoint lacks (inside/moving_mean, " in reasons["behind"]
    assert_close(stored, "before", moments(product(stored, "w")))
    assert "inside/moving_mean" not in stored


def test_a_layer_behind_a_loop_without_layers_is_repaired(model, v1):
    x = v1.matmul(model.images(), model.weights("w", [6, 4]))
    _, turned = v1.while_loop(lambda i, _: i < 2, lambda i, a: (i + 1, a * 2.0), [0, x])
    model.norm(turned, "behind")
    model.save()
    result, stored = model.fix()
    assert result.complete
    assert_close(stored, "behind", moments(4 * product(stored, "w")))


def test_statistics_of_several_axes_are_left(model, v1):
    model.norm(v1.reshape(model.images(), [-1, 2, 3]), "wide", shape=[1, 2, 3])
    model.save()
    with pytest.raises(RepairRefused, match=r"layer wide: it stores statistics of shape \[1, 2, 3\], for several"):
        model.fix()


def test_parts_of_partitioned_weights_are_read_from_the_whole(model, v1):
    with v1.variable_scope("", partitioner=v1.fixed_size_partitioner(3, axis=0)):
        weights = v1.get_variable("w", [6, 4], initializer=v1.random_normal_initializer(seed=1))
    model.norm(v1.matmul(model.images(), weights), "bn")
    model.save()
    result, stored = model.fix()
    assert result.complete
    assert stored["w"].shape == (6, 4)
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_weights_of_another_shape_are_refused(model, v1, tf, tmp_path):
    model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "bn")
    model.save()
    with tf.Graph().as_default():
        other = Model(v1, tmp_path)
        other.norm(v1.matmul(other.images(), other.weights("w", [6, 5])), "bn")
        other.prefix = tmp_path / "other.ckpt"
        other.save()
    (tmp_path / "other.ckpt.meta").write_bytes((tmp_path / "model.ckpt.meta").read_bytes())
    with pytest.raises(RepairRefused, match=r"holds the shape \[6, 5\], its graph expects \[6, 4\]"):
        other.fix()


def test_what_comes_out_of_a_cond_can_be_fed(model, v1):
    flag = v1.placeholder("bool", [], name="is_training")
    queues = [v1.FIFOQueue(8, ["float32"], [[6]], name=name) for name in ("training", "testing")]
    chosen = v1.cond(flag, lambda: queues[0].dequeue_many(8), lambda: queues[1].dequeue_many(8))
    model.norm(v1.matmul(chosen, model.weights("w", [6, 4])), "bn")
    model.save()
    result, stored = model.fix(inputs={"x": chosen.name})
    assert result.complete
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_a_fed_number_reaches_the_graph_through_a_cond(model, v1):
    flag = v1.placeholder("bool", [], name="is_training")
    factor = v1.placeholder("float32", [], name="factor")
    scaled = v1.cond(flag, lambda: factor * 7.0, lambda: v1.identity(factor))
    model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])) * scaled, "bn")
    model.save()
    result, stored = model.fix(feeds={"factor:0": "3"})
    assert result.complete
    assert_close(stored, "bn", moments(3 * product(stored, "w")))


def test_new_variables_get_the_prefix_that_the_saver_gives_all(model, v1):
    model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "bn")
    model.save({f"model/{variable.op.name}": variable for variable in v1.trainable_variables()})
    _, stored = model.fix()
    names = {"model/w", "model/bn/beta", "model/bn/moving_mean", "model/bn/moving_variance"}
    assert stored.keys() == names
    assert saver_names(model.folder / "repaired.ckpt") == (names, names)


def test_a_layer_between_the_places_of_another_sees_all_of_them(model, v1):
    """As in a GAN: the discriminator stands at the data, and behind the generator's layers."""
    x = model.images()
    fake = v1.nn.relu(model.norm(v1.matmul(x, model.weights("generator/w", [6, 6])), "generator"))
    weights = model.weights("d/w", [6, 5])
    for picture in (x, fake):
        v1.nn.relu(model.norm(v1.matmul(v1.nn.relu(model.norm(picture, "d1")), weights), "d2"))
    model.save()
    result, stored = model.fix()
    assert result.complete
    generated = product(stored, "generator/w")
    pictures = np.concatenate([IMAGES.astype("f8"), relu(normal(generated, moments(generated)))])
    assert_close(stored, "generator", moments(generated))
    assert_close(stored, "d1", moments(pictures))
    assert_close(stored, "d2", moments(product(stored, "d/w", relu(normal(pictures, moments(pictures))))))


def test_shadows_of_new_statistics_are_written_and_restored(model, v1):
    model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "bn")
    v1.train.ExponentialMovingAverage(0.99).apply(v1.global_variables())
    model.save()
    _, stored = model.fix()
    written, restored = saver_names(model.folder / "repaired.ckpt")
    for role in ("moving_mean", "moving_variance"):
        shadow = f"bn/{role}/ExponentialMovingAverage"
        np.testing.assert_array_equal(stored[shadow], stored[f"bn/{role}"])
        assert {shadow} <= written & restored


def test_lost_statistics_that_training_read_are_estimated_by_force_only(model, v1):
    y = model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "bn")
    v1.train.GradientDescentOptimizer(0.1).minimize(v1.reduce_mean(v1.square(y - 1.0)))
    model.save()
    with pytest.raises(RepairRefused, match=r"trained with its stored statistics \(BN304\), which this file lacks"):
        model.fix()
    result, stored = model.fix(force=True)
    assert result.complete
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_a_layer_without_gamma_and_beta_is_found(model, v1):
    x = v1.matmul(model.images(), model.weights("w", [6, 4]))
    mean = v1.get_variable("bn/moving_mean", [4], initializer=v1.zeros_initializer(), trainable=False)
    variance = v1.get_variable("bn/moving_variance", [4], initializer=v1.ones_initializer(), trainable=False)
    v1.nn.batch_normalization(x, mean, variance, None, None, EPSILON)
    model.save()
    result, stored = model.fix()
    assert [layer.name for layer in result.layers] == ["bn"]
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_gamma_divided_by_the_deviation_is_a_scale(model, v1):
    x = v1.matmul(model.images(), model.weights("w", [6, 4]))
    mean = v1.get_variable("bn/moving_mean", [4], initializer=v1.zeros_initializer(), trainable=False)
    variance = v1.get_variable("bn/moving_variance", [4], initializer=v1.ones_initializer(), trainable=False)
    beta, gamma = model.weights("bn/beta", [4]), model.weights("bn/gamma", [4])
    scale = gamma / v1.sqrt(variance + EPSILON)
    y = x * scale + (beta - mean * scale)
    model.norm(v1.matmul(y, model.weights("w2", [4, 3])), "next")
    model.save()
    result, stored = model.fix()
    assert result.complete
    statistics = moments(product(stored, "w"))
    assert_close(stored, "bn", statistics)
    out = normal(product(stored, "w"), statistics) * stored["bn/gamma"] + stored["bn/beta"]
    assert_close(stored, "next", moments(product(stored, "w2", out)))


def test_one_layer_may_feed_the_next_directly(model, v1):
    model.norm(model.norm(model.norm(model.images(), "first"), "second"), "third")
    model.save()
    result, stored = model.fix()
    assert result.complete
    values = IMAGES.astype("f8")
    for name in ("first", "second", "third"):
        assert_close(stored, name, moments(values))
        values = normal(values, moments(values))


def test_a_layer_in_a_branch_that_the_data_decide_is_left(model, v1):
    x = v1.matmul(model.images(), model.weights("w", [6, 4]))
    x = model.norm(x, "before")
    v1.cond(v1.reduce_mean(x) > 0.0, lambda: model.norm(x * 2.0, "inside"), lambda: x)
    model.save()
    result, stored = model.fix()
    [left] = result.left
    assert left.name == "inside"
    assert "a branch that the data decide" in left.reason
    assert_close(stored, "before", moments(product(stored, "w")))


def test_a_layer_in_the_function_of_a_loop_is_left(model, v1):
    v1.enable_control_flow_v2()
    x = model.norm(v1.matmul(model.images(), model.weights("w", [6, 4])), "before")
    with v1.variable_scope("", use_resource=True):
        v1.while_loop(lambda i, _: i < 3, lambda i, a: (i + 1, model.norm(a * 0.5, "inside")), [0, x])
    model.save()
    result, _ = model.fix()
    [left] = result.left
    assert left.name == "inside"
    assert "inside a loop" in left.reason


def test_an_operation_of_a_library_that_is_not_here_is_named(model, v1, tf):
    model.norm(v1.identity(model.images(), name="theirs"), "bn")
    model.save()
    path = model.folder / "model.ckpt.meta"
    meta = v1.MetaGraphDef.FromString(path.read_bytes())
    for node in meta.graph_def.node:
        if node.name == "theirs":
            node.op = "TheirOwnOperation"
    path.write_bytes(meta.SerializeToString())
    with pytest.raises(RepairRefused, match=r"cannot import the model's graph: .*TheirOwnOperation"):
        model.fix()


def halves(model, v1):
    """Build a layer in two towers that share its variables, and each take half of every batch."""
    weights = model.weights("w", [6, 4])
    for half in v1.split(model.images(), 2):
        model.norm(v1.matmul(half, weights), "bn")


def test_a_batch_that_is_split_among_devices_stays_whole(model, v1):
    halves(model, v1)
    model.save()
    result, stored = model.fix()
    assert result.complete
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_virtual_batches_are_given_whole_ones(model, v1, monkeypatch):
    """Also where the engine would choose smaller batches than a virtual one: of large images."""
    monkeypatch.setattr("ckpt_doctor.capture.engine._SMALL_BATCH", 1)
    parts = v1.reshape(model.images(), [-1, 16, 6])
    model.norm(v1.matmul(v1.reshape(parts, [-1, 6]), model.weights("w", [6, 4])), "bn")
    model.save()
    result, stored = model.fix(batch_size=32)
    assert result.complete
    assert_close(stored, "bn", moments(product(stored, "w")))


def test_a_batch_that_cannot_be_split_evenly_is_cut(model, v1):
    halves(model, v1)
    model.save()
    result, stored = model.fix(samples=95)
    assert result.samples == 94
    first = IMAGES[np.random.default_rng(0).permutation(96)[:94]]
    assert_close(stored, "bn", moments(product(stored, "w", first)))


def iterator(v1, features):
    """Return what comes out of an iterator over images and labels, as an Estimator's input function gives it."""
    return v1.data.make_one_shot_iterator(v1.data.Dataset.from_tensor_slices(features).batch(8)).get_next()


def test_what_an_iterator_gives_is_called_by_its_tensors(model, v1):
    left, right, _ = iterator(v1, (IMAGES, IMAGES[:, ::-1].copy(), np.arange(96)))
    model.norm(v1.matmul(v1.identity(right), model.weights("w", [6, 4])), "right")
    model.norm(v1.matmul(v1.identity(left), model.weights("other/w", [6, 4])), "left")
    model.save()
    np.savez(model.folder / "data.npz", a=IMAGES, b=IMAGES[:, ::-1], labels=np.arange(96))
    with pytest.raises(BadRequest) as caught:
        model.fix()
    assert str(caught.value).endswith(
        "the model takes IteratorGetNext (?, 6), IteratorGetNext:1 (?, 6); map an array with --input "
        "KEY=IteratorGetNext:0, or name it with --data IteratorGetNext=FILE.npz[KEY]"
    )
    result, stored = model.fix(inputs={"a": "IteratorGetNext:0", "b": "IteratorGetNext:1"})
    assert result.complete
    assert_close(stored, "left", moments(product(stored, "other/w")))
    assert_close(stored, "right", moments(product(stored, "w", IMAGES[:, ::-1])))


def test_the_array_that_fits_an_iterator_is_named(model, v1):
    images, _ = iterator(v1, (IMAGES, np.arange(96)))
    model.norm(v1.matmul(images, model.weights("w", [6, 4])), "bn")
    model.save()
    np.savez(model.folder / "data.npz", images=IMAGES, labels=np.arange(96))
    with pytest.raises(BadRequest, match=r"with --input images=IteratorGetNext:0, or name it with --data Iter"):
        model.fix()
    assert model.fix(inputs={"images": "IteratorGetNext"})[0].complete
