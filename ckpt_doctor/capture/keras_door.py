"""From a Keras file to a `Program`: the model is loaded by Keras itself and traced once at inference.

Batch-norm layers are noted where they compute, in `call`: a wrapper such as `TimeDistributed` calls that and not
`__call__`. While tracing, each wanted layer computes its output from its input and two placeholders, so the traced
graph comes cut open.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.keras_captures import captures_of, states_of, wrapped_variable
from ckpt_doctor.capture.keras_inputs import KerasInputs, inputs_of
from ckpt_doctor.capture.keras_masks import counted, masks, why_not_counted
from ckpt_doctor.capture.keras_models import load_keras
from ckpt_doctor.capture.keras_names import batch_norms
from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.capture.runtime import reason as said_in_a_line
from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.cut import CutGraph, CutSite, set_variables
from ckpt_doctor.graphs.graph import Graph, split_tensor
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_log = logging.getLogger(__name__)

_ELSEWHERE = (
    "its statistics are also read elsewhere in the model (folded into a kernel, by another head), so it cannot be "
    "measured by itself"
)
_BEHIND_STATE = (
    "a stateful recurrent layer before it carries its state from one batch to the next, so its input depends "
    "on the order of all data before; pass the model with stateful=False with --model"
)
_INNER = "it runs inside a loop or a branch of the model, where its input cannot be read"

# Graphs in which Keras only looks what shapes come out, as a Sequential without an input does for every new shape
# (tf_keras/src/engine/base_layer.py: `_infer_output_signature`; keras/src/backend/tensorflow/core.py: the same).
_SCRATCH = re.compile(r"(^|_)scratch_graph|^keras_graph$")

# Gives the dimensions of the data for each input; None where they differ from batch to batch.
ShapesOfData = Callable[[Sequence[ModelInput]], tuple[tuple[int, ...], ...] | None]


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
    shapes: ShapesOfData | None = None,
) -> KerasProgram:
    """Return the program that measures the wanted layers.

    Args:
        checkpoint: Gives the values, and the model where `model` does not.
        layers: Its batch-norm layers.
        wanted: Names of the layers that are cut open.
        model: What `--model` names.
        allow_code: Whether Python that the file carries (Lambda layers) may run.
        shapes: Gives the dimensions of the data for the inputs, asked where a layer cannot be measured and the model
            leaves dimensions open: `TimeDistributed` over an open axis is a loop, over a known one it is not.

    Raises:
        RepairRefused: Keras cannot load or run the model, it carries code, or weights of it have no value of the file.
    """
    loaded = load_keras(checkpoint, layers, model, allow_code=allow_code)
    chosen = set(wanted) - set(loaded.left)
    names = {key: name for key, name in loaded.names.items() if name in chosen}
    inputs = inputs_of(loaded.model)
    restored = set(map(id, loaded.model.weights))
    traced = _Trace(loaded.model, names, inputs).program()
    _refuse_made_up(checkpoint.path, [one for one in loaded.model.weights if id(one) not in restored])
    closed = _closed(inputs, shapes) if traced.left else inputs
    if closed is not inputs:
        _log.debug("traced again with the shapes of the data %s: %d layers were left", closed.shapes, len(traced.left))
        again = _Trace(loaded.model, names, closed).program()
        traced = again if len(again.left) < len(traced.left) else traced
    _log.debug(
        "%s: %s %s with the inputs %s; %d of %d layers cut open",
        checkpoint.path,
        type(loaded.model).__module__.partition(".")[0],
        loaded.model.name,
        ", ".join(inputs.names),
        len({site.layer for site in traced.program.cut.sites}),
        len(chosen),
    )
    unknown = dict.fromkeys(chosen - set(loaded.names.values()), "the model does not show which of its layers it is")
    return replace(traced, left={**traced.left, **unknown, **loaded.left})


def _refuse_made_up(where: str, weights: Sequence[Any]) -> None:
    """Refuse a model whose layers made weights only when it was run: no value of the file can be in them.

    `build()` of a subclassed Keras 3 model marks it as built and leaves its layers without variables (3.15.1).
    """
    if weights:
        first = getattr(weights[0], "path", weights[0].name)
        raise RepairRefused(
            f"{where}: the model of --model had not created {len(weights)} of its weights (first: {first}) when the "
            "file's values were put into it, so they are random; call the model once on data before the function "
            "returns it"
        )


def _closed(inputs: KerasInputs, shapes: ShapesOfData | None) -> KerasInputs:
    """Return the inputs with their open dimensions taken from the data."""
    if shapes is None or not any(None in shape[1:] for shape in inputs.shapes):
        return inputs
    found = shapes(
        [
            ModelInput(name, name, dtype, shape)
            for name, dtype, shape in zip(inputs.names, inputs.dtypes, inputs.shapes, strict=True)
        ]
    )
    if found is None:
        return inputs
    return replace(inputs, shapes=tuple((None, *shape[1:]) for shape in found))


class _Trace:
    """Traces a model at inference with the wanted layers cut open."""

    def __init__(self, model: Any, names: Mapping[int, str], inputs: KerasInputs) -> None:
        self.tf = tensorflow()
        self.model = model
        self.names = dict(names)
        self.inputs = inputs
        self.sites: list[CutSite] = []
        self.outputs: list[str] = []
        self.left: dict[str, str] = {}
        self.graph: Any = None

    def program(self) -> KerasProgram:
        """Return the program; layers that turn out not to be measurable keep their stored statistics in it."""
        while True:
            concrete = self._traced()
            again = self._without_dead_sites(concrete)
            elsewhere = self._read_elsewhere(concrete)
            self.left.update((name, _ELSEWHERE) for name in elsewhere - set(self.left))
            behind = self._behind_states(concrete)
            self.left.update((name, _BEHIND_STATE) for name in behind - set(self.left))
            again |= elsewhere | behind
            if not again:
                break
            self.left.update((name, _INNER) for name in again - set(self.left))
            self.names = {key: name for key, name in self.names.items() if name not in again}
        for layer in batch_norms(self.model):
            name = self.names.get(id(layer))
            if name is not None and name not in self.left and name not in {site.layer for site in self.sites}:
                self.left[name] = (
                    "the model does not run it on the way to its outputs"
                    if _is_of_keras(type(layer))
                    else f"its class {type(layer).__name__} has its own normalisation code, or the model does not run "
                    "it"
                )
        return self._finish(concrete)

    def _traced(self) -> Any:
        specs = [
            self.tf.TensorSpec([None, *shape[1:]], dtype, name=f"input_{number}")
            for number, (shape, dtype) in enumerate(zip(self.inputs.shapes, self.inputs.dtypes, strict=True))
        ]
        self.sites.clear()
        self.outputs.clear()

        def inference(*tensors: Any) -> Any:
            self.graph = self.tf.compat.v1.get_default_graph()
            # A layer whose `call` is a function of TensorFlow of its own then runs in this graph as well.
            eager = self.tf.config.functions_run_eagerly()
            self.tf.config.run_functions_eagerly(True)
            try:
                return self.inputs.call(tensors)
            finally:
                self.tf.config.run_functions_eagerly(eager)

        with self._cut_open():
            try:
                return self.tf.function(inference, autograph=False).get_concrete_function(*specs)
            # Any layer's code runs here, the user's own included.
            except Exception as error:
                raise RepairRefused(
                    f"the model {self.model.name} cannot be run at inference: {said_in_a_line(error)}"
                ) from error

    def _without_dead_sites(self, concrete: Any) -> set[str]:
        """Drop sites whose output nothing needs, and return layers whose statistics are needed all the same.

        `tf.vectorized_map` traces its function once and then writes other operations in its place: what it traced is no
        part of the model, and the layer's input cannot be seen.
        """
        graph = Graph(pb.GraphDef.FromString(concrete.graph.as_graph_def().SerializeToString()))
        needed = graph.ancestors(
            [split_tensor(tensor.name)[0] for tensor in self.tf.nest.flatten(concrete.structured_outputs)],
            control=False,
        )
        alive = [split_tensor(output)[0] in needed for output in self.outputs]
        hidden = {
            site.layer
            for site, lives in zip(self.sites, alive, strict=True)
            if not lives and split_tensor(site.mean)[0] in needed
        }
        self.sites = [site for site, lives in zip(self.sites, alive, strict=True) if lives]
        # A layer that is seen at one place and hidden at another cannot be measured at all.
        return hidden | ({site.layer for site in self.sites} & set(self.left))

    def _read_elsewhere(self, concrete: Any) -> set[str]:
        """Return the cut layers whose statistics are read by something else as well: folded into a kernel, by a head.

        There they have the values of the file, whatever is fed to the layer, so what is measured would not be what the
        repaired model computes.
        """
        owners = {}
        cut = {site.layer for site in self.sites}
        for layer in batch_norms(self.model):
            name = self.names.get(id(layer))
            for variable in (layer.moving_mean, layer.moving_variance) if name in cut else ():
                owners[id(wrapped_variable(variable).handle)] = name
        read = {internal.op.name: owners[id(one)] for one, internal in concrete.graph.captures if id(one) in owners}
        if not read:
            return set()
        graph = Graph(pb.GraphDef.FromString(concrete.graph.as_graph_def().SerializeToString()))
        wanted = [tensor.name for tensor in self.tf.nest.flatten(concrete.structured_outputs)]
        wanted += [site.x for site in self.sites]
        needed = graph.ancestors([split_tensor(name)[0] for name in wanted], control=False)
        return {name for node, name in read.items() if node in needed and name is not None}

    def _behind_states(self, concrete: Any) -> set[str]:
        """Return the cut layers whose input depends on what a recurrent layer kept of the batch before."""
        states = {id(variable.handle) for variable in states_of(self.model)}
        kept = {internal.op.name for one, internal in concrete.graph.captures if id(one) in states}
        if not kept:
            return set()
        graph = Graph(pb.GraphDef.FromString(concrete.graph.as_graph_def().SerializeToString()))
        return {site.layer for site in self.sites if kept & graph.ancestors([split_tensor(site.x)[0]], control=False)}

    @contextmanager
    def _cut_open(self) -> Iterator[None]:
        """Replace `call` of Keras' own batch-norm classes while tracing; the classes are left as they were found.

        A derived class that calls its base is measured where the base normalises.
        """
        live = [layer for layer in batch_norms(self.model) if id(layer) in self.names]
        originals = {owner: owner.__dict__["call"] for owner in {_framework_class(type(layer)) for layer in live}}
        try:
            for owner, original in originals.items():
                setattr(owner, "call", self._wrapped(original))  # noqa: B010
            yield
        finally:
            for owner, original in originals.items():
                setattr(owner, "call", original)  # noqa: B010

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        trace = self

        def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            name = trace.names.get(id(self))
            here = trace.tf.compat.v1.get_default_graph()
            if name is not None and name not in trace.left and not _SCRATCH.search(str(getattr(here, "name", ""))):
                if _several(self.axis):
                    trace.left[name] = "it normalises over several axes"
                elif here is not trace.graph:
                    trace.left[name] = _INNER
                else:
                    rank = len(inputs.shape)
                    reason = why_not_counted(self, rank, mask, _channel_axis(self, rank))
                    if reason is None:
                        return trace.normalise(self, name, inputs, mask)
                    trace.left[name] = reason
            masked = {} if mask is None else {"mask": mask}
            return original(self, inputs, training=training, **masked)

        return call

    def normalise(self, layer: Any, name: str, x: Any, mask: Any) -> Any:
        """Return the layer's output, computed from placeholders for its statistics."""
        tf = self.tf
        x = tf.convert_to_tensor(x)
        axis = _channel_axis(layer, x.shape.rank)
        mean = tf.compat.v1.placeholder(tf.float32, [None])
        variance = tf.compat.v1.placeholder(tf.float32, [None])
        shape = [1] * x.shape.rank
        shape[axis] = -1
        inverse = tf.math.rsqrt(variance + tf.constant(layer.epsilon, tf.float32))
        if layer.gamma is not None:
            inverse *= tf.reshape(tf.cast(tf.convert_to_tensor(layer.gamma), tf.float32), [-1])
        shift = -mean * inverse
        if layer.beta is not None:
            shift += tf.reshape(tf.cast(tf.convert_to_tensor(layer.beta), tf.float32), [-1])
        y = tf.cast(x, tf.float32) * tf.reshape(inverse, shape) + tf.reshape(shift, shape)
        measured = x
        if masks(layer, mask):
            measured, axis = counted(x, mask, axis), 1
        self.sites.append(CutSite(name, measured.name, mean.name, variance.name, axis, float(layer.epsilon)))
        self.outputs.append(y.name)
        return tf.cast(y, layer.compute_dtype)

    def _finish(self, concrete: Any) -> KerasProgram:
        graph = concrete.graph
        outputs = tuple(tensor.name for tensor in self.tf.nest.flatten(concrete.structured_outputs))
        whole = Graph(pb.GraphDef.FromString(graph.as_graph_def().SerializeToString()))
        # What belongs to no site and no output (counters of seeds, losses) is left out, control edges with it.
        needed = whole.ancestors(
            [split_tensor(name)[0] for name in (*outputs, *(site.x for site in self.sites))], control=False
        )
        tensors = [tensor.name for tensor in concrete.inputs[: len(self.inputs.names)]]
        # An input that only says what is masked is not needed where a fused kernel does not look; it can be fed still.
        needed |= {split_tensor(tensor)[0] for tensor in tensors}
        captures = captures_of(self.model, graph, needed)
        result = pb.GraphDef()
        result.versions.CopyFrom(whole.proto.versions)
        result.library.CopyFrom(whole.proto.library)
        for node in whole.proto.node:
            if node.name in needed:
                copy = result.node.add()
                copy.CopyFrom(captures.nodes.get(node.name, node))
                kept = [entry for entry in copy.input if not entry.startswith("^")]
                del copy.input[:]
                copy.input.extend(kept)
        result.node.extend(captures.added)
        cut = CutGraph(result, tuple(self.sites), (), set_variables(result), tuple(captures.starters))
        return KerasProgram(
            Program(
                cut=cut,
                inputs=tuple(
                    ModelInput(name, tensor, dtype, shape, name)
                    for name, tensor, dtype, shape in zip(
                        self.inputs.names, tensors, self.inputs.dtypes, self.inputs.shapes, strict=True
                    )
                ),
                values=captures.values,
            ),
            dict(zip(_output_names(self.model, outputs), outputs, strict=True)),
            self.left,
        )


def _several(axis: Any) -> bool:
    return not isinstance(axis, int) and len(list(axis)) != 1


def _channel_axis(layer: Any, rank: int) -> int:
    axis = int(layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis)))
    # Keras 2 counts a dimension more where it trains in batches of a part of the batch.
    return (axis - (getattr(layer, "virtual_batch_size", None) is not None)) % rank


def _framework_class(kind: type) -> type:
    """Return the class of Keras itself that normalises for a class derived from it."""
    return next(base for base in kind.__mro__ if "call" in base.__dict__ and _is_of_keras(base))


def _is_of_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("keras", "tf_keras", "tensorflow")


def _output_names(model: Any, outputs: Sequence[str]) -> list[str]:
    names = getattr(model, "output_names", None)
    return (
        [str(name) for name in names]
        if names and len(names) == len(outputs)
        else [f"output_{number}" for number in range(len(outputs))]
    )
