"""TensorFlow 1 graphs that draw random numbers before their layers, as input pipelines do that augment."""

import re

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.capture import meta_graph_door
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.meta_graph import MetaGraph
from tests.capture.small_graphs import IMAGES, Model, assert_close, moments, normal, product

pytestmark = pytest.mark.tensorflow


@pytest.fixture(params=["loop of nodes", "loop of a function"])
def model(tf, tmp_path, request):
    """A graph whose images are shifted and scaled at random, each in its own way, before two layers see them."""
    if request.param == "loop of nodes":
        tf.compat.v1.disable_control_flow_v2()
    with tf.Graph().as_default():
        # Draws still differ from run to run; without a seed, one in many sessions draws numbers that are too odd.
        tf.compat.v1.set_random_seed(1)
        model = Model(tf.compat.v1, tmp_path)

        def augmented(image):
            return image * tf.random.uniform([], 0.7, 1.3) + tf.random.uniform([], -0.5, 0.5)

        images = tf.map_fn(augmented, model.images())
        front = model.norm(tf.matmul(images, model.weights("w", [6, 4])), "front")
        model.norm(tf.matmul(tf.nn.relu(front), model.weights("w2", [4, 3])), "behind")
        model.save()
        yield model
    tf.compat.v1.enable_control_flow_v2()


def load(model, **options):
    checkpoint = open_checkpoint(model.prefix)
    layers = take_inventory(checkpoint, describe(checkpoint)).layers
    return meta_graph_door.load(checkpoint, MetaGraph.parse(checkpoint.descriptions.meta_graph), layers, **options)


def test_the_error_names_the_tensor_behind_and_it_is_the_way_out(model):
    with pytest.raises(RepairRefused) as caught:
        load(model)
    named = re.search(
        r"feed the tensor after them with --input (\S+)=(\S+) \(with data that are not", str(caught.value)
    )
    assert load(model, inputs=[named[2]]).random == ()
    result, stored = model.fix(inputs={named[1]: named[2]})
    assert result.complete
    front = product(stored, "w")
    assert_close(stored, "front", moments(front))
    behind = np.maximum(normal(front, moments(front)), 0)
    assert_close(stored, "behind", moments(product(stored, "w2", behind)))
    assert named[1] == "x"
    assert len(IMAGES) == result.samples


def test_noise_that_belongs_there_is_taken_as_one_draw(model):
    result, stored = model.fix()
    assert min(layer.residual for layer in result.layers) > 1e-2  # What rounding may be.
    assert result.complete
    assert any("draws random numbers before its layers" in note for note in result.notes)
    mean, variance = moments(product(stored, "w"))
    # The expectation over all draws: a scale of mean 1 and variance 0.03, a shift of variance 1/12.
    shift = stored["w"].astype("f8").sum(0)
    expected = variance + 0.03 * (variance + mean**2) + shift**2 / 12
    assert stored["front/moving_variance"] == pytest.approx(expected, rel=0.35)
