"""A graph with its function calls written out.

TensorFlow 2 keeps a model's operations in functions that the graph calls, and control flow v2 keeps each branch of an
`If` in one. Written out, every operation stands in one flat graph, in which variables can be followed to where they
are read. Inside a function a tensor is named `node:output:index`, after the operation's declared outputs; in a graph
`node:index` counts through all of them.
Source: tensorflow/core/framework/function.proto; core/common_runtime/inline_function_utils.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ckpt_doctor.graphs.graph import TooMuchWork, is_number, split_tensor, tensor_name
from ckpt_doctor.graphs.op_outputs import place_of
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"If", "StatelessIf"})
_LOOPS = frozenset({"While", "StatelessWhile"})
# Functions that call each other are not what TensorFlow writes; a damaged file may hold anything.
_DEEPEST = 50
# A function that is called from two places is written out twice; functions each of which calls the next one twice would
# be written out two to the power of their number times. Models write each out once or a few times.
_MOST_COPIES = 10
_ANYWAY = 20_000
Decide = Callable[[pb.NodeDef], "bool | None"]


def undecided(node: pb.NodeDef) -> bool | None:
    """Decide no branch: only plain calls are written out."""
    del node
    return None


def inline(
    graph: pb.GraphDef, decide: Decide = undecided, *, loops: bool = False
) -> tuple[pb.GraphDef, dict[str, str]]:
    """Return the graph with its calls written out, and what their outputs are called now.

    Calls of functions that the library lacks, and branches that are not decided, stay as they are. Node names of a
    function are prefixed with that of the call.

    Args:
        graph: The graph; not changed.
        decide: Which way an `If` goes: true, false, or None where that is not known.
        loops: Whether the body of a `While` is written out once, to be looked at; such a graph does not compute what
            the loop does.

    Raises:
        TooMuchWork: Written out, it would be many times as long.
    """
    library = {function.signature.name: function for function in graph.library.function}
    if not any(node.op in _CALLS | _BRANCHES | _LOOPS or node.op in library for node in graph.node):
        return graph, {}
    stored = len(graph.node) + sum(len(function.node_def) for function in library.values())
    writer = _Writer(library, decide, loops=loops, most=_MOST_COPIES * stored + _ANYWAY)
    writer.write(graph.node, prefix="", rename={}, depth=0, attributes={})
    if not writer.alias and not writer.ended:
        return graph, {}
    result = pb.GraphDef()
    result.versions.CopyFrom(graph.versions)
    result.library.CopyFrom(graph.library)
    for node in writer.nodes:
        copy = result.node.add()
        copy.CopyFrom(node)
        del copy.input[:]
        for entry in node.input:
            if entry.startswith("^"):
                copy.input.extend(f"^{name}" for name in writer.ends(entry[1:]))
            else:
                copy.input.append(_short(writer.resolve(tensor_name(entry))))
    return result, {tensor: writer.resolve(tensor) for tensor in writer.alias}


def _short(tensor: str) -> str:
    return tensor[:-2] if tensor.endswith(":0") else tensor


class _Writer:
    """Collects nodes; inputs are resolved at the end, since a call's outputs are known only when it is written."""

    def __init__(self, library: Mapping[str, pb.FunctionDef], decide: Decide, *, loops: bool, most: int) -> None:
        self.library = library
        self.decide = decide
        self.loops = loops
        self.most = self.left = most
        self.nodes: list[pb.NodeDef] = []
        # A call's output to the tensor that it is, and a call to the nodes that end it.
        self.alias: dict[str, str] = {}
        self.ended: dict[str, tuple[str, ...]] = {}
        self.taken: set[str] = set()
        self._known_ends: dict[str, tuple[str, ...]] = {}

    def resolve(self, tensor: str) -> str:
        """Return the tensor that `tensor` is now."""
        for _ in range(10 * _DEEPEST):
            if tensor not in self.alias:
                break
            tensor = self.alias[tensor]
        return tensor

    def ends(self, node: str) -> tuple[str, ...]:
        """Return the nodes to wait for instead of a call."""
        if node not in self.ended:
            return (node,)
        if node not in self._known_ends:
            found: dict[str, None] = {}
            seen: set[str] = set()
            stack = [node]
            while stack and len(found) < 10_000:
                name = stack.pop()
                if name not in self.ended:
                    found[name] = None
                elif name not in seen:
                    seen.add(name)
                    stack.extend(self.ended[name])
            self._known_ends[node] = tuple(found)
        return self._known_ends[node]

    def write(
        self,
        nodes: Iterable[pb.NodeDef],
        prefix: str,
        rename: Mapping[str, str],
        depth: int,
        attributes: Mapping[str, pb.AttrValue],
    ) -> None:
        """Add nodes of a graph, or of the function that `prefix` calls; `rename` maps its arguments to tensors."""
        nodes = list(nodes)
        named = {node.name: node for node in nodes}
        self.taken.update(prefix + name for name in named)
        for node in nodes:
            copy = pb.NodeDef()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            if prefix:
                del copy.input[:]
                copy.input.extend(self._renamed(entry, prefix, rename, named) for entry in node.input)
                for name, value in copy.attr.items():
                    if value.WhichOneof("value") == "placeholder" and value.placeholder in attributes:
                        copy.attr[name].CopyFrom(attributes[value.placeholder])
            self._spend()
            called = self._called(copy)
            if called is None or depth >= _DEEPEST:
                self.nodes.append(copy)
            else:
                self._call(copy, *called, depth)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooMuchWork(
                f"its functions, with every call written out, are more than {self.most} operations, over "
                f"{_MOST_COPIES} times as many as are stored; models write each function out a few times"
            )

    def _renamed(self, entry: str, prefix: str, rename: Mapping[str, str], named: Mapping[str, pb.NodeDef]) -> str:
        """Return an input inside a function as one of the graph."""
        if entry.startswith("^"):
            name = entry[1:]
            return f"^{split_tensor(rename[name])[0]}" if name in rename else f"^{prefix}{name}"
        if entry in rename:
            return rename[entry]
        node, _, rest = entry.partition(":")
        if node in rename:
            return rename[node]
        output, _, index = rest.rpartition(":")
        number = int(index) if is_number(index) else 0
        if node in named:
            number += self._place_of(named[node], output)
        return f"{prefix}{node}:{number}"

    def _place_of(self, node: pb.NodeDef, output: str) -> int:
        if node.op not in self.library:
            return place_of(node, output)
        outputs = [argument.name for argument in self.library[node.op].signature.output_arg]
        return outputs.index(output) if output in outputs else 0

    def _called(self, node: pb.NodeDef) -> tuple[pb.FunctionDef, list[str], Mapping[str, pb.AttrValue]] | None:
        """Return the function that a node calls, the inputs that are its arguments, and its attributes."""
        inputs = [tensor_name(entry) for entry in node.input if not entry.startswith("^")]
        if node.op in _CALLS:
            name, attributes = node.attr["f"].func.name, node.attr["f"].func.attr
        elif node.op in _BRANCHES:
            way = self.decide(node)
            if way is None:
                return None
            branch = node.attr["then_branch" if way else "else_branch"].func
            name, attributes, inputs = branch.name, branch.attr, inputs[1:]
        elif node.op in _LOOPS and self.loops:
            name, attributes = node.attr["body"].func.name, node.attr["body"].func.attr
        elif node.op in self.library:
            name, attributes = node.op, node.attr
        else:
            return None
        function = self.library.get(name)
        if function is None or len(function.signature.input_arg) != len(inputs):
            return None
        return function, inputs, attributes

    def _prefix(self, call: str, function: pb.FunctionDef) -> str:
        """Return what the names of a function's nodes begin with where it is written out.

        `tf.cond` leaves `cond/Identity` beside `cond`, and an `Identity` in its branches.
        """
        prefix, number = f"{call}/", 0
        while any(prefix + node.name in self.taken for node in function.node_def):
            self._spend()
            number += 1
            prefix = f"{call}_{number}/"
        return prefix

    def _call(
        self,
        node: pb.NodeDef,
        function: pb.FunctionDef,
        inputs: list[str],
        attributes: Mapping[str, pb.AttrValue],
        depth: int,
    ) -> None:
        prefix = self._prefix(node.name, function)
        rename = {argument.name: tensor for argument, tensor in zip(function.signature.input_arg, inputs, strict=True)}
        self.write(function.node_def, prefix, rename, depth + 1, attributes)
        named = {inner.name: inner for inner in function.node_def}
        ends: list[str] = []
        for number, argument in enumerate(function.signature.output_arg):
            tensor = self._renamed(function.ret.get(argument.name, ""), prefix, rename, named)
            self.alias[f"{node.name}:{number}"] = tensor_name(tensor)
            ends.append(split_tensor(tensor)[0])
        ends += [prefix + name for name in function.control_ret.values()]
        self.ended[node.name] = tuple(dict.fromkeys(ends))
