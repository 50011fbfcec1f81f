"""A `GraphDef` to walk in: who feeds whom, and what is constant. No TensorFlow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_doctor.checkpoint import numpy_dtype
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# tensorflow/core/framework/types.proto: the types that constants of interest have.
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64", 9: "int64",
    10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 22: "uint32",
    23: "uint64",
}  # fmt: skip
_NUMBERS = {name: number for number, name in DTYPES.items()}
FLOAT32 = 1
# How many steps a graph may take, see `Graph`: a step is a tenth of a microsecond to three.
_STEPS = 200_000
_STEPS_A_NODE = 50
# A constant that is stored as one number may declare any size; none that is looked at has more elements than this.
_MOST_REPEATED = 1 << 24
_MOST_DIMENSIONS = 32  # NumPy's limit before 2.0.
# Reference types are the plain type plus 100.
_REFERENCE = 100

# Ops that pass their first input on, as far as statistics are concerned.
PASS_THROUGH = frozenset(
    "Identity StopGradient Reshape Squeeze ExpandDims Cast ReadVariableOp Enter RefEnter Snapshot PreventGradient "
    "CheckNumerics EnsureShape RefIdentity".split()
)
# What a partitioner adds to the names of the parts of a variable; files hold it whole, without.
PART = re.compile(r"/part_\d+$")
VARIABLE_OPS = frozenset("VariableV2 Variable VarHandleOp AutoReloadVariable".split())

ASSIGN_OPS = frozenset("Assign AssignAdd AssignSub AssignVariableOp AssignAddVariableOp AssignSubVariableOp".split())

# The fewest inputs with which an operation makes sense (tensorflow/core/ops/*.cc); a damaged graph may hold fewer.
_FEWEST_INPUTS = {
    name: number
    for number, names in {
        1: "Rsqrt Sqrt Square Neg Identity RefIdentity Cast Relu Abs Reciprocal Inv Floor StopGradient Squeeze Enter "
        "RefEnter ReadVariableOp PlaceholderWithDefault If StatelessIf LogicalNot RandomUniform Merge RefMerge Pack",
        2: "Mul Sub Add AddV2 BiasAdd RealDiv Div DivNoNan Maximum Minimum SquaredDifference Pow Mean Sum Reshape "
        "ExpandDims Fill Switch RefSwitch Assign AssignAdd AssignSub AssignVariableOp AssignAddVariableOp "
        "AssignSubVariableOp Equal NotEqual Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr ConcatV2 GatherV2",
        3: "Select SelectV2 SaveV2 RestoreV2 Range",
        5: "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
    }.items()
    for name in names.split()
}


def sound(proto: pb.GraphDef) -> pb.GraphDef:
    """Return a graph in which every operation has the inputs that it needs; one that lacks some does nothing."""
    broken = {
        node.name
        for node in proto.node
        if node.op in _FEWEST_INPUTS
        and sum(not entry.startswith("^") for entry in node.input) < _FEWEST_INPUTS[node.op]
    }
    if not broken:
        return proto
    result = pb.GraphDef()
    result.CopyFrom(proto)
    for node in result.node:
        if node.name in broken:
            node.op = "NoOp"
            del node.input[:]
    return result


def split_tensor(name: str) -> tuple[str, int]:
    """Return node and output index of a tensor name: `a/b:1` → `("a/b", 1)`, `a/b` → `("a/b", 0)`."""
    node, colon, index = name.rpartition(":")
    if colon and is_number(index):
        return node, int(index)
    return name, 0


def is_number(text: str) -> bool:
    """Return whether a text of a damaged graph, too, is a number: `"²".isdigit()` holds, and `int` refuses it.

    Python refuses to parse more than 4,300 digits as well; no number in a graph has more than 20.
    """
    return len(text) <= 20 and text.isdecimal()


def tensor_name(name: str) -> str:
    """Return the one spelling of a tensor name: `a/b` → `a/b:0`."""
    node, index = split_tensor(name)
    return f"{node}:{index}"


def constant_of(tensor: pb.Tensor) -> npt.NDArray[Any] | None:
    """Return the value of a `TensorProto`; None for types that hold no numbers or text, or where it is malformed.

    A list shorter than the shape repeats its last value (tensorflow/core/framework/tensor.proto).
    """
    try:
        name = DTYPES[tensor.dtype]
        dtype = numpy_dtype(name)
    except KeyError:
        return None
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    count = math.prod(shape)
    if any(size < 0 for size in shape) or count > 1 << 28:
        return None
    if tensor.tensor_content:
        if name == "string" or len(tensor.tensor_content) != count * dtype.itemsize:
            return None
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values: list[Any]
    if name == "string":
        values = list(tensor.string_val)
    elif name in ("float16", "bfloat16"):
        values = list(np.array(tensor.half_val, np.int64).astype(np.uint16).view(dtype))
    else:
        field: Any = {
            "float32": tensor.float_val, "float64": tensor.double_val, "int64": tensor.int64_val,
            "bool": tensor.bool_val, "uint32": tensor.uint32_val, "uint64": tensor.uint64_val,
        }.get(name)  # fmt: skip
        # `int_val` holds 32 bits whatever the type has.
        values = list(np.array(tensor.int_val, np.int64).astype(dtype) if field is None else field)
    if count > max(len(values), _MOST_REPEATED) or len(shape) > _MOST_DIMENSIONS:
        return None
    if not values:
        values = [b"" if name == "string" else 0]
    result = np.empty(count, dtype)
    kept = values[:count]
    result[: len(kept)] = kept
    result[len(kept) :] = values[-1]
    return result.reshape(shape)


def constant_node(name: str, value: npt.NDArray[Any], device: str = "") -> pb.NodeDef:
    """Return a `Const` node; of an array of objects, one of the bytes that it holds."""
    dtype = _NUMBERS["string" if value.dtype == object else value.dtype.name]
    node = pb.NodeDef(name=name, op="Const", device=device)
    node.attr["dtype"].type = dtype
    tensor = node.attr["value"].tensor
    tensor.dtype = dtype
    tensor.tensor_shape.SetInParent()
    for size in value.shape:
        tensor.tensor_shape.dim.add().size = size
    if value.dtype == object:
        tensor.string_val.extend(bytes(text) for text in value.reshape(-1))
    else:
        tensor.tensor_content = np.ascontiguousarray(value).tobytes()
    return node


class TooMuchWork(RepairRefused):
    """To understand a graph would take more steps than any that TensorFlow writes needs."""


class Graph:
    """Nodes by name, with their inputs and consumers.

    Every step that is taken in it counts. Graphs that TensorFlow writes need fewer than five steps a node, measured on
    all of `fixtures` and on a training graph of 300 layers; a damaged or hostile one, in which every path is followed
    again and again, is given up in seconds.

    Args:
        proto: The graph; not changed.
        order: Its nodes, where they are others than those of `proto`; not changed either.

    Attributes:
        order: The nodes in the order of the graph.
        nodes: Nodes by name.
    """

    def __init__(self, proto: pb.GraphDef, order: Sequence[pb.NodeDef] | None = None) -> None:
        self._base = proto
        self._is_whole = order is None
        self.order: Sequence[pb.NodeDef] = list(proto.node) if order is None else order
        self.nodes: dict[str, pb.NodeDef] = {node.name: node for node in self.order}
        self._sources: dict[str, str] = {}
        self._constants: dict[tuple[str, int], npt.NDArray[Any] | None] = {}
        self._steps_left = _STEPS + _STEPS_A_NODE * len(self.order)

    @cached_property
    def proto(self) -> pb.GraphDef:
        """The graph itself; not changed."""
        if self._is_whole:
            return self._base
        result = pb.GraphDef()
        result.versions.CopyFrom(self._base.versions)
        result.library.CopyFrom(self._base.library)
        result.node.extend(self.order)
        return result

    def with_order(self, order: Sequence[pb.NodeDef]) -> Graph:
        """Return the graph of other nodes, most of which may be the same; none is copied."""
        return Graph(self._base, order)

    def spend(self, steps: int = 1) -> None:
        """Count steps.

        Raises:
            TooMuchWork: There were too many.
        """
        self._steps_left -= steps
        if self._steps_left < 0:
            raise TooMuchWork(
                f"its {len(self.nodes)} operations are so entangled that following them was given up; "
                "graphs that TensorFlow writes take far fewer steps"
            )

    def inputs(self, node: pb.NodeDef) -> list[str]:
        """Return the names of the tensors that feed `node`, without control inputs.

        Raises:
            TooMuchWork: See `spend`; so may whatever walks in the graph.
        """
        self.spend()
        return [tensor_name(name) for name in node.input if not name.startswith("^")]

    def producer(self, tensor: str) -> pb.NodeDef | None:
        """Return the node that makes a tensor, or None if the graph lacks it."""
        return self.nodes.get(split_tensor(tensor)[0])

    @cached_property
    def consumers(self) -> dict[str, list[tuple[pb.NodeDef, int]]]:
        """Tensor name to the nodes that read it, each with the position of the input."""
        table: dict[str, list[tuple[pb.NodeDef, int]]] = {}
        for node in self.order:
            for position, tensor in enumerate(self.inputs(node)):
                table.setdefault(tensor, []).append((node, position))
        return table

    @cached_property
    def assignments(self) -> dict[str, list[pb.NodeDef]]:
        """Variable's node to the nodes that assign to it, initialisers and restores among them."""
        table: dict[str, list[pb.NodeDef]] = {}
        for node in self.of_op(ASSIGN_OPS):
            inputs = self.inputs(node)
            variable = self.variable(inputs[0]) if len(inputs) > 1 else None
            if variable is not None:
                table.setdefault(variable, []).append(node)
        return table

    @cached_property
    def dependents(self) -> dict[str, list[str]]:
        """Node name to the names of the nodes that wait for it, by data or control."""
        table: dict[str, list[str]] = {}
        for node in self.order:
            for name in node.input:
                source = name[1:] if name.startswith("^") else split_tensor(name)[0]
                table.setdefault(source, []).append(node.name)
        return table

    def source(self, tensor: str) -> str:
        """Return the tensor that `tensor` is a mere copy, cast or reshape of, as far back as it goes."""
        passed: list[str] = []
        source = tensor
        for _ in range(1000):
            if source in self._sources:
                source = self._sources[source]
                break
            node = self.producer(source)
            inputs = self.inputs(node) if node is not None and node.op in PASS_THROUGH else []
            if not inputs:
                break
            passed.append(source)
            source = inputs[0]
        self._sources |= dict.fromkeys(passed, source)
        return source

    def variable(self, tensor: str) -> str | None:
        """Return the name of the variable's node that `tensor` is read from, or None.

        Of a variable that is stored in parts, that of the first part.
        """
        node = self.producer(self.source(tensor))
        if node is not None and node.op == "ConcatV2":
            parts = [self.producer(self.source(name)) for name in self.inputs(node)[:-1]]
            if parts and all(part is not None and PART.search(part.name) for part in parts):
                node = parts[0]
        return node.name if node is not None and node.op in VARIABLE_OPS else None

    def constant(self, tensor: str, depth: int = 20) -> npt.NDArray[Any] | None:
        """Return the value of a tensor that depends on constants only, or None.

        Knows the arithmetic that decays, epsilons and axes are written in.
        """
        key = tensor, depth
        if key not in self._constants:
            self._constants[key] = self._constant(tensor, depth)
        return self._constants[key]

    def _constant(self, tensor: str, depth: int) -> npt.NDArray[Any] | None:
        node = self.producer(tensor)
        if node is None or depth == 0:
            return None
        if node.op == "Const":
            return constant_of(node.attr["value"].tensor)
        inputs = self.inputs(node)
        if node.op in ("Identity", "StopGradient", "Cast", "Reshape", "Squeeze", "ExpandDims") and inputs:
            value = self.constant(inputs[0], depth - 1)
            if value is not None and node.op == "Cast" and "DstT" in node.attr:
                name = DTYPES.get(node.attr["DstT"].type)
                if not name or name in ("string", "resource") or value.dtype.kind == "O":
                    return None
                with np.errstate(all="ignore"):
                    return value.astype(numpy_dtype(name))
            return value
        if node.op in _ARITHMETIC and len(inputs) == 2:
            left, right = (self.constant(name, depth - 1) for name in inputs)
            if left is None or right is None or "O" in (left.dtype.kind, right.dtype.kind):
                return None
            # Of a damaged graph, shapes need not fit, and may make a giant of two vectors; NumPy subtracts no truths.
            try:
                size = math.prod(np.broadcast_shapes(left.shape, right.shape))
            except ValueError:
                return None
            if size > max(left.size, right.size) or bool in (left.dtype, right.dtype):
                return None
            with np.errstate(all="ignore"):
                return np.asarray(_ARITHMETIC[node.op](left, right))
        return None

    def scalar(self, tensor: str) -> float | None:
        """Return a constant of one element as a float, or None."""
        value = self.constant(tensor)
        if value is None or value.size != 1 or value.dtype.kind not in "fiub":
            return None
        return float(value.reshape(-1)[0])

    def ancestors(self, names: Iterable[str], *, control: bool = True) -> set[str]:
        """Return the names of all nodes that the named nodes need, themselves included."""
        seen: set[str] = set()
        stack = [name for name in names if name in self.nodes]
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            for entry in self.nodes[name].input:
                if entry.startswith("^"):
                    if not control:
                        continue
                    entry = entry[1:]
                source = split_tensor(entry)[0]
                if source not in seen and source in self.nodes:
                    stack.append(source)
        self.spend(len(seen))
        return seen

    def descendants(self, names: Iterable[str]) -> set[str]:
        """Return the names of all nodes that wait for any of the named ones, themselves included."""
        seen: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack.extend(self.dependents.get(name, ()))
        self.spend(len(seen))
        return seen

    def of_op(self, ops: Iterable[str]) -> Iterator[pb.NodeDef]:
        """Yield the nodes with one of the ops, in the order of the graph."""
        wanted = frozenset(ops)
        return (node for node in self.order if node.op in wanted)


_ARITHMETIC = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Div": np.divide,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
}


def plain_dtype(number: int) -> int:
    """Return the number of the plain type of a reference type; a plain type is its own."""
    return number - _REFERENCE if number > _REFERENCE else number
