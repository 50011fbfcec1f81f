"""Dropout that is baked into a graph: found, and bypassed.

Left on, dropout at rate 0.5 makes the next variance about eight times too large. Every way that TensorFlow writes it is
one product (or selection) of scaled values with a mask that compares uniform random numbers with a rate:
`x / keep * floor(keep + uniform)` before TensorFlow 1.13, `x * (1 / keep) * cast(uniform >= rate)` until 2.11,
`select(uniform >= rate, x * (1 / keep), 0)` since (tensorflow/python/ops/nn_ops.py: `dropout`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ckpt_doctor.graphs.graph import Graph, split_tensor, tensor_name
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_UNIFORM = frozenset("RandomUniform StatelessRandomUniform StatelessRandomUniformV2".split())
RANDOM_OPS = _UNIFORM | frozenset(
    "RandomStandardNormal TruncatedNormal RandomUniformInt RandomGamma RandomPoisson RandomPoissonV2 RandomShuffle "
    "Multinomial ParameterizedTruncatedNormal StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal "
    "StatelessTruncatedNormalV2 StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessMultinomial".split()
)
_COMPARISONS = frozenset("GreaterEqual Greater Less LessEqual Floor".split())
_MASK_OPS = _COMPARISONS | frozenset("Cast Add AddV2 Sub Mul Identity Reshape Rsub".split())
_SCALES = frozenset("Mul RealDiv Div".split())


def bypass_dropout(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """Return the graph with every dropout replaced by its input, and the names of the nodes that were replaced."""
    alias: dict[str, str] = {}
    if not any(graph.of_op(_UNIFORM)):
        return graph, ()
    for node in graph.of_op(("Mul", "Select", "SelectV2")):
        kept = _kept_values(graph, node)
        if kept is not None:
            alias[f"{node.name}:0"] = kept
    if not alias:
        return graph, ()
    order = []
    for node in graph.order:
        changed = [entry for entry in node.input if not entry.startswith("^") and tensor_name(entry) in alias]
        if changed:
            copy = pb.NodeDef()
            copy.CopyFrom(node)
            for position, entry in enumerate(copy.input):
                if entry in changed:
                    copy.input[position] = _follow(alias, tensor_name(entry))
            node = copy
        order.append(node)
    return graph.with_order(order), tuple(split_tensor(tensor)[0] for tensor in alias)


def random_nodes(graph: Graph, tensors: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the random ops that the tensors depend on, loops and branches that hold some included."""
    needed = graph.ancestors((split_tensor(tensor)[0] for tensor in tensors), control=False)
    drawing = _drawing_functions(graph)
    return tuple(sorted(name for name in needed if _draws(graph.nodes[name], drawing)))


def _draws(node: pb.NodeDef, drawing: Collection[str]) -> bool:
    return node.op in RANDOM_OPS or any(value.func.name in drawing for value in node.attr.values())


def _drawing_functions(graph: Graph) -> set[str]:
    """Return the names of the functions of a graph in which random numbers are drawn."""
    found: set[str] = set()
    while True:
        more = {
            function.signature.name
            for function in graph.proto.library.function
            if function.signature.name not in found and any(_draws(node, found) for node in function.node_def)
        }
        if not more:
            return found
        found |= more


def _follow(alias: dict[str, str], tensor: str) -> str:
    seen = set()
    while tensor in alias and tensor not in seen:  # A damaged graph may feed a dropout to itself.
        seen.add(tensor)
        tensor = alias[tensor]
    return tensor


def _kept_values(graph: Graph, node: pb.NodeDef) -> str | None:
    """Return the tensor that a dropout's last node would give at inference, or None where it is no dropout."""
    inputs = graph.inputs(node)
    if node.op == "Mul":
        for mask, values in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            if _is_mask(graph, mask):
                return _unscaled(graph, values)
        return None
    return _unscaled(graph, inputs[1]) if len(inputs) == 3 and _is_mask(graph, inputs[0]) else None


def _is_mask(graph: Graph, tensor: str) -> bool:
    """Return whether a tensor compares uniform random numbers with constants and depends on nothing else."""
    compared = uniform = False
    stack = [tensor]
    for _ in range(40):
        if not stack:
            break
        node = graph.producer(stack.pop())
        if node is None:
            return False
        if node.op in _UNIFORM:
            # Its inputs are the shape of the data and a seed: neither is a value.
            uniform = True
        elif node.op in _MASK_OPS:
            compared = compared or node.op in _COMPARISONS
            stack.extend(graph.inputs(node))
        elif node.op not in ("Const", "Placeholder", "PlaceholderWithDefault"):
            return False
    return compared and uniform and not stack


def _unscaled(graph: Graph, tensor: str) -> str | None:
    """Return x where `tensor` is x divided by a rate that depends on no data, or None."""
    node = graph.producer(tensor)
    if node is None or node.op not in _SCALES:
        return None
    left, right = graph.inputs(node)[:2]
    if _is_rate(graph, right):
        return left
    return right if node.op == "Mul" and _is_rate(graph, left) else None


def _is_rate(graph: Graph, tensor: str) -> bool:
    """Return whether a tensor is one number made of constants and placeholders of no dimensions."""
    value = graph.constant(tensor)
    if value is not None:
        return bool(value.size == 1)
    names = graph.ancestors([split_tensor(tensor)[0]], control=False)
    for name in names:
        node = graph.nodes[name]
        if node.op in ("Placeholder", "PlaceholderWithDefault"):
            shape = node.attr["shape"].shape
            if len(shape.dim):
                return False
        elif node.op not in ("Const", "Sub", "RealDiv", "Div", "Mul", "Identity", "Cast", "Add", "AddV2", "Reciprocal"):
            return False
    return len(names) < 20
