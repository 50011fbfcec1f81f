"""Models of the fixtures, ready to be measured."""

from __future__ import annotations

import numpy as np
import pytest

from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.capture import meta_graph_door
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.samples import from_arrays
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.meta_graph import MetaGraph
from tests.catalogue import BY_NAME, CALIBRATION


@pytest.fixture(scope="session")
def images():
    return np.load(CALIBRATION)["x"]


@pytest.fixture
def model():
    """Give program and layer names of a fixture's TF1 graph."""

    def model(name, **options):
        checkpoint = open_checkpoint(BY_NAME[name].path)
        meta = MetaGraph.parse(checkpoint.descriptions.meta_graph)
        layers = take_inventory(checkpoint, describe(checkpoint)).layers
        return meta_graph_door.load(checkpoint, meta, layers, **options), [layer.name for layer in layers]

    return model


@pytest.fixture
def measured(model, images):
    """Measure a fixture as `fix` does; give the observations and what the engine was."""

    def measured(name, *, whole, count=256, batch_size=64, watch=None, cache_memory=2 * 10**9, **options):
        program, names = model(name, **options)
        [entry] = program.inputs
        samples = from_arrays({entry.tensor: images}, range(count), batch_size)
        with Engine(program, {}, cache_memory=cache_memory) as engine:
            if watch is not None:
                watch(engine)
            found, left = engine.measure(samples, names, whole=whole)
        assert left == {}
        return found

    return measured


@pytest.fixture
def v1(tf):
    """TensorFlow's old interface, with the old control flow: Switch and Merge, Enter and Exit."""
    tf.compat.v1.disable_control_flow_v2()
    with tf.Graph().as_default():
        yield tf.compat.v1
    tf.compat.v1.enable_control_flow_v2()
