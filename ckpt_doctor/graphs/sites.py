"""Where a graph normalises over the batch: fused ops and the arithmetic that people write by hand.

Works on a specialised graph (`specialise`): no training switch is left in it. Finds
* `FusedBatchNorm*` nodes; an absent `is_training` means true (attributes equal to the op's default may be stripped);
* `x * inv + (beta - mean * inv)` with `inv = rsqrt(variance + epsilon) [* gamma]`, which `tf.nn.batch_normalization`
  writes;
* `(x - mean) * rsqrt(variance + epsilon)` or `/ sqrt(…)`, then `[* gamma] [+ beta]`.
Normalisation over other axes than the batch (layer, group, instance norm) is told by the axes of its moments, and is
listed as not batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ckpt_doctor.graphs.facts import Site
from ckpt_doctor.graphs.graph import PASS_THROUGH, Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

FUSED_OPS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_ADDS = frozenset({"Add", "AddV2", "BiasAdd"})
# tensorflow/core/ops/nn_ops.cc: the default of FusedBatchNorm's attribute `epsilon`.
_FUSED_DEFAULT_EPSILON = 1e-4

Statistics = Literal["stored", "batch", "mixed", "other", "unknown"]

# What may stand between a statistic and the sums or variables that it is computed from: moments from sums and sums of
# squares (`normalize_moments`, `weighted_moments`), a guard against negative variances, averaging over devices, and
# `phase * batch + (1 - phase) * stored`.
_FORMULA = PASS_THROUGH | frozenset(
    "Mul Sub Add AddV2 AddN RealDiv Div DivNoNan Square SquaredDifference Pow Maximum Minimum Relu Abs Neg Reciprocal "
    "Inv Select SelectV2 Merge Pack Fill NcclAllReduce CollectiveReduce CollectiveReduceV2 HorovodAllreduce "
    "CrossReplicaSum StridedSlice GatherV2".split()
)
# Numbers about a tensor, not values of it.
_COUNTS = frozenset("Shape ShapeN Size Rank Prod Range".split())
_LONGEST_FORMULA = 14
_WIDEST_FORMULA = 64


@dataclass(frozen=True)
class FoundSite:
    """A site, and where its statistics come from.

    Attributes:
        site: The tensors.
        statistics: `stored` variables (or constants), moments of the `batch`, `mixed`: a sum of both that a fed number
            decides, `other`: moments over other axes than the batch, or `unknown`.
        mean: The tensor that holds the mean.
        variance: The tensor that holds the variance.
        node: The name of the node that makes `y`.
    """

    site: Site
    statistics: Statistics
    mean: str
    variance: str
    node: str


def find_sites(graph: Graph) -> list[FoundSite]:
    """Return every place where `graph` normalises, in the order of the graph."""
    found = [*_fused(graph), *_written_out(graph)]
    position = {node.name: number for number, node in enumerate(graph.order)}
    unique = {item.site.y: item for item in found}
    return sorted(unique.values(), key=lambda item: position[item.node])


def _fused(graph: Graph) -> Iterator[FoundSite]:
    for node in graph.of_op(FUSED_OPS):
        inputs = graph.inputs(node)
        if len(inputs) < 5:
            continue
        training = node.attr["is_training"].b if "is_training" in node.attr else True
        layout = node.attr["data_format"].s if "data_format" in node.attr else b"NHWC"
        statistics: Statistics = "batch" if training else "stored"
        if training and _is_layer_norm(graph, node):
            statistics = "other"
        yield FoundSite(
            Site(
                x=inputs[0],
                y=f"{node.name}:0",
                axis=1 if layout.startswith(b"NC") else -1,
                epsilon=node.attr["epsilon"].f if "epsilon" in node.attr else _FUSED_DEFAULT_EPSILON,
                scale=inputs[1],
                offset=inputs[2],
            ),
            statistics,
            f"{node.name}:1" if training else inputs[3],
            f"{node.name}:2" if training else inputs[4],
            node.name,
        )


def _is_layer_norm(graph: Graph, node: pb.NodeDef) -> bool:
    """Return whether a fused op in training mode is Keras's way to write layer normalisation.

    There the scale and offset of the op are ones and zeros of a length known only at run time, since every "channel" is
    a sample.
    """
    makers = (graph.producer(graph.source(name)) for name in graph.inputs(node)[1:3])
    return any(maker is not None and maker.op in ("Fill", "OnesLike", "ZerosLike") for maker in makers)


def _readers(graph: Graph, tensor: str, depth: int = 6) -> Iterator[tuple[pb.NodeDef, int]]:
    """Yield the consumers of a tensor, seen through copies, casts and reshapes."""
    for node, position in graph.consumers.get(tensor, ()):
        graph.spend()
        if node.op in PASS_THROUGH and position == 0 and depth:
            yield from _readers(graph, f"{node.name}:0", depth - 1)
        else:
            yield node, position


def _variance_and_epsilon(graph: Graph, tensor: str) -> tuple[str, float] | None:
    """Return v and the constant e where `tensor` is v + e."""
    node = graph.producer(graph.source(tensor))
    if node is None or node.op not in _ADDS:
        return None
    left, right = graph.inputs(node)[:2]
    for value, epsilon in ((left, right), (right, left)):
        number = graph.scalar(epsilon)
        if number is not None and 0 <= number < 1:
            return value, number
    return None


def _inverse_roots(graph: Graph) -> Iterator[tuple[pb.NodeDef, str, float, bool]]:
    """Yield each `1 / sqrt(variance + epsilon)`: node, variance, epsilon, and whether the node is the plain root."""
    for node in graph.of_op(("Rsqrt", "Sqrt", "Pow")):
        inputs = graph.inputs(node)
        if node.op == "Pow" and (len(inputs) < 2 or graph.scalar(inputs[1]) not in (0.5, -0.5)):
            continue
        found = _variance_and_epsilon(graph, inputs[0])
        if found is not None:
            plain = node.op == "Sqrt" or (node.op == "Pow" and graph.scalar(inputs[1]) == 0.5)
            yield node, *found, plain


def _other(graph: Graph, node: pb.NodeDef, position: int) -> str | None:
    inputs = graph.inputs(node)
    return inputs[1 - position] if len(inputs) == 2 and position < 2 else None


def _written_out(graph: Graph) -> Iterator[FoundSite]:
    for root, variance, epsilon, plain in _inverse_roots(graph):
        if plain:
            yield from _divided(graph, f"{root.name}:0", variance, epsilon)
            # 1 / sqrt(…) taken as a step of its own is used like an rsqrt.
            inverses = [
                f"{node.name}:0"
                for node, position in _readers(graph, f"{root.name}:0")
                if node.op in ("Reciprocal", "Inv")
                or (node.op in ("RealDiv", "Div") and position == 1 and graph.scalar(graph.inputs(node)[0]) == 1)
            ]
            for node, position in _readers(graph, f"{root.name}:0"):
                gamma = graph.inputs(node)[0]
                if node.op in ("RealDiv", "Div") and position == 1 and graph.variable(gamma) is not None:
                    # gamma / sqrt(…) is used like gamma * rsqrt(…).
                    yield from _affine(graph, f"{node.name}:0", gamma, variance, epsilon)
        else:
            inverses = [f"{root.name}:0"]
        for inverse in inverses:
            products = [
                (f"{node.name}:0", _other(graph, node, position))
                for node, position in _readers(graph, inverse)
                if node.op == "Mul"
            ]
            yield from _affine(graph, inverse, None, variance, epsilon)
            for product, factor in products:
                if factor is None:
                    continue
                centred = _centred(graph, factor)
                if centred is not None:
                    yield from _normalised(graph, product, *centred, variance, epsilon)
                else:
                    yield from _affine(graph, product, factor, variance, epsilon)


def _affine(graph: Graph, inverse: str, scale: str | None, variance: str, epsilon: float) -> Iterator[FoundSite]:
    """Yield `x * inverse + (beta - mean * inverse)`; also `(x - mean) * inverse` where inverse holds gamma."""
    products = [
        (node, other)
        for node, position in _readers(graph, inverse)
        if node.op == "Mul" and (other := _other(graph, node, position)) is not None
    ]
    for mean_term, mean in products:
        negated = graph.producer(graph.source(mean))
        if negated is not None and negated.op == "Neg":
            # Without beta it is `x * inverse + (-mean) * inverse`.
            inner = graph.inputs(negated)[0]
            for x_term, x in products:
                y = _sum_of(graph, x_term, mean_term) if x_term.name != mean_term.name else None
                if y is not None:
                    yield _found(graph, x, y, inner, variance, epsilon, scale, None)
        for shift, position in _readers(graph, f"{mean_term.name}:0"):
            offset: str | None
            if shift.op == "Sub" and position == 1:
                offset = graph.inputs(shift)[0]
            elif shift.op == "Neg":
                offset = None
            else:
                continue
            for x_term, x in products:
                if x_term.name == mean_term.name:
                    continue
                y = _sum_of(graph, x_term, shift)
                if y is not None:
                    yield _found(graph, x, y, mean, variance, epsilon, scale, offset)
                elif shift.op == "Sub" and graph.source(graph.inputs(shift)[0]) == f"{x_term.name}:0":
                    yield _found(graph, x, shift.name, mean, variance, epsilon, scale, None)
    if scale is not None:
        for product, factor in products:
            centred = _centred(graph, factor)
            if centred is not None:
                yield from _normalised(graph, f"{product.name}:0", *centred, variance, epsilon, scale)


def _sum_of(graph: Graph, left: pb.NodeDef, right: pb.NodeDef) -> str | None:
    """Return the name of the node that adds the outputs of two nodes, or None."""
    graph.spend(10)
    sums = {node.name for node, _ in _readers(graph, f"{left.name}:0") if node.op in _ADDS}
    for node, _ in _readers(graph, f"{right.name}:0"):
        if node.name in sums:
            return node.name
    return None


def _divided(graph: Graph, root: str, variance: str, epsilon: float) -> Iterator[FoundSite]:
    """Yield `(x - mean) / sqrt(variance + epsilon)`."""
    for node, position in _readers(graph, root):
        if node.op in ("RealDiv", "Div") and position == 1:
            centred = _centred(graph, graph.inputs(node)[0])
            if centred is not None:
                yield from _normalised(graph, f"{node.name}:0", *centred, variance, epsilon)


def _centred(graph: Graph, tensor: str) -> tuple[str, str] | None:
    """Return x and mean where `tensor` is x - mean and mean looks like one."""
    node = graph.producer(graph.source(tensor))
    if node is None or node.op != "Sub":
        return None
    x, mean = graph.inputs(node)[:2]
    return (x, mean) if _statistics(graph, mean) != "unknown" else None


def _normalised(
    graph: Graph, normal: str, x: str, mean: str, variance: str, epsilon: float, scale: str | None = None
) -> Iterator[FoundSite]:
    """Yield the site that ends in `normal`, or in the gamma and beta that follow it where they are variables."""
    y = normal
    if scale is None:
        product = _only_reader(graph, y, ("Mul",))
        if product is not None:
            y, scale = f"{product[0].name}:0", product[1]
    offset = None
    total = _only_reader(graph, y, tuple(_ADDS))
    if total is not None:
        y, offset = f"{total[0].name}:0", total[1]
    yield _found(graph, x, split_tensor(y)[0], mean, variance, epsilon, scale, offset)


def _only_reader(graph: Graph, tensor: str, ops: tuple[str, ...]) -> tuple[pb.NodeDef, str] | None:
    """Return the single consumer of `tensor` and its other operand, where that is a variable and the op fits."""
    fitting = []
    for node, position in graph.consumers.get(tensor, ()):
        if node.op not in ops:
            continue
        other = _other(graph, node, position)
        if other is not None and graph.variable(other) is not None:
            fitting.append((node, other))
    return fitting[0] if len(fitting) == 1 else None


def _statistics(graph: Graph, tensor: str) -> Statistics:
    """Return where a mean or variance comes from."""
    node = graph.producer(graph.source(tensor))
    if node is not None and node.op == "Const":
        return "stored"
    origins = _origins(graph, tensor, _LONGEST_FORMULA, {})
    if origins == {"stored", "batch"}:
        return "mixed"
    if len(origins) == 1:
        return origins.pop()
    return "other" if "other" in origins and "batch" not in origins else "unknown"


def _origins(graph: Graph, tensor: str, depth: int, known: dict[tuple[str, int], set[Statistics]]) -> set[Statistics]:
    """Return what a statistic is computed from, through the arithmetic around it; scalars count for nothing.

    `known` keeps what was found: a formula may read one tensor on many ways.
    """
    key = graph.source(tensor), depth
    if key not in known:
        known[key] = _origins_of(graph, *key, known)
    return known[key]


def _origins_of(
    graph: Graph, source: str, depth: int, known: dict[tuple[str, int], set[Statistics]]
) -> set[Statistics]:
    node = graph.producer(source)
    if node is None or depth == 0:
        return {"unknown"}
    if graph.variable(source) is not None:
        return {"stored"} if len(node.attr["shape"].shape.dim) or node.op == "ConcatV2" else set()
    if node.op == "Const":
        value = graph.constant(source)
        return {"stored"} if value is not None and value.size > 1 else set()
    if node.op in ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2") or node.op in _COUNTS:
        return set()
    if node.op in FUSED_OPS:
        return {"batch"}
    inputs = graph.inputs(node)
    if node.op in ("Mean", "Sum") and len(inputs) == 2:
        return {_reduced(graph, inputs[1])}
    if node.op not in _FORMULA:
        return {"unknown"}
    found: set[Statistics] = set()
    for name in dict.fromkeys(inputs):
        found |= _origins(graph, name, depth - 1, known)
    return found


def _reduced(graph: Graph, axes: str) -> Statistics:
    """Return whether a reduction over `axes` is one over the batch."""
    value = graph.constant(axes)
    if value is None:
        node = graph.producer(graph.source(axes))
        # All axes but the last: `tf.range(rank - 1)`.
        starts = node is not None and node.op == "Range" and graph.scalar(graph.inputs(node)[0]) == 0
        return "batch" if starts else "unknown"
    if value.dtype.kind not in "iu":
        return "unknown"
    return "batch" if 0 in value.reshape(-1).tolist() else "other"


def statistic_variable(graph: Graph, tensor: str) -> str | None:
    """Return the variable's node that a vector is read from, also through the arithmetic around it, or None."""
    level = [tensor]
    for _ in range(_LONGEST_FORMULA):
        following: list[str] = []
        for name in level:
            variable = graph.variable(name)
            node = graph.producer(graph.source(name))
            if variable is not None:
                if len(graph.nodes[variable].attr["shape"].shape.dim):
                    return variable
            elif node is not None and node.op in _FORMULA:
                following += graph.inputs(node)
        level = following[:_WIDEST_FORMULA]
    return None


def _channel_axis(graph: Graph, tensor: str) -> int:
    """Return 1 where a statistic is laid out `[1, channels, 1, …]` before it is used, else -1."""
    for _ in range(10):
        node = graph.producer(tensor)
        if node is None:
            return -1
        inputs = graph.inputs(node)
        if node.op == "Reshape":
            shape = graph.constant(inputs[1])
            if (
                shape is not None
                and shape.size > 2
                and shape.reshape(-1)[1] != 1
                and (shape.reshape(-1)[2:] == 1).all()
            ):
                return 1
        elif node.op == "Mean":
            axes = graph.constant(inputs[1])
            kept = sorted(axes.reshape(-1).tolist()) if axes is not None else []
            return 1 if len(kept) > 1 and kept[0] == 0 and kept[1] == 2 else -1
        elif node.op in ("VariableV2", "VarHandleOp", "Variable"):
            sizes = [dim.size for dim in node.attr["shape"].shape.dim]
            return 1 if len(sizes) > 2 and sizes[1] != 1 and all(size == 1 for size in sizes[2:]) else -1
        if node.op not in PASS_THROUGH or not inputs:
            return -1
        tensor = inputs[0]
    return -1


def _found(
    graph: Graph, x: str, node: str, mean: str, variance: str, epsilon: float, scale: str | None, offset: str | None
) -> FoundSite:
    kinds = {_statistics(graph, mean), _statistics(graph, variance)}
    if len(kinds) == 2:
        # A mean that is measured from a stored shift (`sufficient_statistics`) has something of both; the variance not.
        kinds.discard("mixed")
    statistics: Statistics = kinds.pop() if len(kinds) == 1 else "unknown"
    return FoundSite(
        Site(x=x, y=f"{node}:0", axis=_channel_axis(graph, mean), epsilon=epsilon, scale=scale, offset=offset),
        statistics,
        mean,
        variance,
        node,
    )
