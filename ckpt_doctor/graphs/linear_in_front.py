"""The linear layer whose output a batch norm normalises, where the graph shows that nothing else reads it.

Its weights tell how the batch norm ran in training (`heuristics.training_mode`): behind the moments of a batch, a
constant that is added to a channel changes nothing. That holds as long as only what keeps such a constant stands
between, and nothing but batch norm reads the sum. Padding after the addition, dropout and activations end it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_doctor.graphs.facts import LinearInFront, Site
from ckpt_doctor.graphs.graph import PASS_THROUGH, Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Operation to the axes of its kernel that are the channels of its output; all others are summed over.
_LINEAR: dict[str, tuple[int, ...]] = {
    "MatMul": (-1,),
    "BatchMatMul": (-1,),
    "BatchMatMulV2": (-1,),
    "Conv2D": (-1,),
    "Conv3D": (-1,),
    # filter: [height, width, in, multiplier] (tensorflow/core/ops/nn_ops.cc)
    "DepthwiseConv2dNative": (-2, -1),
    # filter: [height, width, out, in]
    "Conv2DBackpropInput": (-2,),
    "Conv3DBackpropInputV2": (-2,),
}
_KERNEL_INPUT = 1
_ADDS = frozenset("Add AddV2 BiasAdd".split())
# An average of equal constants is that constant; TensorFlow leaves padding out of the average (nn_ops.cc: AvgPool).
_KEEPS_CONSTANTS = frozenset("AvgPool AvgPool3D".split())
# `tf.gradients` and `tf.GradientTape` put what they add below these scopes.
_OF_GRADIENTS = re.compile(r"(^|/)(gradients(_\d+)?|gradient_tape)/")
# What looks at a tensor without carrying it on: its size, its moments, a summary.
_LOOKS_ONLY = re.compile(
    r"^(Shape|ShapeN|Size|Rank|Mean|Sum|Square|SquaredDifference|FusedBatchNorm(V2|V3)?|.*Summary(V2)?|.*Grad(V2|V3)?)$"
)
# A branch that is not taken reads by way of them.
_SWITCHES = frozenset("Switch RefSwitch".split())
_LONGEST = 20
# A normalisation that is written out, with its moments and its averages, has some tens of nodes.
_WIDEST = 200
# Those of FusedBatchNorm that a formula may read: y, mean, variance (tensorflow/core/ops/nn_ops.cc).
_OUTPUTS = 3


class FrontFinder:
    """Finds the linear layers in front of sites.

    Args:
        graph: The graph that the sites are of, with its switches set.
        sites: All of its sites.
        saved: Variable's node to its name in the file.
    """

    def __init__(self, graph: Graph, sites: Iterable[Site], saved: Mapping[str, str]) -> None:
        self._graph = graph
        self._saved = saved
        self._outputs: dict[str, list[str]] = {}
        for site in sites:
            self._outputs.setdefault(graph.source(site.x), []).append(split_tensor(site.y)[0])

    def of(self, site: Site) -> LinearInFront | None:
        """Return the linear layer in front of a site, or None where the graph shows none that only batch norm reads."""
        graph = self._graph
        normalising = self._normalising(site)
        tensor = site.x
        for _ in range(_LONGEST):
            node = graph.producer(tensor)
            if node is None:
                return None
            inputs = graph.inputs(node)
            if not inputs or not self._is_read_by(tensor, normalising):
                return None
            normalising = normalising | {node.name}
            linear = self._linear(node, inputs)
            if linear is not None:
                return linear if self._sums_are_read_by(node, inputs, normalising) else None
            if node.op == "StopGradient" or (node.op not in PASS_THROUGH and node.op not in _KEEPS_CONSTANTS):
                return None
            tensor = inputs[0]
        return None

    def _normalising(self, site: Site) -> frozenset[str]:
        """Return the nodes that compute `y` from `x`, of every site that reads the same input.

        Found from x on, so that the network before the layer is not walked; what does not come to an end soon is a
        second way through the network, and is left out.
        """
        graph = self._graph
        outputs = dict.fromkeys(self._outputs.get(graph.source(site.x), [split_tensor(site.y)[0]]))
        graph.spend(len(outputs))
        before: dict[str, set[str]] = {}
        stack = [(name, "") for name in {site.x, graph.source(site.x)}]
        while stack and len(before) < _WIDEST:
            tensor, maker = stack.pop(0)
            for reader, _ in graph.consumers.get(tensor, ()):
                graph.spend()
                if _OF_GRADIENTS.search(reader.name):
                    continue
                if reader.name not in before and reader.name not in outputs:
                    stack += [(f"{reader.name}:{index}", reader.name) for index in range(_OUTPUTS)]
                before.setdefault(reader.name, set()).add(maker)
        needed = {name for name in outputs if name in before}
        back = list(needed)
        while back:
            new = before[back.pop()] - needed - {""}
            needed |= new
            back += new
        return frozenset(needed)

    def _is_read_by(self, tensor: str, normalising: frozenset[str]) -> bool:
        """Return whether nothing but `normalising` carries a tensor on."""
        stack, seen = [tensor], set()
        while stack:
            for reader, _ in self._graph.consumers.get(stack.pop(), ()):
                self._graph.spend()
                if reader.name in normalising or _OF_GRADIENTS.search(reader.name) or _LOOKS_ONLY.match(reader.op):
                    continue
                if reader.op not in PASS_THROUGH and reader.op not in _SWITCHES:
                    return False
                for output in (f"{reader.name}:0", f"{reader.name}:1"):
                    if output not in seen:
                        seen.add(output)
                        stack.append(output)
        return True

    def _sums_are_read_by(self, node: pb.NodeDef, inputs: list[str], normalising: frozenset[str]) -> bool:
        """Return whether the product that a bias is added to is read by that addition alone."""
        if node.op not in _ADDS:
            return True
        return any(
            (made := self._graph.producer(self._graph.source(name))) is not None
            and made.op in _LINEAR
            and self._is_read_by(f"{made.name}:0", normalising)
            for name in inputs[:2]
        )

    def _linear(self, node: pb.NodeDef, inputs: list[str]) -> LinearInFront | None:
        if node.op in _LINEAR:
            return self._described(node, None)
        if node.op not in _ADDS or len(inputs) < 2:
            return None
        for product, added in (inputs[:2], inputs[1::-1]):
            made = self._graph.producer(self._graph.source(product))
            bias = self._graph.variable(added)
            if made is not None and made.op in _LINEAR and bias is not None:
                return self._described(made, bias)
        return None

    def _described(self, node: pb.NodeDef, bias: str | None) -> LinearInFront | None:
        inputs = self._graph.inputs(node)
        kernel = self._graph.variable(inputs[_KERNEL_INPUT]) if len(inputs) > _KERNEL_INPUT else None
        if kernel is not None and node.attr["transpose_b"].b:
            kernel = None
        if kernel is None and bias is None:
            return None
        return LinearInFront(
            kernel=None if kernel is None else self._saved.get(kernel, kernel),
            bias=None if bias is None else self._saved.get(bias, bias),
            axes=_LINEAR[node.op],
        )
