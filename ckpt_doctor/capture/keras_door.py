"""From a Keras file to a `Program`: the model is loaded by Keras itself and traced once at inference.

Batch-norm layers are noted where they compute, in `call`: a wrapper such as `TimeDistributed` calls that and not
`__call__`. While tracing, each wanted layer computes its output from its input and two placeholders, so the traced
graph comes cut open.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.capture.runtime import keras, tensorflow
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import format_of
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs.cut import CutGraph, CutSite, set_variables
from ckpt_doctor.graphs.graph import Graph, split_tensor
from ckpt_doctor.graphs.keras_config import BATCH_NORM_CLASSES
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_CODE_CLASSES = ("Lambda", "TFOpLambda", "SlicingOpLambda")


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
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], wanted: Iterable[str], *, allow_code: bool = False
) -> KerasProgram:
    """Return the program that measures the wanted layers.

    Args:
        checkpoint: A whole Keras model.
        layers: Its batch-norm layers.
        wanted: Names of the layers that are cut open.
        allow_code: Whether Python that the file carries (Lambda layers) may run.

    Raises:
        RepairRefused: Keras cannot load or run the model, or it carries code.
    """
    _refuse_code(checkpoint, allow_code)
    legacy = _is_keras_2(checkpoint)
    module = keras(legacy)
    model = _load_model(module, checkpoint, layers, allow_code)
    return _Trace(module, model, set(wanted)).program()


def _is_keras_2(checkpoint: Checkpoint) -> bool:
    """Return whether the file is of Keras 2, by the version that it carries.

    tf.keras and tf_keras write TensorFlow's version there, also beyond 3; only Keras 3 leaves `:0` off its names.
    """
    version = str(checkpoint.attributes.get("keras_version", ""))
    return checkpoint.format == "keras-hdf5" and (
        version.startswith(("1.", "2.")) or any(variable.name.endswith(":0") for variable in checkpoint.variables)
    )


def _refuse_code(checkpoint: Checkpoint, allow_code: bool) -> None:
    def classes(entry: Any) -> Iterator[str]:
        if isinstance(entry, dict):
            if isinstance(entry.get("class_name"), str):
                yield entry["class_name"]
            for value in entry.values():
                yield from classes(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from classes(value)

    found = sorted(set(classes(json.loads(checkpoint.descriptions.keras_config or "null"))) & set(_CODE_CLASSES))
    if found and not allow_code:
        raise RepairRefused(
            f"{checkpoint.path}: the model holds {found[0]} layers, whose Python code comes from the file; if you "
            "trust it, allow it with --allow-code"
        )


def _load_model(module: Any, checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], allow_code: bool) -> Any:
    """Return the Keras model; statistics that the file lacks are completed with 0 and 1 in a copy."""
    with tempfile.TemporaryDirectory(prefix="ckpt-doctor-") as folder:
        path = Path(checkpoint.path)
        additions = completion(checkpoint, layers)
        if additions:
            completed = Path(folder) / path.name
            format_of(checkpoint).rewrite(checkpoint, completed, Changes(values=additions))
            path = completed
        options: dict[str, Any] = {"compile": False}
        if path.suffix == ".keras":
            options["safe_mode"] = not allow_code
        try:
            return module.models.load_model(path, **options)
        except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError, NotImplementedError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RepairRefused(f"{checkpoint.path}: Keras cannot load the model: {first}") from error


def completion(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer]) -> dict[str, Array]:
    """Return initial values, mean 0 and variance 1, for the statistics that the file lacks."""
    additions: dict[str, Array] = {}
    for layer in layers:
        for role, name in layer.absent.items():
            if layer.channels is None:
                raise RepairRefused(f"layer {layer.name}: nothing in the file tells how many channels it has")
            like = next((v for n in layer.variables.values() if (v := checkpoint.variable(n)) is not None), None)
            dtype = like.read().dtype if like is not None else np.dtype(np.float32)
            additions[name] = np.full(layer.channels, float(role == "moving_variance")).astype(dtype)
    return additions


class _Trace:
    """Traces a model at inference with the wanted layers cut open."""

    def __init__(self, module: Any, model: Any, wanted: set[str]) -> None:
        self.tf = tensorflow()
        self.module = module
        self.model = model
        self.names = {id(layer): name for name, layer in _named(model).items() if name in wanted}
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
        classes = {type(layer) for layer in _named(self.model).values() if id(layer) in self.names}
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


def _named(model: Any) -> dict[str, Any]:
    """Return the batch-norm layers of a model by the names that `graphs.keras_config` gives them."""
    found: list[tuple[tuple[str, ...], Any]] = []
    everything: list[str] = []

    def visit(layer: Any, path: tuple[str, ...]) -> None:
        inner = getattr(layer, "layers", None)
        if isinstance(inner, list) and type(layer).__name__ not in BATCH_NORM_CLASSES:
            for child in inner:
                visit(child, (*path, child.name))
            return
        everything.append(path[-1])
        if any(kind.__name__ in BATCH_NORM_CLASSES for kind in type(layer).__mro__):
            found.append((path, layer))
        for attribute in ("layer", "forward_layer", "backward_layer"):
            child = getattr(layer, attribute, None)
            if child is not None and hasattr(child, "name"):
                visit(child, (*path, child.name))

    for layer in model.layers:
        visit(layer, (layer.name,))
    return {path[-1] if everything.count(path[-1]) == 1 else "/".join(path): layer for path, layer in found}
