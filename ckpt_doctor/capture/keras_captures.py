"""What a traced Keras model takes from outside of its graph: variables, constants, lookup tables, states of RNNs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_PREFIX = "ckpt_doctor/table"


@dataclass(frozen=True, eq=False)
class Captures:
    """The nodes that take the place of what was captured.

    Attributes:
        nodes: Name of a placeholder of the traced graph to the node that takes its place.
        values: Variable node to a function that reads its value.
        added: Nodes that fill tables.
        starters: Those of them that run once before all else.
    """

    nodes: dict[str, pb.NodeDef] = field(default_factory=dict)
    values: dict[str, Callable[[], Array]] = field(default_factory=dict)
    added: list[pb.NodeDef] = field(default_factory=list)
    starters: list[str] = field(default_factory=list)


def captures_of(model: Any, graph: Any, needed: set[str]) -> Captures:
    """Return what takes the place of what a traced graph captured.

    Args:
        model: The live model.
        graph: TensorFlow's graph of the traced function.
        needed: Names of the nodes that are run; what only others read is left out.

    Raises:
        RepairRefused: A value is neither of the file nor of the model: a variable that Keras does not track, a table
            without entries.
    """
    tf = tensorflow()
    handles = {id(variable.handle): variable for variable in variables_of(model)}
    handles |= {id(variable.handle): variable for variable in states_of(model)}
    proto = graph.as_graph_def()
    found = Captures()
    for external, internal in graph.captures:
        name = internal.op.name
        if name not in needed:
            continue
        node = pb.NodeDef(name=name)
        if id(external) in handles:
            variable = handles[id(external)]
            node.op = "VarHandleOp"
            node.attr["dtype"].type = variable.dtype.as_datatype_enum
            node.attr["shape"].shape.ParseFromString(variable.shape.as_proto().SerializeToString())
            node.attr["shared_name"].s = name.encode()
            found.values[name] = variable.numpy
        elif external.dtype == tf.resource:
            keys, values = _exported(model, proto, name, external)
            _fill(found, node, keys, values)
        else:
            node = _constant(name, external)
        found.nodes[name] = node
    return found


def variables_of(model: Any) -> Iterator[Any]:
    """Yield TensorFlow's own of every variable that a model tracks.

    Keras 2 lists something there that is none, by which it loads the vocabulary of a lookup layer.
    """
    yield from (variable for variable in map(wrapped_variable, model.variables) if hasattr(variable, "handle"))


def states_of(model: Any) -> Iterator[Any]:
    """Yield the variables in which stateful RNN layers keep what they carry from batch to batch."""
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            for state in tensorflow().nest.flatten(getattr(layer, "states", None) or ()):
                variable = wrapped_variable(state)
                if hasattr(variable, "handle"):
                    yield variable


def wrapped_variable(variable: Any) -> Any:
    """Return TensorFlow's variable of one of Keras: Keras 3 has it as `value`; on a plain one that is a method."""
    wrapped = getattr(variable, "value", None)
    return variable if wrapped is None or callable(wrapped) else wrapped


def _exported(model: Any, proto: Any, name: str, handle: Any) -> tuple[Any, Any]:
    """Return keys and values of the table that a placeholder of a traced graph stands for."""
    tf = tensorflow()
    types = _table_types(proto, name)
    if types is None:
        raise RepairRefused(
            f"the model {model.name} reads {name}, which is neither a lookup table nor a variable that Keras tracks, "
            "so the file holds no value for it; pass a model that tracks it, as an attribute of a layer, with --model"
        )
    try:
        # With other types than the table's, TensorFlow ends the process.
        table = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=types[0], Tvalues=types[1])
        empty = not len(table.keys)
    except tf.errors.AbortedError:  # "HashTable is not initialized"
        empty = True
    if empty:
        raise RepairRefused(
            f"the model {model.name} looks values up in the table {name}, which is empty, so its vocabulary is not in "
            "the file; pass a function that sets it (`adapt`, `set_vocabulary`) with --model path.py:FUNCTION"
        )
    return table.keys, table.values


def _table_types(proto: Any, name: str) -> tuple[int, int] | None:
    """Return the types of keys and values with which a graph reads the table of a handle; None if it reads none."""
    functions = {function.signature.name: function for function in proto.library.function}
    places: list[tuple[str | None, str]] = [(None, name)]
    for function, tensor in places:
        for node in proto.node if function is None else functions[function].node_def:
            for position, entry in enumerate(node.input):
                if entry.split(":")[0] != tensor:
                    continue
                if node.op.startswith("LookupTableFind") and not position:
                    return node.attr["Tin"].type, node.attr["Tout"].type
                # The first input of a branch is its condition.
                place = position - (node.op in ("If", "StatelessIf"))
                for attribute in node.attr.values():
                    called = functions.get(attribute.func.name)
                    if called is not None and 0 <= place < len(called.signature.input_arg):
                        inner = (attribute.func.name, called.signature.input_arg[place].name)
                        places += [inner] if inner not in places else []
    return None


def _fill(found: Captures, table: pb.NodeDef, keys: Any, values: Any) -> None:
    """Make a node a table, and add the nodes that fill it.

    A table that training may still add to is read as one that does not change: its content is that of the file.
    """
    prefix = f"{_PREFIX}_{len(found.starters)}"
    constants = [_constant(f"{prefix}/{role}", value) for role, value in (("keys", keys), ("values", values))]
    key_type, value_type = keys.dtype.as_datatype_enum, values.dtype.as_datatype_enum
    table.op = "HashTableV2" if values.shape.rank == 1 else "MutableHashTableOfTensorsV2"
    table.attr["key_dtype"].type, table.attr["value_dtype"].type = key_type, value_type
    table.attr["use_node_name_sharing"].b = True
    filled = pb.NodeDef(name=f"{prefix}/fill", input=[table.name, *(node.name for node in constants)])
    if values.shape.rank == 1:
        filled.op, types = "InitializeTableV2", ("Tkey", "Tval")
    else:
        table.attr["value_shape"].shape.ParseFromString(values.shape[1:].as_proto().SerializeToString())
        filled.op, types = "LookupTableImportV2", ("Tin", "Tout")
    filled.attr[types[0]].type, filled.attr[types[1]].type = key_type, value_type
    found.added.extend([*constants, filled])
    found.starters.append(filled.name)


def _constant(name: str, value: Any) -> pb.NodeDef:
    node = pb.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = value.dtype.as_datatype_enum
    proto = tensorflow().make_tensor_proto(np.asarray(value.numpy()), dtype=value.dtype)
    node.attr["value"].tensor.ParseFromString(proto.SerializeToString())
    return node
