"""From a Keras file to a `Program`: the model is loaded by Keras itself and traced once at inference.

Batch-norm layers are noted where they compute, in `call`: a wrapper such as `TimeDistributed` calls that and not
`__call__`. While tracing, each wanted layer computes its output from its input and two placeholders, so the traced
graph comes cut open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.keras_models import load_keras, named
from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.cut import CutGraph, CutSite, set_variables
from ckpt_doctor.graphs.graph import Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb


@dataclass(frozen=True, eq=False)
class KerasProgram:
    """A traced Keras model.

    Attributes:
        program: What the engine runs.
        outputs: Name of each of the model's outputs to its tensor.
        left: Layer to the reason why it cannot be measured.
    """

    program: Program
    outputs: Mapping[str, str]
    left: Mapping[str, str]


def load(
    checkpoint: Checkpoint,
    layers: Sequence[BatchNormLayer],
    wanted: Iterable[str],
    *,
    model: str | None = None,
    allow_code: bool = False,
) -> KerasProgram:
    """Return the program that measures the wanted layers.

    Args:
        checkpoint: Gives the values, and the model where `model` does not.
        layers: Its batch-norm layers.
        wanted: Names of the layers that are cut open.
        model: What `--model` names.
        allow_code: Whether Python that the file carries (Lambda layers) may run.

    Raises:
        RepairRefused: Keras cannot load or run the model, or it carries code.
    """
    loaded = load_keras(checkpoint, layers, model, allow_code=allow_code)
    chosen = set(wanted)
    return _Trace(loaded.model, {key: name for key, name in loaded.names.items() if name in chosen}).program()


class _Trace:
    """Traces a model at inference with the wanted layers cut open."""

    def __init__(self, model: Any, names: Mapping[int, str]) -> None:
        self.tf = tensorflow()
        self.model = model
        self.names = names
        self.sites: list[CutSite] = []
        self.left: dict[str, str] = {}
        self.graph: Any = None

    def program(self) -> KerasProgram:
        inputs = getattr(self.model, "inputs", None)
        if not inputs:
            raise RepairRefused(
                f"the model {self.model.name} is a class of its own and does not say what its inputs are"
            )
        specs = [
            self.tf.TensorSpec([None, *tuple(tensor.shape)[1:]], tensor.dtype, name=f"input_{number}")
            for number, tensor in enumerate(inputs)
        ]

        def inference(*tensors: Any) -> Any:
            self.graph = self.tf.compat.v1.get_default_graph()
            return self.model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)

        with self._cut_open():
            concrete = self.tf.function(inference, autograph=False).get_concrete_function(*specs)
        missing = set(self.names.values()) - {site.layer for site in self.sites} - set(self.left)
        self.left.update(dict.fromkeys(missing, "the model does not run it on the way to its outputs"))
        return self._finish(concrete, inputs)

    @contextmanager
    def _cut_open(self) -> Iterator[None]:
        """Replace `call` of the batch-norm classes while tracing; the classes are left as they were found."""
        classes = {type(layer) for layer in named(self.model).values() if id(layer) in self.names}
        owners = {owner for kind in classes for owner in kind.__mro__[:1]}
        originals = {owner: owner.__dict__.get("call") for owner in owners}
        try:
            for owner in owners:
                setattr(owner, "call", self._wrapped(getattr(owner, "call")))  # noqa: B009, B010
            yield
        finally:
            for owner, original in originals.items():
                if original is None:
                    delattr(owner, "call")
                else:
                    setattr(owner, "call", original)  # noqa: B010

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        trace = self

        def call(self: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            name = trace.names.get(id(self))
            if name is None:
                return original(self, inputs, *arguments, **options)
            if trace.tf.compat.v1.get_default_graph() is not trace.graph:
                trace.left[name] = "it runs inside a loop or a branch of the model, where it cannot be measured"
                return original(self, inputs, *arguments, **options)
            return trace.normalise(self, name, inputs)

        return call

    def normalise(self, layer: Any, name: str, x: Any) -> Any:
        """Return the layer's output, computed from placeholders for its statistics."""
        tf = self.tf
        x = tf.convert_to_tensor(x)
        axis = layer.axis
        axis = int(axis if isinstance(axis, int) else next(iter(axis))) if not _several(axis) else None
        if axis is None:
            self.left[name] = "it normalises over several axes"
            axis = -1
        rank = x.shape.rank
        mean = tf.compat.v1.placeholder(tf.float32, [None])
        variance = tf.compat.v1.placeholder(tf.float32, [None])
        axis %= rank
        shape = [1] * rank
        shape[axis] = -1
        inverse = tf.math.rsqrt(variance + tf.constant(layer.epsilon, tf.float32))
        if layer.gamma is not None:
            inverse *= tf.reshape(tf.cast(tf.convert_to_tensor(layer.gamma), tf.float32), [-1])
        shift = -mean * inverse
        if layer.beta is not None:
            shift += tf.reshape(tf.cast(tf.convert_to_tensor(layer.beta), tf.float32), [-1])
        y = tf.cast(x, tf.float32) * tf.reshape(inverse, shape) + tf.reshape(shift, shape)
        if name not in self.left:
            self.sites.append(CutSite(name, x.name, mean.name, variance.name, axis, float(layer.epsilon)))
        return tf.cast(y, layer.compute_dtype)

    def _finish(self, concrete: Any, inputs: Sequence[Any]) -> KerasProgram:
        graph = concrete.graph
        outputs = tuple(tensor.name for tensor in self.tf.nest.flatten(concrete.structured_outputs))
        whole = Graph(pb.GraphDef.FromString(graph.as_graph_def().SerializeToString()))
        handles = {id(variable.handle): variable for variable in self._variables()}
        values: dict[str, Callable[[], Array]] = {}
        replaced: dict[str, pb.NodeDef] = {}
        for external, internal in graph.captures:
            node = pb.NodeDef(name=internal.op.name)
            if id(external) in handles:
                variable = handles[id(external)]
                node.op = "VarHandleOp"
                node.attr["dtype"].type = variable.dtype.as_datatype_enum
                node.attr["shape"].shape.ParseFromString(variable.shape.as_proto().SerializeToString())
                node.attr["shared_name"].s = internal.op.name.encode()
                values[node.name] = variable.numpy
            else:
                node.op = "Const"
                node.attr["dtype"].type = external.dtype.as_datatype_enum
                node.attr["value"].tensor.ParseFromString(
                    self.tf.make_tensor_proto(external.numpy()).SerializeToString()
                )
            replaced[node.name] = node
        # What belongs to no site and no output (counters of seeds, losses) is left out, control edges with it.
        needed = whole.ancestors(
            [split_tensor(name)[0] for name in (*outputs, *(site.x for site in self.sites))], control=False
        )
        result = pb.GraphDef()
        result.versions.CopyFrom(whole.proto.versions)
        result.library.CopyFrom(whole.proto.library)
        for node in whole.proto.node:
            if node.name in needed:
                copy = result.node.add()
                copy.CopyFrom(replaced.get(node.name, node))
                kept = [entry for entry in copy.input if not entry.startswith("^")]
                del copy.input[:]
                copy.input.extend(kept)
        tensors = [tensor.name for tensor in concrete.inputs[: len(inputs)]]
        cut = CutGraph(result, tuple(self.sites), (), set_variables(result))
        return KerasProgram(
            Program(
                cut=cut,
                inputs=tuple(
                    ModelInput(
                        _input_name(self.model, number, tensor),
                        name,
                        str(self.tf.as_dtype(tensor.dtype).name),
                        (None, *tuple(tensor.shape)[1:]),
                    )
                    for number, (tensor, name) in enumerate(zip(inputs, tensors, strict=True))
                ),
                values={node: values[node] for node in cut.variables},
            ),
            dict(zip(_output_names(self.model, outputs), outputs, strict=True)),
            self.left,
        )

    def _variables(self) -> Iterator[Any]:
        for variable in self.model.variables:
            # Keras 3 wraps TensorFlow's variable as its attribute `value`; on a plain one that is a method.
            wrapped = getattr(variable, "value", None)
            yield variable if wrapped is None or callable(wrapped) else wrapped


def _several(axis: Any) -> bool:
    return not isinstance(axis, int) and len(list(axis)) != 1


def _input_name(model: Any, number: int, tensor: Any) -> str:
    names = getattr(model, "input_names", None)
    return str(names[number]) if names and number < len(names) else str(tensor.name).split(":")[0]


def _output_names(model: Any, outputs: Sequence[str]) -> list[str]:
    names = getattr(model, "output_names", None)
    return (
        [str(name) for name in names]
        if names and len(names) == len(outputs)
        else [f"output_{number}" for number in range(len(outputs))]
    )
