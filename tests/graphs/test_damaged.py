"""Damaged graphs are judged as far as they go: no shape of nodes and inputs stops a scan."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import ServedGraph
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

ZOO = Path(__file__).parents[2] / "fixtures" / "zoo"
SAMPLES = ("hand_phase", "control_flow_v2", "layers_slim", "renorm")
OPS = ("Mean", "Mul", "Rsqrt", "FusedBatchNormV3", "Switch", "Merge", "If", "Const", "VariableV2", "Assign", "SaveV2")


def damage(graph: pb.GraphDef, random_: random.Random) -> None:
    """Drop, rewire or rename something somewhere in a graph or its functions."""
    nodes = random_.choice([graph.node, *(function.node_def for function in graph.library.function)])
    if not len(nodes):
        return
    node = nodes[random_.randrange(len(nodes))]
    kind = random_.randrange(5)
    if kind == 0 and node.input:
        del node.input[random_.randrange(len(node.input))]
    elif kind == 1:
        nodes.remove(node)
    elif kind == 2:
        node.op = random_.choice(OPS)
    elif kind == 3 and node.input:
        node.input[random_.randrange(len(node.input))] = random_.choice(graph.node).name
    elif kind == 4 and node.attr:
        node.attr.pop(random_.choice(sorted(node.attr)))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_damaged_meta_is_read_without_a_crash(sample):
    original = pb.MetaGraphDef.FromString((ZOO / "tf1" / f"{sample}.meta").read_bytes())
    random_ = random.Random(sample)
    for _ in range(15):
        meta = pb.MetaGraphDef()
        meta.CopyFrom(original)
        for _ in range(random_.choice((1, 3, 10, 40))):
            damage(meta.graph_def, random_)
        assert MetaGraph(meta).facts.evidence == "graph"


def test_a_damaged_saved_model_is_read_without_a_crash():
    data = (ZOO / "tf2" / "serves_batch" / "saved_model.pb").read_bytes()
    original = pb.SavedModel.FromString(data).meta_graphs[0]
    random_ = random.Random(7)
    for _ in range(15):
        meta = pb.MetaGraphDef()
        meta.CopyFrom(original)
        for _ in range(random_.choice((1, 3, 10, 40))):
            damage(meta.graph_def, random_)
        assert ServedGraph(meta).facts.evidence == "graph"
