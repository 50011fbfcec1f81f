"""The tensor behind random operations, on graphs made of names only."""

import pytest

from ckpt_doctor.graphs.augmentation import tensor_behind
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

FLOAT, INT = 1, 3


def find(*lines, wanted=("bn:0",), inputs=("x:0",)):
    """Make a graph of lines like `name op input input`, floats but for what is called an index, and look in it."""
    proto = pb.GraphDef()
    for line in lines:
        name, op, *sources = line.split()
        node = proto.node.add(name=name, op=op, input=sources)
        node.attr["T"].type = INT if "index" in name else FLOAT
    random = [node.name for node in proto.node if node.op.startswith("Random")]
    return tensor_behind(Graph(proto), random, inputs, wanted)


NOISE = ("x Placeholder", "shape Shape x", "noise RandomUniform shape", "sum Add x noise")


def test_noise_is_behind_the_sum():
    assert find(*NOISE, "bn Mul sum") == ("sum:0", "x:0")


def test_the_last_of_several_random_operations_counts():
    crop = ("index RandomUniformInt", "crop Slice sum index", "flip RandomUniform", "way Select flip crop crop2")
    assert find(*NOISE, *crop, "crop2 Reverse crop", "scaled Mul way", "bn Mul scaled") == ("way:0", "x:0")


def test_a_layer_between_two_random_operations_leaves_no_tensor():
    again = ("first Mul sum", "noise2 RandomUniform shape", "bn Add first noise2")
    assert find(*NOISE, *again, wanted=("first:0", "bn:0")) is None
    assert find(*NOISE, *again) == ("bn:0", "x:0")


def test_what_goes_past_it_needs_the_input_still():
    assert find(*NOISE, "double Mul x", "bn Add sum double") is None


def test_other_inputs_may_join_later():
    assert find(*NOISE, "y Placeholder", "bn Add sum y", inputs=("x:0", "y:0")) == ("sum:0", "x:0")
    assert find("y Placeholder", *NOISE, "both Add sum y", "bn RandomUniform both", inputs=("x:0", "y:0")) is None


def test_two_outputs_are_not_one_tensor():
    assert find(*NOISE, "parts Split sum", "bn Add parts parts:1") == ("sum:0", "x:0")
    assert find("x Placeholder", "index RandomUniformInt", "parts Split x index", "bn Add parts parts:1") == (
        "bn:0",
        "x:0",
    )


def test_behind_a_loop_it_is_what_is_read_from_its_array():
    """As `tf.map_fn` over images writes it: the Exit gives a number without meaning, by which the array is read."""
    loop = (
        "x Placeholder",
        "array TensorArrayV3",
        "enter Enter array:1",
        "merge Merge enter next",
        "go LoopCond merge",
        "turn Switch merge go",
        "images Enter x",
        "noise RandomUniform ^turn",
        "sum Add images noise",
        "handle Enter array",
        "write TensorArrayWriteV3 handle index sum turn:1",
        "index Const ^turn",
        "next NextIteration write",
        "exit Exit turn",
        "indices Const",
    )
    read = ("gathered TensorArrayGatherV3 array indices exit", "bn Mul gathered")
    assert find(*loop, *read) == ("gathered:0", "x:0")


@pytest.mark.parametrize("lines", [("x P", "bn RandomUniform x"), ("x P", "r RandomUniform", "bn Mul x")])
def test_without_data_behind_chance_there_is_none(lines):
    assert find(*lines) is None


def test_a_circle_that_is_no_loop_ends():
    assert find("x P", "r RandomUniform", "a Add x r b", "b Mul a", "bn Mul b") == ("bn:0", "x:0")
