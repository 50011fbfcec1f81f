"""What a graph's saver saves, and how to make it save more.

`Saver` leaves its list of names in the graph: the constant that feeds input 1 of its `SaveV2` node. That list is the
proof of `Saver(tf.trainable_variables())`, and what has to grow when a repair adds variables.
Source: tensorflow/python/training/saver.py, `BulkSaverBuilder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ckpt_doctor.checkpoint import numpy_dtype
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.graph import DTYPES, VARIABLE_OPS, Graph, constant_node, plain_dtype, split_tensor, tensor_name
from ckpt_doctor.graphs.replicas import averaged_variable, copies_of
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_FLOATS = frozenset({1, 2, 14, 19})
# SaveV2's inputs are prefix, names, slices, then one tensor for each name.
_FIRST_TENSOR = 3
_SLICE = re.compile(r"(\d+ )+(?P<places>(-|\d+,\d+)(:(-|\d+,\d+))*)")


@dataclass(frozen=True)
class Saver:
    """The saver of a graph.

    Attributes:
        saved: Name in the file to the name of the variable's node.
        save_node: The `SaveV2` node that takes further tensors.
        restore_node: A `RestoreV2` node, whose prefix and device further ones take over.
        restore_op: The node that runs all of the restoring.
        parts: Node of a part of a partitioned variable to its name in the file and its place in the whole.
    """

    saved: Mapping[str, str]
    save_node: str
    restore_node: str
    restore_op: str
    parts: Mapping[str, tuple[str, tuple[slice, ...]]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What the saver puts before the names of all its variables (`Saver({"model/" + v.op.name: v …})`)."""
        added = {name.removesuffix(node) for name, node in self.saved.items() if node not in self.parts}
        return added.pop() if len(added) == 1 and all(name.endswith(node) for name, node in self.saved.items()) else ""


def read_saver(meta: pb.MetaGraphDef, graph: Graph) -> Saver | None:
    """Return the saver that the meta graph names, or None where there is none that writes V2 checkpoints."""
    definition = meta.saver_def
    save = split_tensor(definition.save_tensor_name)[0]
    restore = definition.restore_op_name
    if save not in graph.nodes or restore not in graph.nodes:
        return None
    writers = [graph.nodes[name] for name in graph.ancestors([save]) if graph.nodes[name].op == "SaveV2"]
    readers = [name for name in graph.ancestors([restore]) if graph.nodes[name].op == "RestoreV2"]
    if not writers or not readers:
        return None
    saved: dict[str, str] = {}
    parts: dict[str, tuple[str, tuple[slice, ...]]] = {}
    for node in writers:
        inputs = graph.inputs(node)
        names = graph.constant(inputs[1])
        if names is None or names.dtype != object or names.size != len(inputs) - _FIRST_TENSOR:
            return None
        slices = graph.constant(inputs[2])
        texts = [b""] * names.size if slices is None or slices.size != names.size else slices.reshape(-1).tolist()
        for raw, text, tensor in zip(names.reshape(-1).tolist(), texts, inputs[_FIRST_TENSOR:], strict=True):
            name = raw.decode("utf-8", "replace")
            variable = (
                graph.variable(tensor) or averaged_variable(graph, tensor) or split_tensor(graph.source(tensor))[0]
            )
            place = _place(text)
            if place:
                parts[variable] = (name, place)
            saved.setdefault(name, variable)
    return Saver(saved, min(node.name for node in writers), min(readers), restore, parts)


def _place(text: bytes) -> tuple[slice, ...]:
    """Return where a part lies in its variable, as SaveV2 is told: `8 3 0,4:-` is rows 0 to 3; empty for a whole one.

    Source: tensorflow/python/ops/variables.py, `Variable.SaveSliceInfo.spec`.
    """
    found = _SLICE.fullmatch(text.decode("utf-8", "replace"))
    if found is None:
        return ()
    pairs = [entry.split(",") for entry in found["places"].split(":")]
    return tuple(slice(None) if pair == ["-"] else slice(int(pair[0]), int(pair[0]) + int(pair[1])) for pair in pairs)


def extend_saver(meta: pb.MetaGraphDef, additions: Mapping[str, str]) -> pb.MetaGraphDef:
    """Return the meta graph with its saver saving and restoring further variables.

    Args:
        meta: The meta graph; not changed.
        additions: Name in the file to the name of the variable's node.

    Raises:
        RepairRefused: There is no saver to extend, or a variable is not in the graph.
    """
    result = pb.MetaGraphDef()
    result.CopyFrom(meta)
    graph = Graph(result.graph_def)
    saver = read_saver(result, graph)
    if saver is None:
        raise RepairRefused("the checkpoint's graph has no saver of V2 checkpoints that could restore new variables")
    fresh = {name: node for name, node in additions.items() if name not in saver.saved}
    if not fresh:
        return result
    for name, node in fresh.items():
        if node not in graph.nodes or graph.nodes[node].op not in VARIABLE_OPS:
            raise RepairRefused(f"{name}: the checkpoint's graph has no variable of this name to restore it into")
    _save_more(result.graph_def, graph, saver, fresh)
    _restore_more(result.graph_def, graph, saver, fresh)
    return result


def _unused(graph: Graph, name: str) -> str:
    candidate, number = name, 0
    while candidate in graph.nodes:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _strings(name: str, values: list[bytes], like: pb.NodeDef) -> pb.NodeDef:
    return constant_node(name, np.array(values, object), like.device)


def _add(definition: pb.GraphDef, graph: Graph, node: pb.NodeDef) -> pb.NodeDef:
    added = definition.node.add()
    added.CopyFrom(node)
    graph.nodes[added.name] = added
    return added


def _variable_dtype(node: pb.NodeDef) -> int:
    return plain_dtype(node.attr["dtype"].type)


def _readable(definition: pb.GraphDef, graph: Graph, saver: Saver, variable: pb.NodeDef) -> str:
    """Return the tensor that holds a variable's value, or the mean of its copies on several devices.

    For resources this adds the nodes that read them.
    """
    if variable.op != "VarHandleOp":
        return variable.name
    prefix = saver.save_node.rpartition("/")[0]
    dtype = _variable_dtype(variable)
    read = []
    for name in (variable.name, *copies_of(graph, variable.name)):
        node = pb.NodeDef(
            name=_unused(graph, f"{prefix}/Read/ReadVariableOp"), op="ReadVariableOp", device=graph.nodes[name].device
        )
        node.input.append(name)
        node.attr["dtype"].type = dtype
        read.append(_add(definition, graph, node).name)
    return read[0] if len(read) == 1 or dtype not in _FLOATS else _mean(definition, graph, prefix, read, variable)


def _mean(definition: pb.GraphDef, graph: Graph, prefix: str, tensors: list[str], variable: pb.NodeDef) -> str:
    """Add the nodes that average tensors of a variable's type; return the last one's name."""
    dtype, device = _variable_dtype(variable), variable.device
    total = pb.NodeDef(name=_unused(graph, f"{prefix}/AddN"), op="AddN", device=device, input=tensors)
    total.attr["N"].i = len(tensors)
    total.attr["T"].type = dtype
    count = np.array(len(tensors), numpy_dtype(DTYPES[dtype]))
    number = constant_node(_unused(graph, f"{prefix}/truediv/y"), count, device)
    mean = pb.NodeDef(name=_unused(graph, f"{prefix}/truediv"), op="RealDiv", device=device)
    mean.input.extend(_add(definition, graph, node).name for node in (total, number))
    mean.attr["T"].type = dtype
    return _add(definition, graph, mean).name


def _save_more(definition: pb.GraphDef, graph: Graph, saver: Saver, fresh: Mapping[str, str]) -> None:
    writer = graph.nodes[saver.save_node]
    inputs = [entry for entry in writer.input if not entry.startswith("^")]
    control = [entry for entry in writer.input if entry.startswith("^")]
    for position, additional in ((1, [name.encode() for name in fresh]), (2, [b""] * len(fresh))):
        old = graph.constant(tensor_name(inputs[position]))
        before = [] if old is None else np.asarray(old).reshape(-1).tolist()
        name = _unused(graph, f"{writer.name}/{'tensor_names' if position == 1 else 'shape_and_slices'}_extended")
        inputs[position] = _add(definition, graph, _strings(name, before + additional, writer)).name
    for node in fresh.values():
        variable = graph.nodes[node]
        inputs.append(_readable(definition, graph, saver, variable))
        writer.attr["dtypes"].list.type.append(_variable_dtype(variable))
    del writer.input[:]
    writer.input.extend(inputs + control)


def _restore_more(definition: pb.GraphDef, graph: Graph, saver: Saver, fresh: Mapping[str, str]) -> None:
    model = graph.nodes[saver.restore_node]
    reader = pb.NodeDef(name=_unused(graph, f"{model.name}_extended"), op="RestoreV2", device=model.device)
    names = _add(
        definition, graph, _strings(_unused(graph, f"{reader.name}/tensor_names"), [n.encode() for n in fresh], model)
    )
    slices = _add(
        definition, graph, _strings(_unused(graph, f"{reader.name}/shape_and_slices"), [b""] * len(fresh), model)
    )
    reader.input.extend([model.input[0], names.name, slices.name])
    types = [_variable_dtype(graph.nodes[node]) for node in fresh.values()]
    reader.attr["dtypes"].list.type.extend(types)
    _add(definition, graph, reader)
    runner = graph.nodes[saver.restore_op]
    prefix = model.name.rpartition("/")[0]
    places = [
        (number, graph.nodes[name])
        for number, node in enumerate(fresh.values())
        for name in (node, *copies_of(graph, node))
    ]
    for number, variable in places:
        assign = pb.NodeDef(name=_unused(graph, f"{prefix}/Assign"), device=variable.device)
        value = f"{reader.name}:{number}" if number else reader.name
        assign.input.extend([variable.name, value])
        assign.attr["_class"].list.s.append(b"loc:@" + variable.name.encode())
        if variable.op == "VarHandleOp":
            assign.op = "AssignVariableOp"
            assign.attr["dtype"].type = types[number]
        else:
            assign.op = "Assign"
            assign.attr["T"].type = types[number]
            assign.attr["use_locking"].b = True
            assign.attr["validate_shape"].b = True
        runner.input.append(f"^{_add(definition, graph, assign).name}")
