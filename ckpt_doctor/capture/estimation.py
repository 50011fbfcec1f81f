"""Model and data to new statistics: which front door, which method, which error bars."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from ckpt_doctor.analysis import with_meta_graph
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.capture import keras_door, keras_models, meta_graph_door
from ckpt_doctor.capture.batches import as_taken
from ckpt_doctor.capture.data import fixed_shapes, read_samples
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.program import Program
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.graphs import graph_of
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import ServedGraph
from ckpt_doctor.observation import Observation
from ckpt_doctor.options import DataOptions
from ckpt_doctor.progress import Listener, unheard

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is ready to run.

    Attributes:
        program: What the engine runs; every layer with statistics is cut open.
        meta: The TF1 graph, where the model is one.
        left: Layer to the reason why it cannot be measured.
        outputs: Name of every output that the model names to its tensor.
    """

    program: Program
    meta: MetaGraph | None
    left: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)


def meta_graph_of(checkpoint: Checkpoint) -> MetaGraph | None:
    """Return the graph that lies with a checkpoint, a `.meta` or a SavedModel's, or None where there is none.

    Raises:
        RepairRefused: It is damaged.
    """
    try:
        return graph_of(checkpoint.descriptions)
    except DecodeError as error:
        where = checkpoint.descriptions.meta_graph_path or checkpoint.path
        raise RepairRefused(f"{where}: is not a TensorFlow graph, so there is no model to run") from error


def load_model(
    checkpoint: Checkpoint, inventory: Inventory, request: DataOptions, outputs: Sequence[str] = ()
) -> Loaded:
    """Return the model of a checkpoint with its batch-norm layers cut open.

    Raises:
        RepairRefused: No model lies with the checkpoint, or it cannot be run.
    """
    meta = meta_graph_of(checkpoint)
    if not keras_models.is_keras(checkpoint, request.model):
        if meta is None:
            raise RepairRefused(
                f"{checkpoint.path}: no model found next to the checkpoint (a .meta, or a config inside a Keras "
                "file); pass one with --model"
            )
        _log.debug("%s: run by its graph; nothing names a Keras model", checkpoint.path)
        return _by_graph(checkpoint, inventory, request, meta, outputs)
    if request.model is not None or meta is None or keras_models.masks(checkpoint):
        why = "--model names it" if request.model is not None else "no graph" if meta is None else "its layers mask"
        _log.debug("%s: run by Keras (%s)", checkpoint.path, why)
        return _by_keras(checkpoint, inventory, request)
    # Of classes that Keras does not know, and of what may not run, a SavedModel holds the graph all the same.
    try:
        loaded = _by_keras(checkpoint, inventory, request)
    except RepairRefused as refusal:
        _log.debug("%s: run by the graph of the SavedModel, because Keras refused: %s", checkpoint.path, refusal)
        with suppress(RepairRefused):
            return _by_graph(checkpoint, inventory, request, meta, outputs)
        raise refusal
    if loaded.left:
        with suppress(RepairRefused):
            served = _by_graph(checkpoint, inventory, request, meta, outputs)
            _log.debug(
                "%s: Keras cannot measure %d layers, the graph of the SavedModel %d; the one with fewer is run",
                checkpoint.path,
                len(loaded.left),
                len(served.left),
            )
            return served if len(served.left) < len(loaded.left) else loaded
    return loaded


def _by_graph(
    checkpoint: Checkpoint, inventory: Inventory, request: DataOptions, meta: MetaGraph, outputs: Sequence[str]
) -> Loaded:
    program = meta_graph_door.load(
        checkpoint,
        meta,
        inventory.layers,
        inputs=list(request.inputs.values()),
        feeds=request.feeds,
        outputs=outputs,
        unproven=request.unproven,
        allow_code=request.allow_code,
    )
    sited = {site.layer for site in program.cut.sites}
    left = {layer.name: _why_not_run(layer, meta) for layer in inventory.layers if layer.name not in sited}
    left |= dict(program.left)
    return Loaded(program, meta, left, meta.signature.outputs if isinstance(meta, ServedGraph) else {})


def _why_not_run(layer: BatchNormLayer, meta: MetaGraph) -> str:
    """Return why a graph that is run does not run a layer."""
    if not isinstance(meta, ServedGraph):
        return "the checkpoint's graph does not show where it normalises"
    if layer.facts is not None and layer.facts.sites:
        return (
            f"only another signature of the SavedModel runs it than {meta.signature.name}, which is the one that is run"
        )
    return "no signature of the SavedModel runs it"


def _by_keras(checkpoint: Checkpoint, inventory: Inventory, request: DataOptions) -> Loaded:
    traced = keras_door.load(
        checkpoint,
        inventory.layers,
        [layer.name for layer in inventory.layers],
        model=request.model,
        allow_code=request.allow_code,
        shapes=lambda entries: fixed_shapes(request, entries),
    )
    return Loaded(traced.program, None, traced.left, traced.outputs)


def with_model(checkpoint: Checkpoint, model: str | None, *, allow_code: bool = False) -> Checkpoint:
    """Return the checkpoint with what `--model` says of its layers.

    Args:
        checkpoint: The checkpoint.
        model: A `.meta`, or what describes a Keras model.
        allow_code: Whether Python that a model file carries may run.

    Raises:
        BadRequest: The file is absent, or of a form that is not read.
    """
    if model is None:
        return checkpoint
    path = Path(model)
    if path.suffix != ".meta":
        return keras_models.with_keras_config(checkpoint, model, allow_code=allow_code)
    if checkpoint.format not in ("tensor-bundle", "tensor-slices-v1"):
        raise BadRequest(f"--model {model}: a .meta describes a checkpoint of tf.train.Saver, not {checkpoint.format}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"--model {model}: cannot be read: {error.strerror}") from error
    return with_meta_graph(checkpoint, data, str(path))


def read_data(loaded: Loaded, request: DataOptions, kept: ExitStack, progress: Listener = unheard) -> Samples:
    """Return the data, matched to the inputs of the model, in batches that it takes; `kept` frees what they hold."""
    return as_taken(read_samples(request, loaded.program.inputs, kept, progress), loaded.program)


def stored_statistics(layers: Sequence[BatchNormLayer]) -> dict[str, tuple[Array, Array]]:
    """Return mean and variance of every layer; 0 and 1, as a loader would leave them, where they are missing."""
    table = {}
    for layer in layers:
        channels = layer.channels or 1
        mean = layer.values.get("moving_mean", np.zeros(channels))
        variance = layer.values.get("moving_variance", np.ones(channels))
        table[layer.name] = (mean, variance)
    return table


def observe(
    checkpoint: Checkpoint, inventory: Inventory, request: DataOptions, progress: Listener = unheard
) -> tuple[dict[str, Observation], dict[str, str]]:
    """Return what goes into every layer in one inference pass with the stored statistics.

    Layers whose statistics are missing count with mean 0 and variance 1, as a loader would leave them.

    Returns:
        Layer to what was seen, and layer to the reason why nothing was.
    """
    loaded = load_model(checkpoint, inventory, request)
    with ExitStack() as kept:
        samples = read_data(loaded, request, kept, progress)
        engine = kept.enter_context(
            Engine(loaded.program, stored_statistics(inventory.layers), cache_memory=request.cache_memory)
        )
        return engine.observe(samples, progress=progress), dict(loaded.left)
