"""Which ops update the statistics, with which decay, and whether training runs them.

The wiring that counts: one node that waits for a gradient update and for the statistics' updates. An update need not be
an ancestor of the gradient update (`tf.group`, slim's `create_train_op`), nor stand in the collection `update_ops`
(`updates_collections=None`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_doctor.graphs.graph import ASSIGN_OPS, PASS_THROUGH, Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# ApplyAdam, ResourceApplyMomentum, SparseApplyAdagrad, ResourceSparseApplyFtrl …
_GRADIENT_OP = re.compile(r"^(Resource)?(Sparse)?Apply[A-Z]")
# What may stand between a batch's moments and the op that stores them; over several devices they are summed up.
_SUMS = frozenset("AddN NcclAllReduce CollectiveReduce CollectiveReduceV2 CrossReplicaSum HorovodAllreduce".split())
_AVERAGING_OPS = (
    frozenset("Sub Mul Add AddV2 RealDiv Div Neg Merge Switch Select SelectV2 Pack".split()) | _SUMS | PASS_THROUGH
)
_RESTORES = frozenset({"RestoreV2", "Restore", "RestoreSlice"})
# An update is sub, mul, assign; one with zero-debiasing goes through the biased average first.
_LONGEST_UPDATE = 10


def gradient_updates(graph: Graph) -> set[str]:
    """Return the names of the nodes that apply gradients."""
    return {node.name for node in graph.order if _GRADIENT_OP.match(node.op)}


def assigned_variables(graph: Graph, tensor: str) -> list[str]:
    """Return the variables that an average of `tensor` is stored in, nearest first."""
    found: dict[str, None] = {}
    seen = {tensor}
    frontier = [tensor]
    for _ in range(_LONGEST_UPDATE):
        following: list[str] = []
        for name in frontier:
            for node, position in graph.consumers.get(name, ()):
                if node.op in ASSIGN_OPS:
                    variable = graph.variable(graph.inputs(node)[0])
                    if position > 0 and variable is not None:
                        found[variable] = None
                elif node.op not in _AVERAGING_OPS and not (node.op == "Mean" and name == tensor):
                    # A mean of the moments themselves is that over virtual batches (tf.layers: `virtual_batch_size`).
                    continue
                output = f"{node.name}:0"
                if output not in seen:
                    seen.add(output)
                    following.append(output)
        frontier = following
    return list(found)


def update_nodes(graph: Graph, variables: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each named variable, the nodes that update it; initialisers and restores are none."""
    table: dict[str, list[str]] = {name: [] for name in variables}
    for variable, names in table.items():
        for node in graph.assignments.get(variable, ()):
            sets = node.op in ("Assign", "AssignVariableOp")
            if not sets or _is_update(graph, split_tensor(graph.inputs(node)[1])[0], variable):
                names.append(node.name)
    return table


def _is_update(graph: Graph, source: str, variable: str) -> bool:
    """Return whether what is assigned to a variable is an update, and no initialiser or restored value.

    An initialiser depends on constants and random numbers; an update on the variable's old value or on data. The
    nearest sign decides, so that not the whole network before the layer is walked.
    """
    seen = {source}
    frontier = [source]
    while frontier:
        following: list[str] = []
        for name in frontier:
            node = graph.nodes.get(name)
            if node is None:
                continue
            if node.op in _RESTORES:
                return False
            if name == variable or node.op == "Mean" or node.op.startswith("FusedBatchNorm"):
                return True
            for tensor in graph.inputs(node):
                before = split_tensor(tensor)[0]
                if before not in seen:
                    seen.add(before)
                    following.append(before)
        frontier = following
    return False


def decay_of(graph: Graph, variable: str) -> float | None:
    """Return the decay d of the moving average in `variable`, `new = d * old + (1 - d) * batch`, or None.

    Args:
        graph: The graph specialised to training (at inference the decay may be switched to 1).
        variable: The variable's node.
    """
    for names in update_nodes(graph, [variable]).values():
        for name in names:
            node = graph.nodes[name]
            change = _of_one_device(graph, graph.inputs(node)[1])
            if change is None:
                continue
            if change.op.startswith("FusedBatchNorm"):
                rate = _fused_rate(change)
            else:
                rate = _rate(graph, change) if node.op.startswith("AssignSub") else _kept_part(graph, change, variable)
            if rate is not None and 0 <= rate <= 1:
                return rate
    return None


def _of_one_device(graph: Graph, tensor: str) -> pb.NodeDef | None:
    """Return the node of a variable's change; where that is the mean over several devices, the change of the first."""
    node = graph.producer(graph.source(tensor))
    mean = node is not None and node.op == "RealDiv" and graph.scalar(graph.inputs(node)[1]) is not None
    total = graph.producer(graph.source(graph.inputs(node)[0])) if node is not None and mean else node
    if total is not None and total.op in _SUMS and graph.inputs(total):
        return graph.producer(graph.source(graph.inputs(total)[0]))
    return node


def _fused_rate(node: pb.NodeDef) -> float | None:
    """Return d of a fused op that averages by itself: its `exponential_avg_factor` is 1 - d (TensorFlow 2)."""
    factor = node.attr["exponential_avg_factor"].f if "exponential_avg_factor" in node.attr else 1.0
    return round(1.0 - factor, 7) if factor < 1 else None


def corrections_are_clipped(graph: Graph, stddev: str) -> bool:
    """Return whether batch renormalisation clips r and d, the quotients of its average `stddev`.

    Args:
        graph: The graph with its switches at training.
        stddev: The node of the variable `renorm_stddev`.
    """
    seen = {f"{stddev}:0"}
    frontier = [(f"{stddev}:0", False)]
    while frontier:
        tensor, divided = frontier.pop()
        for node, _ in graph.consumers.get(tensor, ()):
            if divided and node.op in ("Maximum", "Minimum", "ClipByValue"):
                return True
            # The average is kept above the root of epsilon before it divides.
            if node.op not in PASS_THROUGH | {"Maximum", "RealDiv", "Div", "Switch", "Merge"}:
                continue
            output = f"{node.name}:0"
            if output not in seen:
                seen.add(output)
                frontier.append((output, divided or node.op in ("RealDiv", "Div")))
    return False


def trained_variables(graph: Graph) -> frozenset[str]:
    """Return the variables' nodes that a gradient is applied to."""
    found = set()
    for name in gradient_updates(graph):
        inputs = graph.inputs(graph.nodes[name])
        variable = graph.variable(inputs[0]) if inputs else None
        if variable is not None:
            found.add(variable)
    return frozenset(found)


def followed_variables(graph: Graph, variable: str) -> set[str]:
    """Return the other variables that a variable is assigned copies or averages of.

    Args:
        graph: The whole graph.
        variable: The variable's node.
    """
    found: set[str] = set()
    for node in graph.assignments.get(variable, ()):
        frontier = graph.inputs(node)[1:2]
        for _ in range(_LONGEST_UPDATE):
            following: list[str] = []
            for tensor in frontier:
                source = graph.source(tensor)
                other = graph.variable(source)
                maker = graph.producer(source)
                if other is not None:
                    found.add(other)
                elif maker is not None and maker.op in _AVERAGING_OPS:
                    following += graph.inputs(maker)
            frontier = following[:_LONGEST_UPDATE]
    return found - {variable}


def initial_value(graph: Graph, variable: str) -> float | None:
    """Return the one number that a variable is initialised to, or None where it is none or several."""
    for node in graph.assignments.get(variable, ()):
        if node.op not in ("Assign", "AssignVariableOp"):
            continue
        source = graph.source(graph.inputs(node)[1])
        maker = graph.producer(source)
        if maker is not None and maker.op == "Fill":
            source = graph.inputs(maker)[1]
        value = graph.constant(source)
        if value is not None and value.size and value.dtype.kind in "fiu" and (value == value.reshape(-1)[0]).all():
            return float(value.reshape(-1)[0])
    return None


def _rate(graph: Graph, change: pb.NodeDef) -> float | None:
    """Return d of `AssignSub(variable, (variable - batch) * (1 - d))`."""
    if change.op != "Mul":
        return None
    for factor in graph.inputs(change):
        value = graph.scalar(factor)
        if value is not None:
            # 1 - d is written in float32: 0.9 comes back as 0.9, not as 0.8999999761581421.
            return round(1.0 - value, 7)
    return None


def _kept_part(graph: Graph, change: pb.NodeDef, variable: str) -> float | None:
    """Return d of `Assign(variable, variable * d + batch * (1 - d))`."""
    if change.op not in ("Add", "AddV2"):
        return None
    for summand in graph.inputs(change):
        product = graph.producer(graph.source(summand))
        if product is None or product.op != "Mul":
            continue
        left, right = graph.inputs(product)[:2]
        for value, other in ((left, right), (right, left)):
            decay = graph.scalar(other)
            if decay is not None and graph.variable(value) == variable:
                return round(decay, 7)
    return None
