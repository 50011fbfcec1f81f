"""Where a graph that augments its data goes on without chance: the tensor to feed instead.

Behind random crops, flips and noise stands one tensor through which all of it goes; fed there, a graph draws nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ckpt_doctor.graphs.dropout import RANDOM_OPS
from ckpt_doctor.graphs.graph import DTYPES, Graph, split_tensor
from ckpt_doctor.graphs.loops import array_tensors, units

# Operations whose results are not data: random numbers are drawn for the shape of the images, or between bounds.
_NO_DATA = frozenset("Shape ShapeN Size Rank".split()) | (RANDOM_OPS - {"RandomShuffle"})
_NUMBERS = frozenset("float32 float64 float16 bfloat16 uint8 int32 int64".split())


def tensor_behind(
    graph: Graph, random: Collection[str], inputs: Collection[str], wanted: Iterable[str]
) -> tuple[str, str] | None:
    """Return the first tensor that all random numbers go through, and the input that it comes from.

    Args:
        graph: A graph.
        random: Names of its random operations.
        inputs: The tensors that take data.
        wanted: The tensors that are computed from them.

    Returns:
        None where there is no such tensor, where it comes from several inputs, or where its input is needed besides.
    """
    computed = set(wanted)
    targets = {split_tensor(tensor)[0] for tensor in computed}
    needed = graph.ancestors(targets, control=False)
    drawn = graph.descendants(random) & needed
    whole, arrays = units(graph), array_tensors(graph)
    behind = {tensor: _behind_data(graph, split_tensor(tensor)[0]) for tensor in inputs}
    order = _order(graph, drawn, whole)
    places = {name: place for place, names in enumerate(order) for name in names}
    # Node to the tensors of it that are read, each with the place that reads it; those that are wanted, at the end.
    read: dict[str, list[tuple[str, int]]] = {}
    for tensor, consumers in graph.consumers.items():
        numbers = {places[follower.name] for follower, _ in consumers if follower.name in places}
        read.setdefault(split_tensor(tensor)[0], []).extend((tensor, number) for number in numbers)
    for tensor in computed:
        read.setdefault(split_tensor(tensor)[0], []).append((tensor, len(order)))
    # How far edges reach that begin before a place: where none passes it by, everything goes through it.
    reach = max((places[name] for name in random if name in places), default=len(order))
    for place, names in enumerate(order):
        edges = [edge for name in names for edge in read.get(name, ()) if edge[1] != place]
        given = {tensor for tensor, _ in edges}
        if place >= reach and len(given) == 1:
            (tensor,) = given
            sources = [data for data, nodes in behind.items() if split_tensor(tensor)[0] in nodes]
            if len(sources) == 1 and tensor not in arrays and _is_numbers(graph, tensor):
                left = _needed_without(graph, targets, split_tensor(tensor)[0])
                return None if split_tensor(sources[0])[0] in left else (tensor, sources[0])
        reach = max([reach, *(number for _, number in edges)])
    return None


def _needed_without(graph: Graph, targets: Iterable[str], fed: str) -> set[str]:
    """Return the names of the nodes that are run where a node is fed."""
    seen: set[str] = set()
    stack = list(targets)
    while stack:
        name = stack.pop()
        if name not in seen and name in graph.nodes and name != fed:
            seen.add(name)
            stack.extend(split_tensor(tensor)[0] for tensor in graph.inputs(graph.nodes[name]))
    return seen


def _behind_data(graph: Graph, start: str) -> set[str]:
    """Return the names of the nodes that values of an input come to, the input included."""
    seen: set[str] = set()
    stack = [start]
    while stack:
        name = stack.pop()
        if name not in seen and name in graph.nodes and graph.nodes[name].op not in _NO_DATA:
            seen.add(name)
            stack.extend(graph.dependents.get(name, ()))
    return seen


def _order(graph: Graph, names: set[str], whole: Mapping[str, frozenset[str]]) -> list[tuple[str, ...]]:
    """Return nodes, loops and branches as one, each behind what it waits for."""
    begun: set[str] = set()
    done: set[str] = set()
    order: list[tuple[str, ...]] = []
    for start in (node.name for node in graph.order if node.name in names):
        stack = [start]
        while stack:
            name = stack[-1]
            members = tuple(member for member in whole.get(name, (name,)) if member in names)
            if name in begun:
                stack.pop()
                if name not in done:
                    done.update(members)
                    order.append(members)
                continue
            begun.update(members)
            sources = {split_tensor(tensor)[0] for one in members for tensor in graph.inputs(graph.nodes[one])}
            stack.extend(sorted((sources & names) - begun))
    return order


def _is_numbers(graph: Graph, tensor: str) -> bool:
    node = graph.nodes[split_tensor(tensor)[0]]
    number = next((node.attr[key].type for key in ("DstT", "element_dtype", "dtype", "T") if key in node.attr), 0)
    return DTYPES.get(number) in _NUMBERS
