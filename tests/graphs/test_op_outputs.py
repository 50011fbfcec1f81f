"""The names of outputs against those that TensorFlow itself registers."""

import re

import pytest

from ckpt_doctor.graphs.op_outputs import OUTPUTS, place_of
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# What no model computes for its answers, or what is made for one kind of device only.
LEFT_OUT = re.compile(
    "^_|Xla|TPU|Quantized|Requant|BoostedTrees|Sdca|Rpc|SparseCore|Sparse(Core|Dense)Mat|Anonymous|Collective|Minibatch|"
    "Reader|MemoryCache|CooTensor|CSRSparse|DedupData|CandidateSampler|Accumulator|Grad|Backprop|ParamsToCanonical|"
    "Skipgram|Barrier|Unstage|Bounding|Vocab|Accidental|TakeMany|^Foo|Float|IntOutput|TestString|Struct$"
)


@pytest.mark.tensorflow
def test_the_table_is_what_tensorflow_registers(tf):
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    operations = op_def_pb2.OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList()))
    registered = {
        operation.name: tuple(
            ":".join(filter(None, (output.name, output.number_attr or output.type_list_attr)))
            for output in operation.output_arg
        )
        for operation in operations.op
        if len(operation.output_arg) > 1
    }
    # Another release may lack some.
    assert {name: outputs for name, outputs in OUTPUTS.items() if name in registered} == {
        name: outputs for name, outputs in registered.items() if name in OUTPUTS
    }
    assert [name for name in registered if name not in OUTPUTS and not LEFT_OUT.search(name)] == []


def test_a_list_counts_all_of_its_tensors():
    node = pb.NodeDef(op="ParseExampleV2")
    node.attr["num_sparse"].i = 2
    node.attr["sparse_types"].list.type.extend([1, 9])
    node.attr["Tdense"].list.type.extend([1, 1, 1])
    names = ("sparse_indices", "sparse_values", "sparse_shapes", "dense_values", "ragged_values")
    assert [place_of(node, name) for name in names] == [0, 2, 4, 6, 9]


def test_one_output_is_the_first_whatever_its_name():
    assert place_of(pb.NodeDef(op="Split"), "output") == 0
    assert place_of(pb.NodeDef(op="StringSplitV2"), "values") == 1
