"""The work of a scan grows with the number of layers, and not with its square: counted in calls, not in seconds."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.analysis import Analysis, analyse
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions, Variable
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from ckpt_doctor.verdict import Policy, judge
from tests.catalogue import FIXTURES
from tests.independent import write_bundle

CHANNELS = 4
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
# Four times the layers: linear is 4, quadratic 16. What does not depend on them makes it less.
LARGEST_RATIO = 4.6
# Of one layer of four vectors that only their names describe: 402, of Python and of C, with Python 3.11.
MOST_CALLS = 440


def calls(function, *arguments):
    """Return how many functions, of Python and of C, are called."""
    count = 0

    def count_it(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_it)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def values_of(random):
    return {
        "gamma": random.uniform(0.5, 1.5, CHANNELS),
        "beta": random.normal(size=CHANNELS),
        "moving_mean": random.normal(size=CHANNELS),
        "moving_variance": random.uniform(0.5, 2, CHANNELS),
    }


def bundle(folder, layers):
    """Write layers that only their names describe, with a counter that makes them cold."""
    random = np.random.default_rng(layers)
    values = {
        f"block{number}/bn/{role}": value.astype(np.float32)
        for number in range(layers)
        for role, value in values_of(random).items()
    }
    write_bundle(folder / f"model{layers}", values | {"global_step": np.int64(40)})
    return folder / f"model{layers}"


def cloned(folder, layers):
    """Write a training graph of TensorFlow 1.15 many times over, side by side, as one model."""
    source = open_checkpoint(FIXTURES / "zoo" / "tf1" / "hand_ema")
    graph = pb.MetaGraphDef.FromString(source.descriptions.meta_graph or b"")
    shared = {node.name for node in graph.graph_def.node if node.op.startswith("Placeholder")}
    result = pb.MetaGraphDef()
    result.graph_def.versions.CopyFrom(graph.graph_def.versions)
    result.graph_def.node.extend(node for node in graph.graph_def.node if node.name in shared)
    for number in range(layers):
        for node in graph.graph_def.node:
            if node.name in shared or node.name.startswith("save/"):
                continue
            copy = result.graph_def.node.add()
            copy.CopyFrom(node)
            copy.name = f"net{number}/{node.name}"
            del copy.input[:]
            for entry in node.input:
                mark, name = ("^", entry[1:]) if entry.startswith("^") else ("", entry)
                copy.input.append(entry if name.partition(":")[0] in shared else f"{mark}net{number}/{name}")
    path = folder / f"model{layers}"
    write_bundle(path, {f"net{n}/{v.name}": v.read() for n in range(layers) for v in source.variables})
    path.with_name(f"{path.name}.meta").write_bytes(result.SerializeToString())
    return path


@pytest.mark.parametrize(("write", "few"), [(bundle, 50), (cloned, 8)], ids=["names", "graph"])
def test_a_scan_grows_with_the_layers(tmp_path, write, few):
    ckpt_doctor.scan(write(tmp_path, 3))  # What is imported or compiled on the way does not count.
    counts = [calls(ckpt_doctor.scan, write(tmp_path, layers)) for layers in (few, 4 * few)]
    assert counts[1] < LARGEST_RATIO * counts[0]


def test_a_layer_costs_a_scan_few_calls(tmp_path):
    ckpt_doctor.scan(bundle(tmp_path, 3))
    few, many = (calls(ckpt_doctor.scan, bundle(tmp_path, layers)) for layers in (50, 100))
    assert (many - few) / 50 < MOST_CALLS


def test_a_scan_asks_the_system_for_many_small_values_at_a_time(tmp_path, monkeypatch):
    path = bundle(tmp_path, 500)  # 2,001 values in 32 kB.
    asked = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: asked.append(given) or pread(*given))
    assert ckpt_doctor.scan(path).summary.batch_norm_layers == 500
    # Each file is looked at to recognise it, and its index is read in one piece.
    assert 0 < len(asked) < 10


@pytest.mark.parametrize("nested", [False, True])
def test_a_config_is_read_in_time_that_grows_with_the_layers(nested):
    def model(layers):
        entries = [
            {"class_name": "BatchNormalization", "config": {"name": f"bn{number}", "epsilon": 1e-3, "momentum": 0.9}}
            for number in range(layers)
        ]
        config = {"class_name": "Functional", "config": {"name": "m", "layers": entries}}
        if nested:
            config = {"class_name": "Functional", "config": {"name": "outer", "layers": [config]}}
        names = {f"bn{number}": tuple(f"bn{number}/{role}:0" for role in ROLES) for number in range(layers)}
        if nested:
            names = {"m": tuple(name for group in names.values() for name in group)}
        paths = [f"{group}/{name}" for group, weights in names.items() for name in weights]
        variables = tuple(Variable(path, (CHANNELS,), "float32", 16, lambda: np.ones(CHANNELS)) for path in paths)
        return Checkpoint(
            "x.h5",
            "keras-weights-hdf5",
            variables,
            (),
            0,
            descriptions=ModelDescriptions(keras_config=json.dumps(config)),
            attributes={"weight_names": names, "root": "", "keras_version": "2.4.0"},
        )

    few, many = model(50), model(200)
    found = analyse(few, verify=False)
    assert len(found.inventory.layers) == 50
    counts = [calls(lambda one=one: analyse(one, verify=False)) for one in (model(50), many)]
    assert counts[1] < LARGEST_RATIO * counts[0]


def test_a_verdict_with_a_finding_on_every_layer_grows_with_the_layers():
    def analysis(layers):
        random = np.random.default_rng(0)
        found = []
        for number in range(layers):
            values = {role: value.astype(np.float32) for role, value in values_of(random).items()}
            values["moving_variance"][0] = np.nan
            names = {role: f"bn{number}/{role}" for role in ROLES}
            found.append(BatchNormLayer(f"bn{number}", names, values=values, channels=CHANNELS, momentum=0.99))
        inventory = Inventory(tuple(found), steps=10)
        return Analysis(Checkpoint("x", "tensor-bundle", (), (), 0), inventory)

    counts = [calls(judge, analysis(layers), Policy(repaired=frozenset())) for layers in (50, 200)]
    assert counts[1] < LARGEST_RATIO * counts[0]
