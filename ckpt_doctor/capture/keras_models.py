"""Keras models with the values of a checkpoint in them, however they are described.

The model may lie in the file itself (`.h5`, `.keras`), in a Keras 2 SavedModel, or come from `--model`: another whole
model, the JSON of its config, or a function that builds it. Values are always loaded by Keras or TensorFlow.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ckpt_doctor.batchnorm import ROLES, BatchNormLayer
from ckpt_doctor.capture.keras_code import METADATA, refuse_code, refuse_code_in
from ckpt_doctor.capture.keras_names import batch_norms, names_in
from ckpt_doctor.capture.keras_old_groups import has_old_groups, with_groups_of_today
from ckpt_doctor.capture.runtime import keras, tensorflow
from ckpt_doctor.capture.user_code import call, is_reference, load_function
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs import describe
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_log = logging.getLogger(__name__)

# What loading a model raises for files that it cannot make sense of.
_LOADING_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    AttributeError,
    ImportError,
    NotImplementedError,
    AssertionError,
)
# Keras puts the whole config of a model into its messages.
_LONGEST_REASON = 300
# How Keras 3 and Keras 2 say that a class is missing.
_UNKNOWN_CLASS = re.compile(r"(?:Could not locate class|Unknown layer:) '?([\w>]+)'?")


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A model with its values, and what its batch-norm layers are called in the inventory.

    Attributes:
        model: The Keras model.
        names: `id` of a batch-norm layer to its name in the inventory.
    """

    model: Any
    names: Mapping[int, str]


def is_keras(checkpoint: Checkpoint, model: str | None) -> bool:
    """Return whether the model of a checkpoint, or of `--model`, is a Keras model."""
    if model is not None:
        return not model.endswith(".meta")
    beside = Path(checkpoint.place) / METADATA
    return checkpoint.descriptions.keras_config is not None or (checkpoint.layout.folder and beside.is_file())


def masks(checkpoint: Checkpoint) -> bool:
    """Return whether a SavedModel's layers mask positions: its graph does not say which ones count in training."""
    text = (Path(checkpoint.place) / METADATA).read_bytes()
    return b'"mask_zero": true' in text or b'"Masking"' in text


def with_keras_config(checkpoint: Checkpoint, model: str, *, allow_code: bool) -> Checkpoint:
    """Return a weights-only file with the config of `--model`, which says what its weights are.

    Where Keras made up other names for the layers than those in the file, what the file itself says is better.
    """
    if not checkpoint.layout.weights_only:
        return checkpoint
    text = _config_of(model, allow_code=allow_code)
    described = replace(checkpoint, descriptions=replace(checkpoint.descriptions, keras_config=text))
    facts = describe(described)
    assert facts is not None
    names = [{name for role in ROLES if (name := getattr(layer, role)) is not None} for layer in facts.layers]
    stored = {variable.name for variable in checkpoint.variables}
    unexpected = {name for name in stored.difference(*names) if name.rpartition("/")[2].partition(":")[0] in ROLES}
    return checkpoint if unexpected and not all(map(stored.intersection, names)) else described


def _config_of(model: str, *, allow_code: bool) -> str:
    """Return the config of the Keras model that `--model` names; only a function must run to tell."""
    path = Path(model)
    if path.suffix == ".json":
        return _text(path)
    if path.is_file():
        config = open_checkpoint(model).descriptions.keras_config
        if config is None:
            raise BadRequest(f"--model {model}: holds no model config; name a whole model, its .json or a function")
        return config
    return str(build(model, allow_code=allow_code).to_json())


def load_keras(
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: str | None, *, allow_code: bool
) -> KerasModel:
    """Return the Keras model of a checkpoint, or of `--model` with the values of the checkpoint.

    Raises:
        BadRequest: `--model` names nothing that can be read.
        RepairRefused: The model cannot be loaded, does not fit the values, or carries code.
    """
    if model is None:
        refuse_code(checkpoint.path, checkpoint.descriptions.keras_config, allow_code)
    if model is None and checkpoint.layout.folder:
        _log.debug("%s: loaded by tf_keras from the SavedModel itself", checkpoint.path)
        return _from_saved_model(checkpoint, layers, allow_code=allow_code)
    if checkpoint.layout.restores_objects:
        assert model is not None
        _log.debug("%s: restored by its objects into the model that %s gives", checkpoint.path, model)
        return _restored(checkpoint, layers, build(model, allow_code=allow_code))
    with tempfile.TemporaryDirectory(prefix="ckpt-doctor-") as folder:
        path = Path(checkpoint.place)
        additions = completion(checkpoint, layers)
        _log.debug(
            "%s: %s; values that the file lacks and a copy gets: %s",
            checkpoint.path,
            "loaded with its own config" if model is None else f"weights loaded into the model that {model} gives",
            ", ".join(additions) or "none",
        )
        if additions:
            completed = Path(folder) / path.name
            format_of(checkpoint).rewrite(checkpoint, completed, Changes(values=additions))
            path = completed
            checkpoint = replace(
                open_checkpoint(completed), path=checkpoint.path, places={checkpoint.path: str(completed)}
            )
        config = checkpoint.descriptions.keras_config
        if has_old_groups(checkpoint) and model is None and config is not None:
            path = with_groups_of_today(checkpoint, config, Path(folder))
        if model is None and checkpoint.layout.weights_only:
            raise RepairRefused(f"{checkpoint.path}: holds weights only; name the model with --model")
        if model is not None:
            built = build(model, allow_code=allow_code)
            if has_old_groups(checkpoint):
                path = with_groups_of_today(checkpoint, str(built.to_json()), Path(folder))
            _loading(checkpoint.path, built.load_weights, str(path))
        else:
            options: dict[str, Any] = {"compile": False}
            if path.suffix == ".keras":
                options["safe_mode"] = not allow_code
            module = keras(is_keras_2(checkpoint))
            try:
                built = _loading(checkpoint.path, module.models.load_model, str(path), **options)
            except RepairRefused as refusal:
                raise RepairRefused(f"{refusal}{_age(checkpoint, module)}") from refusal
    return KerasModel(built, names_in(checkpoint, layers, built, built=model is not None))


def _age(checkpoint: Checkpoint, module: Any) -> str:
    """Return what to say where a file is of a newer Keras than the one that failed to load it."""
    written, installed = str(checkpoint.attributes.get("keras_version", "")), str(module.__version__)
    parts = [[int(part) for part in re.findall(r"\d+", version)[:2]] for version in (written, installed)]
    if parts[0] <= parts[1]:
        return ""
    return f"; it was written by Keras {written}, and {installed} is installed; upgrade with: pip install -U keras"


def is_keras_2(checkpoint: Checkpoint) -> bool:
    """Return whether a file is of Keras 2, by the version that it carries.

    tf.keras and tf_keras write TensorFlow's version there, also beyond 3; only Keras 3 leaves `:0` off its names.
    """
    version = str(checkpoint.attributes.get("keras_version", ""))
    if checkpoint.layout.weights_only:
        return False
    if checkpoint.layout.roles_by_position:
        return version.startswith("2.")
    return checkpoint.layout.legacy_keras and (
        version.startswith(("1.", "2.")) or any(variable.name.endswith(":0") for variable in checkpoint.variables)
    )


def build(model: str, *, allow_code: bool) -> Any:
    """Return the Keras model that `--model` names, with whatever values it comes with.

    Raises:
        BadRequest: There is no such file or function, or it gives no Keras model.
        RepairRefused: Keras cannot load it, or it carries code.
    """
    tensorflow()
    path = Path(model)
    if is_reference(model) and not path.exists():
        built = call("--model", model, load_function("--model", model))
        if not hasattr(built, "layers") or not hasattr(built, "to_json"):
            raise BadRequest(f"--model {model}: gives {type(built).__name__}; expected a Keras model")
        return built
    if not path.exists():
        raise BadRequest(f"--model {model}: there is no such file")
    if path.suffix == ".json":
        text = _text(path)
        refuse_code(model, text, allow_code)
        # Keras 2 writes its version beside the config, Keras 3 does not.
        config = json.loads(text)
        built = _loading(model, keras("keras_version" in config).models.model_from_json, text)
        if not hasattr(built, "layers"):
            # tf_keras 2.21 returns the name of a class of a model that it does not know.
            raise RepairRefused(_of_own_class(f"--model {model}", str(config.get("class_name"))))
        return built
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise BadRequest(f"--model {model}: a .meta, .keras, .h5, .json or MODULE:FUNCTION is what can be named here")
    described = open_checkpoint(model)
    refuse_code(model, described.descriptions.keras_config, allow_code)
    return _loading(model, keras(is_keras_2(described)).models.load_model, str(path), compile=False)


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


def _from_saved_model(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], *, allow_code: bool) -> KerasModel:
    refuse_code_in(checkpoint.path, allow_code)
    model = _loading(checkpoint.path, keras(legacy=True).models.load_model, checkpoint.place, compile=False)
    return KerasModel(model, _names_by_object(checkpoint, layers, model)[1])


def _restored(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: Any) -> KerasModel:
    """Return a model with the values of an object-based checkpoint."""
    tf = tensorflow()
    attribute, names = _names_by_object(checkpoint, layers, model)
    root = tf.train.Checkpoint(root=model) if attribute is None else tf.train.Checkpoint(**{attribute: model})
    # Not `restore`: that also asks for the root's own save counter, which weights alone do not have.
    path = Path(checkpoint.place, "variables", "variables") if checkpoint.layout.folder else checkpoint.place
    status = _loading(checkpoint.path, root.read, str(path))
    try:
        status.assert_existing_objects_matched()
    except AssertionError as error:
        first = str(error).strip().splitlines()[0]
        raise RepairRefused(f"{checkpoint.path}: does not hold all values of the model: {first}") from error
    status.expect_partial()
    return KerasModel(model, names)


def _names_by_object(
    checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: Any
) -> tuple[str | None, dict[int, str]]:
    """Return under which attribute of the checkpoint's root the model lies, and the inventory's names of its layers.

    The object graph of the file is walked along the paths that lead to the batch-norm layers in the live model.

    Raises:
        RepairRefused: The paths lead nowhere: it is another model.
    """
    tf = tensorflow()
    try:
        graph = pb.TrackableObjectGraph.FromString(checkpoint.descriptions.object_graph or b"")
    except DecodeError as error:
        raise RepairRefused(f"{checkpoint.path}: its object graph is damaged") from error
    if not graph.nodes:
        raise RepairRefused(f"{checkpoint.path}: has no object graph; --model can name the .meta of a TF1 checkpoint")
    by_key = {key: layer.name for layer in layers for key in layer.variables.values()}
    paths = _paths(tf.train.TrackableView(model), set(map(id, batch_norms(model))))
    starts: list[tuple[str | None, int]] = [(None, 0)]
    starts += [(child.local_name, child.node_id) for child in graph.nodes[0].children]
    best: tuple[str | None, dict[int, str]] = (None, {})
    for attribute, start in starts:
        found = {}
        for layer, path in paths.items():
            node = _walk(graph, start, path)
            keys = _keys(graph, node) if node is not None else ()
            name = next((by_key[key] for key in keys if key in by_key), None)
            if name is not None:
                found[layer] = name
        if len(found) > len(best[1]):
            best = (attribute, found)
    if not best[1]:
        raise RepairRefused(f"{checkpoint.path}: none of its batch-norm layers lies where the model has its own")
    return best


def _paths(view: Any, wanted: set[int]) -> dict[int, tuple[str, ...]]:
    """Return the shortest path from the root to every wanted object, breadth first as TensorFlow does it."""
    found: dict[int, tuple[str, ...]] = {}
    seen = {id(view.root)}
    queue: list[tuple[Any, tuple[str, ...]]] = [(view.root, ())]
    for item, path in queue:
        if id(item) in wanted:
            found[id(item)] = path
        for name, child in view.children(item).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((child, (*path, name)))
    return found


def _walk(graph: pb.TrackableObjectGraph, start: int, path: Sequence[str]) -> int | None:
    number = start
    for name in path:
        following = {child.local_name: child.node_id for child in graph.nodes[number].children}.get(name)
        if following is None or not 0 <= following < len(graph.nodes):
            return None
        number = following
    return number


def _keys(graph: pb.TrackableObjectGraph, number: int) -> list[str]:
    keys = []
    for child in graph.nodes[number].children:
        if 0 <= child.node_id < len(graph.nodes):
            keys += [attribute.checkpoint_key for attribute in graph.nodes[child.node_id].attributes]
    return keys


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--model {path}: cannot be read: {error}") from error


def _of_own_class(where: str, class_name: str) -> str:
    return (
        f"{where}: its class {class_name!r} is not one of Keras' own; name a function that builds the model with "
        "--model path.py:FUNCTION"
    )


def _loading(where: str, function: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except (*_LOADING_ERRORS, tensorflow().errors.OpError) as error:
        unknown = _UNKNOWN_CLASS.search(str(error))
        if unknown is not None:
            raise RepairRefused(_of_own_class(where, unknown[1])) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RepairRefused(f"{where}: the model cannot be loaded: {first[:_LONGEST_REASON].rstrip('.')}") from error
