"""A graph with its training switch turned: control flow around training is resolved and gone.

TF1 writes `tf.cond(is_training, …)` as Switch and Merge nodes. Once the predicate is known, a Switch is a plain wire on
one side and dead on the other, and a Merge is the wire of its live side. With control flow v2 it is an `If` with a
function for each side, of which the live one is written out. What is left is the graph of one mode, in which batch norm
can be found and cut.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckpt_doctor.graphs.graph import DTYPES, VARIABLE_OPS, Graph, constant_node, sound, split_tensor, tensor_name
from ckpt_doctor.graphs.inline import inline
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_BOOLEAN_ROOTS = frozenset({"Placeholder", "PlaceholderWithDefault", "PlaceholderV2"}) | VARIABLE_OPS
_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_SELECTS = frozenset({"Select", "SelectV2"})
_IFS = frozenset({"If", "StatelessIf"})
# `tf.equal(mode, "train")` decides as a boolean placeholder does, and is switched in its stead.
_COMPARISONS = frozenset({"Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"})
# Branches within branches.
_DEEPEST_IF = 10


def _is_boolean(node: pb.NodeDef) -> bool:
    return DTYPES.get(node.attr["dtype"].type) == "bool" if "dtype" in node.attr else False


def training_switches(graph: Graph) -> tuple[str, ...]:
    """Return the names of the boolean placeholders and variables that decide which branch runs.

    Those are what training code calls `is_training`, `phase`, `keras_learning_phase` …: whatever a Switch or a scalar
    Select is decided by, seen through Identity and logic.
    """
    found: dict[str, None] = {}
    for node in graph.of_op(_SWITCHES | _SELECTS | _IFS):
        inputs = graph.inputs(node)
        if len(inputs) < 2:
            continue
        stack = [inputs[1] if node.op in _SWITCHES else inputs[0]]
        for _ in range(100):
            if not stack:
                break
            source = graph.producer(graph.source(stack.pop()))
            if source is None:
                continue
            is_root = source.op in _BOOLEAN_ROOTS and _is_boolean(source)
            if is_root or (source.op in _COMPARISONS and _compares_a_mode(graph, source)):
                found[source.name] = None
            elif source.op in ("LogicalNot", "LogicalAnd", "LogicalOr", *_SWITCHES):
                stack.extend(graph.inputs(source))
    return tuple(found)


def _compares_a_mode(graph: Graph, node: pb.NodeDef) -> bool:
    """Return whether a comparison is of a fed scalar with a constant."""
    inputs = graph.inputs(node)
    if len(inputs) != 2:
        return False
    makers = [graph.producer(graph.source(name)) for name in inputs]
    constant = [graph.constant(name) is not None for name in inputs]
    fed = [
        maker is not None
        and maker.op in ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")
        and not len(maker.attr["shape"].shape.dim)
        for maker in makers
    ]
    return (constant[0] and fed[1]) or (constant[1] and fed[0])


class _Values:
    """Truth values of boolean tensors, given those of the switches."""

    def __init__(self, graph: Graph, switches: Mapping[str, bool]) -> None:
        self.graph = graph
        self.switches = switches
        self.known: dict[str, bool | None] = {}

    def of(self, tensor: str, depth: int = 50) -> bool | None:
        """Return the value of a boolean tensor, None where it is not decided."""
        if tensor in self.known:
            return self.known[tensor]
        value = self._work_out(tensor, depth) if depth else None
        self.known[tensor] = value
        return value

    def _work_out(self, tensor: str, depth: int) -> bool | None:
        node = self.graph.producer(tensor)
        if node is None:
            return None
        if node.name in self.switches:
            return self.switches[node.name]
        if node.op == "Const":
            value = self.graph.constant(tensor)
            return bool(value.reshape(-1)[0]) if value is not None and value.size == 1 and value.dtype == bool else None
        inputs = self.graph.inputs(node)
        if node.op in ("Identity", "ReadVariableOp", "Reshape", "Squeeze", "Enter", *_SWITCHES) and inputs:
            return self.of(inputs[0], depth - 1)
        if node.op == "LogicalNot" and inputs:
            inner = self.of(inputs[0], depth - 1)
            return None if inner is None else not inner
        if node.op in ("LogicalAnd", "LogicalOr") and len(inputs) == 2:
            sides = [self.of(name, depth - 1) for name in inputs]
            decisive = node.op == "LogicalOr"
            if decisive in sides:
                return decisive
            return None if None in sides else not decisive
        if node.op == "PlaceholderWithDefault" and inputs:
            return self.of(inputs[0], depth - 1)
        return None


class _Wiring:
    """Which tensor every tensor really is, and which never get a value."""

    def __init__(self, graph: Graph, switches: Mapping[str, bool]) -> None:
        self.graph = graph
        values = _Values(graph, switches)
        self.alias: dict[str, str] = {}
        self.dead_tensors: set[str] = set()
        for node in graph.of_op(_SWITCHES | _SELECTS):
            inputs = graph.inputs(node)
            decided = values.of(inputs[1] if node.op in _SWITCHES else inputs[0]) if len(inputs) > 1 else None
            if decided is None:
                continue
            if node.op in _SWITCHES:
                self.alias[f"{node.name}:{int(decided)}"] = inputs[0]
                self.dead_tensors.add(f"{node.name}:{int(not decided)}")
            elif len(inputs) == 3:
                self.alias[f"{node.name}:0"] = inputs[1] if decided else inputs[2]
        self.dead_nodes: set[str] = set()
        self._spread_death()

    def resolve(self, tensor: str) -> str:
        """Return the tensor that `tensor` is another name of."""
        seen = set()
        while tensor in self.alias and tensor not in seen:
            seen.add(tensor)
            tensor = self.alias[tensor]
        return tensor

    def _dead(self, entry: str) -> bool:
        if entry.startswith("^"):
            return entry[1:] in self.dead_nodes
        tensor = self.resolve(tensor_name(entry))
        return tensor in self.dead_tensors or split_tensor(tensor)[0] in self.dead_nodes

    def _spread_death(self) -> None:
        pending = [split_tensor(tensor)[0] for tensor in self.dead_tensors]
        touched = set(pending)
        queue = [name for node in touched for name in self.graph.dependents.get(node, ())]
        while queue:
            name = queue.pop()
            node = self.graph.nodes[name]
            if name in self.dead_nodes:
                continue
            if node.op in _MERGES | _SELECTS and f"{name}:0" in self.alias:
                # Decided already: it dies only with the side that was chosen (an inner cond in a dead outer branch).
                if not self._dead(f"{name}:0"):
                    continue
            elif node.op in _MERGES:
                live = [entry for entry in self.graph.inputs(node) if not self._dead(entry)]
                if len(live) == 1 and len(self.graph.inputs(node)) > 1:
                    self.alias[f"{name}:0"] = live[0]
                    queue.extend(self.graph.dependents.get(name, ()))
                    continue
                if live:
                    continue
            elif not any(self._dead(entry) for entry in node.input):
                continue
            self.dead_nodes.add(name)
            queue.extend(self.graph.dependents.get(name, ()))


def specialise(graph: Graph, switches: Mapping[str, bool]) -> Graph:
    """Return the graph as it is when the named boolean nodes have the given values.

    Tensor names stay those of the original graph, except that a resolved Switch, Merge or Select is replaced by what it
    passes on. Nodes that never run in this mode are gone; gradients and savers stay where they are live.
    """
    graph, _ = _with_branches(graph, switches)
    wiring = _Wiring(graph, switches)
    resolved_nodes = {split_tensor(tensor)[0] for tensor in wiring.alias}
    gone = resolved_nodes | wiring.dead_nodes
    # All spellings of inputs that are others now; most nodes read none of them, and are shared with the whole graph.
    changed = {*wiring.alias, *map(_short, wiring.alias), *(f"^{name}" for name in gone)}
    order: list[pb.NodeDef] = []
    for node in graph.order:
        if node.name in gone:
            continue
        if node.name in switches:
            order.append(constant_node(node.name, np.array(switches[node.name])))
        elif changed.isdisjoint(node.input):
            order.append(node)
        else:
            copy = pb.NodeDef()
            copy.CopyFrom(node)
            del copy.input[:]
            for entry in node.input:
                if not entry.startswith("^"):
                    copy.input.append(_short(wiring.resolve(tensor_name(entry))))
                elif entry[1:] not in gone:
                    copy.input.append(entry)
            order.append(copy)
    return graph.with_order(order)


def resolve_tensor(graph: Graph, switches: Mapping[str, bool], tensor: str) -> str:
    """Return the name that a tensor of the original graph has in `specialise(graph, switches)`."""
    expanded, alias = _with_branches(graph, switches)
    tensor = tensor_name(tensor)
    return _Wiring(expanded, switches).resolve(alias.get(tensor, tensor))


def _with_branches(graph: Graph, switches: Mapping[str, bool]) -> tuple[Graph, dict[str, str]]:
    """Return the graph with the live side of every decided `If` written out, and the new names of their outputs."""
    alias: dict[str, str] = {}
    for _ in range(_DEEPEST_IF):
        values = _Values(graph, switches)
        decided = {node.name: values.of(graph.inputs(node)[0]) for node in graph.of_op(_IFS) if graph.inputs(node)}
        ways = {name: way for name, way in decided.items() if way is not None}
        if not ways:
            break
        proto, written = inline(graph.proto, lambda node, ways=ways: ways.get(node.name))  # type: ignore[misc]
        if not written:
            break
        alias = {old: written.get(new, new) for old, new in alias.items()} | written
        graph = Graph(sound(proto))
    return graph, alias


def _short(tensor: str) -> str:
    return tensor[:-2] if tensor.endswith(":0") else tensor
