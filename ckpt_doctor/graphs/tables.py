"""The lookup tables of a graph, and what fills them.

A loader of TensorFlow runs `tables_initializer`, or the init op of a SavedModel, before all else; a saver fills a
`MutableHashTable`. Here the operations that fill the tables which a cut graph reads are added to it.
Source: tensorflow/core/ops/lookup_ops.cc; tensorflow/python/ops/lookup_ops.py (`MutableHashTable._Saveable`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.cut import CutGraph
from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph, constant_node, split_tensor, tensor_name
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_TABLES = frozenset(
    name + version
    for name in ("HashTable", "MutableHashTable", "MutableHashTableOfTensors", "MutableDenseHashTable")
    for version in ("", "V2")
) | {"AnonymousHashTable", "AnonymousMutableHashTable", "AnonymousMutableHashTableOfTensors"}
_FROM_VALUES = frozenset("InitializeTable InitializeTableV2 LookupTableImport LookupTableImportV2".split())
_FROM_FILE = frozenset("InitializeTableFromTextFile InitializeTableFromTextFileV2".split())
# What has no value before a run.
_SOURCES = frozenset("Placeholder PlaceholderV2 PlaceholderWithDefault".split()) | VARIABLE_OPS

# Gives the value of a variable of the checkpoint, None where it has none of that name.
ValueOf = Callable[[str], "Array | None"]


def fill_tables(
    graph: Graph, opened: CutGraph, assets: Mapping[str, str], value_of: ValueOf, *, remote: bool = False
) -> CutGraph:
    """Return a cut graph with what fills its tables.

    Args:
        graph: The whole graph.
        opened: The cut graph; not changed.
        assets: Tensor that names a file of a SavedModel, to the path of the file.
        value_of: Gives the entries of tables that a checkpoint holds.
        remote: Whether a table may be filled from a file that is not on this machine.

    Raises:
        RepairRefused: Nothing fills a table, or what does cannot be found.
    """
    tables = [node.name for node in opened.proto.node if node.op in _TABLES]
    if not tables:
        return opened
    result = pb.GraphDef()
    result.CopyFrom(opened.proto)
    filler = _Filler(graph, result, assets, value_of, remote)
    starters = tuple(filler.fill(name) for name in tables)
    return replace(opened, proto=result, starters=(*opened.starters, *starters))


class _Filler:
    """Adds to a graph what fills its tables."""

    def __init__(
        self, graph: Graph, result: pb.GraphDef, assets: Mapping[str, str], value_of: ValueOf, remote: bool
    ) -> None:
        self.graph = graph
        self.result = result
        self.assets = assets
        self.value_of = value_of
        self.remote = remote
        self.there = {node.name for node in result.node}

    def fill(self, table: str) -> str:
        """Return the operation that fills a table."""
        fillers = [
            node
            for node in self.graph.of_op(_FROM_VALUES | _FROM_FILE)
            if self.graph.source(self.graph.inputs(node)[0]) == f"{table}:0"
        ]
        # What a graph initialises a table with goes before what its saver would put there.
        node = min(fillers, key=lambda node: "Import" in node.op, default=None)
        if node is None:
            raise RepairRefused(
                f"the graph looks values up in the table {table}, but does not show what fills the table"
            )
        copy = pb.NodeDef()
        copy.CopyFrom(node)
        inputs = self.graph.inputs(node)
        del copy.input[:]
        copy.input.append(table)
        copy.input.extend(
            self._path(table, tensor) if node.op in _FROM_FILE else self._values(table, tensor) for tensor in inputs[1:]
        )
        if copy.name not in self.there:
            self._add(copy)
        return copy.name

    def _path(self, table: str, tensor: str) -> str:
        """Return the tensor of a constant with the path of the file that fills a table."""
        tensor = self.graph.source(tensor)
        if tensor not in self.assets:
            # A SavedModel of TensorFlow 2 keeps the path in a variable.
            variable = self.graph.variable(tensor)
            assigned = self.graph.assignments.get(variable or "", [])
            tensor = next((self.graph.source(self.graph.inputs(node)[1]) for node in assigned), tensor)
        value = self.graph.constant(tensor)
        path = self.assets.get(tensor)
        if path is None and value is not None and value.dtype == object and value.size == 1:
            path = value.reshape(-1)[0].decode("utf-8", "surrogateescape")
        if path is None:
            raise RepairRefused(f"the graph fills the table {table} from a file that it does not name")
        if "://" in path and not self.remote:
            raise RepairRefused(
                f"the graph fills the table {table} from {path}, over the network; if you trust it, allow it with "
                "--allow-code"
            )
        if "://" not in path and not Path(path).is_file():
            raise RepairRefused(
                f"the graph fills the table {table} from the file {path}, which does not exist; restore it as it was "
                "in training"
            )
        return self._constant(f"{table}/file", np.array(path.encode("utf-8", "surrogateescape"), object))

    def _values(self, table: str, tensor: str) -> str:
        """Return a tensor of keys or values; what makes it is added."""
        made = self.graph.producer(self.graph.source(tensor))
        if made is not None and made.op == "RestoreV2":
            return self._restored(table, made, split_tensor(self.graph.source(tensor))[1])
        names = self.graph.ancestors([split_tensor(tensor)[0]], control=False)
        unknown = sorted(name for name in names if self.graph.nodes[name].op in _SOURCES)
        if unknown:
            raise RepairRefused(
                f"the graph fills the table {table} with what {unknown[0]} holds, which is neither a constant nor in "
                "the checkpoint"
            )
        for name in sorted(names - self.there):
            copy = pb.NodeDef()
            copy.CopyFrom(self.graph.nodes[name])
            copy.device = ""
            kept = [entry for entry in copy.input if not entry.startswith("^")]
            del copy.input[:]
            copy.input.extend(kept)
            self._add(copy)
        return tensor

    def _restored(self, table: str, restore: pb.NodeDef, number: int) -> str:
        """Return the tensor of a constant with entries that a saver restores."""
        names = self.graph.constant(self.graph.inputs(restore)[1])
        name = names.reshape(-1)[number].decode() if names is not None and number < names.size else "?"
        value = self.value_of(name)
        if value is None:
            raise RepairRefused(f"the saver fills the table {table} with {name}, which the checkpoint lacks")
        return self._constant(f"{table}/{number}", value)

    def _constant(self, name: str, value: Array) -> str:
        node = constant_node(f"ckpt_doctor/table/{name}", value)
        self._add(node)
        return tensor_name(node.name)

    def _add(self, node: pb.NodeDef) -> None:
        for name in ("_class", "_output_shapes"):
            node.attr.pop(name, None)
        self.result.node.append(node)
        self.there.add(node.name)
