"""An inference graph cut open at its batch-norm sites.

At every site the output `y` is computed anew from the live input `x` and two fresh placeholders, mean and variance.
What is fed there decides what the graph is: the batch's own moments make it training mode, the whole data's make it the
layerwise estimate, stored statistics make it inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ckpt_doctor.graphs.facts import Site
from ckpt_doctor.graphs.graph import (
    DTYPES,
    FLOAT32,
    VARIABLE_OPS,
    Graph,
    constant_node,
    plain_dtype,
    split_tensor,
    tensor_name,
)
from ckpt_doctor.graphs.sites import FUSED_OPS
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_INT32 = 3
# Shapes that TensorFlow 1.x recorded disagree with what later importers infer; colocation and devices name machines
# of the past.
_DROPPED_ATTRIBUTES = ("_output_shapes", "_class")
_PREFIX = "ckpt_doctor"
# Where what reads statistics besides their site is written.
READ = f"{_PREFIX}/read/"
_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
# Ops that bring data in on their own: what they give is fed instead.
_SOURCES = frozenset(
    "IteratorGetNext IteratorGetNextSync QueueDequeue QueueDequeueV2 QueueDequeueMany QueueDequeueManyV2 "
    "QueueDequeueUpTo QueueDequeueUpToV2 ReaderRead ReaderReadV2  Unstage".split()
)


@dataclass(frozen=True)
class CutSite:
    """A site of the cut graph.

    Attributes:
        layer: The batch-norm layer.
        x: The tensor that goes in.
        mean: The placeholder for the mean, float32 of shape `(channels,)`.
        variance: The placeholder for the variance, likewise.
        axis: The channel axis of `x`: -1 or 1.
        epsilon: Added to the variance.
    """

    layer: str
    x: str
    mean: str
    variance: str
    axis: int
    epsilon: float


@dataclass(frozen=True)
class CutInput:
    """A tensor that the cut graph takes data through.

    Attributes:
        original: The tensor of the original graph that it stands for.
        tensor: Its name in the cut graph.
        dtype: TensorFlow's name of its type.
        shape: Its dimensions, None where any size will do; None where even the rank is open.
        optional: Whether the graph has a default for it.
    """

    original: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None
    optional: bool = False


@dataclass(frozen=True, eq=False)
class CutGraph:
    """The graph, and how to use it.

    Attributes:
        proto: A `GraphDef` that needs no other.
        sites: Where it is cut.
        inputs: What has to be fed.
        variables: Variable node to the placeholder and the op that set its value.
        starters: Ops that run once before all else: they fill tables.
    """

    proto: pb.GraphDef
    sites: tuple[CutSite, ...]
    inputs: tuple[CutInput, ...]
    variables: Mapping[str, tuple[str, str]]
    starters: tuple[str, ...] = ()


def cut(
    graph: Graph,
    sites: Sequence[tuple[str, Site]],
    outputs: Iterable[str] = (),
    fed: Iterable[str] = (),
    statistics: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> CutGraph:
    """Return what `outputs` and the inputs of the sites need of the graph, cut at the sites.

    Whatever else reads the statistics of a layer that is cut (a kernel into which they are folded, a second head) reads
    what is fed at its site.

    Args:
        graph: A graph without training switches.
        sites: Layer name and site, one entry for each place.
        outputs: Further tensors that are wanted.
        fed: Tensors that take data, placeholders or not; what makes them is left out. Placeholders, and what comes out
            of iterators and queues, are inputs without being named.
        statistics: Layer to the nodes of the variables of its mean and variance.
    """
    wanted = [site.x for _, site in sites] + [tensor_name(name) for name in outputs]
    kept, sources, reached = _needed(
        graph, wanted, {site.y: site for _, site in sites}, {tensor_name(name) for name in fed}
    )
    result = pb.GraphDef()
    result.versions.CopyFrom(graph.proto.versions)
    result.library.CopyFrom(graph.proto.library)
    inputs = [_input(result, graph, tensor, number) for number, tensor in enumerate(sources)]
    replaced: dict[str, str] = {entry.original: entry.tensor for entry in inputs if entry.original != entry.tensor}
    cut_sites = []
    for number, (layer, site) in enumerate(sites):
        if site.x in reached:
            builder = _Normalisation(result, f"{_PREFIX}/site_{number}", site)
            if site.y in reached:
                replaced[site.y] = builder.write(graph)
            x = replaced.get(site.x, site.x)
            cut_sites.append(CutSite(layer, x, builder.mean, builder.variance, site.axis, site.epsilon))
    for place in cut_sites:
        if len(statistics.get(place.layer, ())) != 2:
            continue
        for variable, placeholder in zip(statistics[place.layer], (place.mean, place.variance), strict=True):
            if variable in kept:
                kept.discard(variable)
                for tensor in _reads(graph, variable, kept):
                    replaced[tensor] = _as_read(result, graph.nodes[variable], placeholder, tensor)
    loops = any(graph.nodes[name].op in ("Enter", "RefEnter") for name in kept)
    for node in graph.proto.node:
        if node.name in kept:
            _copy(result, node, replaced, kept if loops else set())
    for node in result.node:
        if node.name.startswith(f"{_PREFIX}/"):
            for position, entry in enumerate(node.input):
                # One site may feed the next directly.
                node.input[position] = replaced.get(tensor_name(entry), entry)
    variables = set_variables(result)
    # A site may feed the next one directly, so its x may be another site's output.
    cut_sites = [replace(site, x=replaced.get(site.x, site.x)) for site in cut_sites]
    return CutGraph(result, tuple(cut_sites), tuple(inputs), variables)


def _reads(graph: Graph, variable: str, kept: set[str]) -> list[str]:
    """Return the tensors by which kept nodes get a variable's value, and drop the nodes that only read it."""
    if graph.nodes[variable].op != "VarHandleOp":
        return [f"{variable}:0"]
    readers = [
        node.name
        for node in graph.of_op(("ReadVariableOp",))
        if node.name in kept and graph.variable(graph.inputs(node)[0]) == variable
    ]
    kept.difference_update(readers)
    return [f"{name}:0" for name in readers]


def _as_read(result: pb.GraphDef, variable: pb.NodeDef, placeholder: str, tensor: str) -> str:
    """Add what makes of a fed statistic the value of its variable, in its shape and type; return the tensor."""
    name = f"{READ}{split_tensor(tensor)[0]}"
    sizes = np.array([dim.size for dim in variable.attr["shape"].shape.dim], np.int32)
    layout = constant_node(f"{name}/shape", sizes)
    result.node.append(layout)
    shaped = result.node.add(name=name, op="Reshape")
    shaped.input.extend([placeholder, f"{layout.name}:0"])
    shaped.attr["T"].type = FLOAT32
    shaped.attr["Tshape"].type = _INT32
    dtype = plain_dtype(variable.attr["dtype"].type)
    if dtype == FLOAT32:
        return f"{name}:0"
    cast = result.node.add(name=f"{name}/cast", op="Cast")
    cast.input.append(f"{name}:0")
    cast.attr["SrcT"].type = FLOAT32
    cast.attr["DstT"].type = dtype
    return f"{cast.name}:0"


def _needed(
    graph: Graph, wanted: Iterable[str], sites: Mapping[str, Site], fed: set[str]
) -> tuple[set[str], list[str], set[str]]:
    """Return the nodes that the wanted tensors need, the tensors at which data come in, and all tensors needed.

    Data come in in the order of the graph, which is that in which its author asked for them.

    A site needs its x, scale and offset only.
    """
    kept: set[str] = set()
    sources: dict[str, None] = {}
    seen: set[str] = set()
    stack = list(wanted)
    while stack:
        tensor = stack.pop()
        node = graph.producer(tensor)
        if tensor in seen or node is None:
            continue
        seen.add(tensor)
        if tensor in sites:
            site = sites[tensor]
            stack.extend(name for name in (site.x, site.scale, site.offset) if name)
        elif (tensor in fed or node.op in _SOURCES) and node.op not in _PLACEHOLDERS:
            sources[tensor] = None
        elif node.name not in kept:
            kept.add(node.name)
            stack.extend(graph.inputs(node))
            if node.op in _PLACEHOLDERS:
                sources[tensor] = None
    places = {node.name: place for place, node in enumerate(graph.proto.node)}
    return kept, sorted(sources, key=lambda tensor: (places[split_tensor(tensor)[0]], split_tensor(tensor)[1])), seen


def _input(result: pb.GraphDef, graph: Graph, tensor: str, number: int) -> CutInput:
    """Return how data come in at a tensor; where it is no placeholder, one is put in its place."""
    node, index = graph.nodes[split_tensor(tensor)[0]], split_tensor(tensor)[1]
    types = next((node.attr[a].list.type for a in ("output_types", "component_types") if a in node.attr), ())
    shapes = next((node.attr[a].list.shape for a in ("output_shapes", "_output_shapes") if a in node.attr), ())
    dtype = next((node.attr[a].type for a in ("dtype", "DstT", "T") if a in node.attr), FLOAT32)
    if index < len(types):
        dtype = types[index]
    shape = shapes[index] if index < len(shapes) else node.attr["shape"].shape if "shape" in node.attr else None
    dimensions = None
    if (
        shape is not None
        and not shape.unknown_rank
        and (len(shape.dim) or node.op == "PlaceholderV2" or "shape" in node.attr)
    ):
        dimensions = tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
        # Before TensorFlow 1.0 a placeholder of unknown shape said so by having no dimensions.
        dimensions = dimensions or None
    name = DTYPES.get(plain_dtype(dtype), "float32")
    if node.op in _PLACEHOLDERS:
        return CutInput(tensor, tensor, name, dimensions, optional=node.op == "PlaceholderWithDefault")
    placeholder = result.node.add(name=f"{_PREFIX}/input_{number}", op="Placeholder")
    placeholder.attr["dtype"].type = plain_dtype(dtype)
    placeholder.attr["shape"].shape.unknown_rank = True
    return CutInput(tensor, f"{placeholder.name}:0", name, dimensions)


def _copy(result: pb.GraphDef, node: pb.NodeDef, replaced: Mapping[str, str], control: set[str]) -> None:
    copy = result.node.add()
    copy.CopyFrom(node)
    copy.device = ""
    for name in _DROPPED_ATTRIBUTES:
        copy.attr.pop(name, None)
    del copy.input[:]
    for entry in node.input:
        if entry.startswith("^"):
            # Outside loops control edges only order side effects, and an inference pass has none.
            if entry[1:] in control:
                copy.input.append(entry)
        else:
            copy.input.append(replaced.get(tensor_name(entry), entry))


def set_variables(result: pb.GraphDef) -> dict[str, tuple[str, str]]:
    """Add a placeholder and an assignment for every variable of a graph; return both by variable node."""
    table: dict[str, tuple[str, str]] = {}
    for node in [node for node in result.node if node.op in VARIABLE_OPS]:
        number = len(table)
        dtype = plain_dtype(node.attr["dtype"].type)
        value = result.node.add(name=f"{_PREFIX}/value_{number}", op="Placeholder")
        value.attr["dtype"].type = dtype
        value.attr["shape"].shape.CopyFrom(node.attr["shape"].shape)
        assign = result.node.add(name=f"{_PREFIX}/assign_{number}")
        assign.input.extend([node.name, value.name])
        if node.op == "VarHandleOp":
            assign.op = "AssignVariableOp"
            assign.attr["dtype"].type = dtype
        else:
            assign.op = "Assign"
            assign.attr["T"].type = dtype
            assign.attr["validate_shape"].b = False
        table[node.name] = (f"{value.name}:0", assign.name)
    return table


class _Normalisation:
    """Writes the nodes of one site: `x * inv + (offset - mean * inv)`, or the fused op where the graph has it."""

    def __init__(self, result: pb.GraphDef, prefix: str, site: Site) -> None:
        self.result = result
        self.prefix = prefix
        self.site = site
        self.mean = self._placeholder("mean")
        self.variance = self._placeholder("variance")

    def write(self, graph: Graph) -> str:
        """Add the nodes and return the name of the output."""
        node = graph.nodes[split_tensor(self.site.y)[0]]
        if node.op in FUSED_OPS:
            return self._fused(node, self.site)
        return self._written_out(plain_dtype(node.attr["T"].type), self.site)

    def _node(self, name: str, op: str, inputs: Sequence[str], **types: int) -> str:
        node = self.result.node.add(name=f"{self.prefix}/{name}", op=op)
        node.input.extend(inputs)
        for attribute, value in types.items():
            node.attr[attribute].type = value
        return f"{node.name}:0"

    def _placeholder(self, name: str) -> str:
        tensor = self._node(name, "Placeholder", (), dtype=FLOAT32)
        self.result.node[-1].attr["shape"].shape.dim.add().size = -1
        return tensor

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        node = constant_node(f"{self.prefix}/{name}", value)
        self.result.node.append(node)
        return f"{node.name}:0"

    def _fused(self, original: pb.NodeDef, site: Site) -> str:
        assert site.scale is not None
        assert site.offset is not None
        tensor = self._node(
            "y", "FusedBatchNormV3", (site.x, site.scale, site.offset, self.mean, self.variance), U=FLOAT32
        )
        node = self.result.node[-1]
        node.attr["T"].type = original.attr["T"].type
        if "data_format" in original.attr:
            node.attr["data_format"].CopyFrom(original.attr["data_format"])
        node.attr["epsilon"].f = site.epsilon
        node.attr["is_training"].b = False
        return tensor

    def _vector(self, name: str, tensor: str, dtype: int) -> str:
        flat = self._node(name, "Reshape", (tensor, self._flat), T=dtype, Tshape=_INT32)
        return flat if dtype == FLOAT32 else self._node(f"{name}_cast", "Cast", (flat,), SrcT=dtype, DstT=FLOAT32)

    def _written_out(self, dtype: int, site: Site) -> str:
        self._flat = self._constant("flat", np.array([-1], np.int32))
        epsilon = self._constant("epsilon", np.array(site.epsilon, np.float32))
        shifted = self._node("shifted", "AddV2", (self.variance, epsilon), T=FLOAT32)
        inverse = self._node("inverse", "Rsqrt", (shifted,), T=FLOAT32)
        if site.scale is not None:
            inverse = self._node("scaled", "Mul", (inverse, self._vector("scale", site.scale, dtype)), T=FLOAT32)
        shift = self._node("mean_term", "Mul", (self.mean, inverse), T=FLOAT32)
        if site.offset is not None:
            shift = self._node("shift", "Sub", (self._vector("offset", site.offset, dtype), shift), T=FLOAT32)
        else:
            shift = self._node("shift", "Neg", (shift,), T=FLOAT32)
        factors = []
        for name, tensor in (("factor", inverse), ("summand", shift)):
            if site.axis == 1:
                layout = self._constant(f"{name}_layout", np.array([1, -1, 1, 1], np.int32))
                tensor = self._node(f"{name}_reshaped", "Reshape", (tensor, layout), T=FLOAT32, Tshape=_INT32)
            if dtype != FLOAT32:
                tensor = self._node(f"{name}_cast", "Cast", (tensor,), SrcT=FLOAT32, DstT=dtype)
            factors.append(tensor)
        product = self._node("product", "Mul", (site.x, factors[0]), T=dtype)
        return self._node("y", "AddV2", (product, factors[1]), T=dtype)
