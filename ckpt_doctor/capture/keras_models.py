"""Keras models with the values of a checkpoint in them, however they are described.

The model may lie in the file itself (`.h5`, `.keras`), in a Keras 2 SavedModel, or come from `--model`: another whole
model, the JSON of its config, or a function that builds it. Values are always loaded by Keras or TensorFlow.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import ROLES, BatchNormLayer, take_inventory
from ckpt_doctor.capture.keras_code import METADATA, refuse_code, refuse_code_in
from ckpt_doctor.capture.keras_description import config_of, describe_live
from ckpt_doctor.capture.keras_file_names import NOT_SHOWN, FileNames, file_names, layer_names, names_in, owners_of
from ckpt_doctor.capture.keras_names import batch_norms, identity, is_variable
from ckpt_doctor.capture.keras_old_groups import has_old_groups, with_groups_of_today
from ckpt_doctor.capture.keras_places import places_of
from ckpt_doctor.capture.runtime import keras, tensorflow
from ckpt_doctor.capture.user_code import call, is_reference, load_function
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.temporary import TemporaryFolder
from ckpt_doctor.graphs import describe
from ckpt_doctor.graphs.facts import ModelFacts
from ckpt_doctor.graphs.side_effects import refuse_side_effects, side_effects_of_model
from ckpt_doctor.options import reference
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

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A model with its values, and what its batch-norm layers are called in the inventory.

    Attributes:
        model: The Keras model.
        names: `id` of a batch-norm layer to its name in the inventory.
        left: Layer of the inventory to the reason why its statistics have no place in the file.
    """

    model: Any
    names: Mapping[int, str]
    left: Mapping[str, str] = field(default_factory=dict)


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
    """Return a file with what `--model` says of its weights: the config, or what a live model shows.

    If Keras invented other layer names than those in the file, a config says less than the file itself.
    """
    _require_file(model)
    said = checkpoint.descriptions
    if said.meta_graph is not None or said.saved_model is not None:
        return checkpoint
    live = None
    if _builds(model) and checkpoint.layout.keras:
        live = build(model, allow_code=allow_code)
    elif said.object_graph is not None and checkpoint.layout.restores_objects:
        try:
            live = build(model, allow_code=allow_code)
        except RepairRefused as refusal:
            # Loading refuses it again, if the model must run; what the file itself says is judged without it.
            _log.debug("%s: not described by --model %s: %s", checkpoint.path, model, refusal)
    if live is not None and any(getattr(layer, "moving_mean", None) is None for layer in batch_norms(live)):
        # Loading refuses it, with the reason.
        return checkpoint
    facts = None if live is None else _shown_by(live, checkpoint)
    if facts is not None:
        return replace(checkpoint, descriptions=replace(said, live=facts))
    if not checkpoint.layout.weights_only:
        return checkpoint
    text = _config_of(model) if live is None else config_of(live)
    if text is None:
        return checkpoint
    described = replace(checkpoint, descriptions=replace(said, keras_config=text))
    told = describe(described)
    assert told is not None
    names = [{name for role in ROLES if (name := getattr(layer, role)) is not None} for layer in told.layers]
    stored = {variable.name for variable in checkpoint.variables}
    unexpected = {name for name in stored.difference(*names) if name.rpartition("/")[2].partition(":")[0] in ROLES}
    return checkpoint if unexpected and not all(map(stored.intersection, names)) else described


def _shown_by(model: Any, checkpoint: Checkpoint) -> ModelFacts | None:
    """Return what a live model shows of a checkpoint's batch norm; None where its names in the file are not clear."""
    if has_old_groups(checkpoint):
        return None
    told = describe(checkpoint)
    held = take_inventory(checkpoint, told).layers
    slotted = set() if told is None else set(told.slots)
    # Classes of Keras are patched for a moment to see where it stores them.
    with _ONE_AT_A_TIME:
        facts = describe_live(checkpoint, model, _version(model), owners_of(held), slotted)
    return facts if facts.names else None


def _builds(model: str) -> bool:
    """Return whether `--model` names a function."""
    return is_reference(model) and not Path(model).exists()


def _require_file(model: str) -> None:
    """Refuse a model of which the file is not there, also where nothing would read it.

    Raises:
        BadRequest: It is not; a module is looked for when it is imported.
    """
    function = reference(model)
    path = model if function is None or Path(model).exists() else function[0]
    if (function is None or path.endswith(".py")) and not Path(path).exists():
        raise BadRequest(f"--model {model}: no such file" + ("" if path == model else f": {path}"))


def _version(model: Any) -> str:
    """Return the version of the Keras that a model is of."""
    packages = (kind.__module__.partition(".")[0] for kind in type(model).__mro__)
    package = next((name for name in packages if name in ("keras", "tf_keras")), "")
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _config_of(model: str) -> str:
    """Return the config of the Keras model in the file that `--model` names."""
    path = Path(model)
    if path.suffix == ".json":
        return _text(path)
    if not path.is_file():
        raise BadRequest(f"--model {model}: no such file")
    config = open_checkpoint(model).descriptions.keras_config
    if config is None:
        raise BadRequest(f"--model {model}: contains no model config; pass a whole model, its .json or a function")
    return config


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
        built = build(model, allow_code=allow_code)
        return _restored(checkpoint, layers, built, file_names(checkpoint, built))
    with TemporaryFolder() as folder:
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
            orders, _ = places_of(checkpoint, additions)
            format_of(checkpoint).rewrite(checkpoint, completed, Changes(values=additions, weight_names=orders))
            path = completed
            checkpoint = replace(
                open_checkpoint(completed), path=checkpoint.path, places={checkpoint.path: str(completed)}
            )
        config = checkpoint.descriptions.keras_config
        if has_old_groups(checkpoint) and model is None and config is not None:
            path = with_groups_of_today(checkpoint, config, Path(folder))
        if model is None and checkpoint.layout.weights_only:
            raise RepairRefused(f"{checkpoint.path}: contains weights only; pass the model with --model")
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
            raise BadRequest(f"--model {model}: returned {type(built).__name__}; expected a Keras model")
        return built
    _require_file(model)
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
        raise BadRequest(f"--model {model}: expected a .meta, .keras, .h5, .json or MODULE:FUNCTION")
    described = open_checkpoint(model)
    refuse_code(model, described.descriptions.keras_config, allow_code)
    return _loading(model, keras(is_keras_2(described)).models.load_model, str(path), compile=False)


def completion(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer]) -> dict[str, Array]:
    """Return initial values, mean 0 and variance 1, for the statistics that the file lacks."""
    additions: dict[str, Array] = {}
    for layer in layers:
        for role, name in layer.absent.items():
            if layer.channels is None:
                raise RepairRefused(f"layer {layer.name}: the file does not show how many channels it has")
            like = next((v for n in layer.variables.values() if (v := checkpoint.variable(n)) is not None), None)
            dtype = like.read().dtype if like is not None else np.dtype(np.float32)
            additions[name] = np.full(layer.channels, float(role == "moving_variance")).astype(dtype)
    return additions


def _from_saved_model(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], *, allow_code: bool) -> KerasModel:
    refuse_code_in(checkpoint.path, allow_code)
    saved = pb.SavedModel.FromString(checkpoint.descriptions.saved_model or b"")
    for meta_graph in saved.meta_graphs:
        refuse_side_effects(checkpoint.path, side_effects_of_model(meta_graph.graph_def), allow_code)
    model = _loading(checkpoint.path, keras(legacy=True).models.load_model, checkpoint.place, compile=False)
    return KerasModel(model, layer_names(file_names(checkpoint, model), batch_norms(model), owners_of(layers)))


def _restored(checkpoint: Checkpoint, layers: Sequence[BatchNormLayer], model: Any, names: FileNames) -> KerasModel:
    """Return a model with the values of an object-based checkpoint.

    Raises:
        RepairRefused: A weight of the model has no value of the file.
    """
    tf = tensorflow()
    live = layer_names(names, batch_norms(model), owners_of(layers))
    left = {live[key]: reason for key, reason in names.unplaced.items() if key in live}
    _refuse_without_values(checkpoint, model, names, {name for layer in layers for name in layer.absent.values()})
    additions = completion(checkpoint, [layer for layer in layers if layer.name not in left])
    with TemporaryFolder() as folder:
        # Not `restore`: that also asks for the root's own save counter, which weights alone do not have.
        path = Path(checkpoint.place, "variables", "variables") if checkpoint.layout.folder else Path(checkpoint.place)
        if additions:
            path = Path(folder) / "completed"
            _, objects = places_of(checkpoint, additions)
            format_of(checkpoint).rewrite(checkpoint, path, Changes(values=additions, objects=objects))
        compiled = _without_optimizer(model)
        attribute = names.attribute
        root = tf.train.Checkpoint(root=model) if attribute is None else tf.train.Checkpoint(**{attribute: model})
        status = _loading(checkpoint.path, root.read, str(path))
        try:
            # For TensorFlow, what only an optimizer holds is not part of the model, whose own optimizer is taken out.
            if not names.by_optimizer and not compiled:
                status.assert_existing_objects_matched()
        except AssertionError as error:
            first = str(error).strip().splitlines()[0]
            raise RepairRefused(f"{checkpoint.path}: does not contain all values of the model: {first}") from error
        status.expect_partial()
    for variable in model.weights:
        if identity(variable) in names.by_optimizer:
            stored = checkpoint.variable(names.names[identity(variable)])
            assert stored is not None
            variable.assign(stored.read())
    return KerasModel(model, live, left)


def _without_optimizer(model: Any) -> bool:
    """Take the optimizer out of a model, which may be another than that of the file; return whether it had one."""
    if getattr(model, "optimizer", None) is None:
        return False
    # Deleted first: TensorFlow keeps following an attribute that is only set to None.
    del model.optimizer
    model.optimizer = None
    return True


def _refuse_without_values(checkpoint: Checkpoint, model: Any, names: FileNames, absent: Container[str]) -> None:
    """Refuse a model with weights that no value of the file gets into, but for missing statistics.

    TensorFlow's own check passes where Keras 3 does not show it a layer.
    """
    # Keras invents their names for each model that it builds, and nothing is written for them.
    unplaced = {
        identity(variable)
        for layer in batch_norms(model)
        if id(layer) in names.unplaced
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    lacking = [
        variable
        for variable in model.weights
        if is_variable(variable)
        and identity(variable) not in unplaced
        and ((name := names.of(variable)) is None or (checkpoint.variable(name) is None and name not in absent))
    ]
    if lacking:
        first = getattr(lacking[0], "path", lacking[0].name)
        why = NOT_SHOWN if identity(lacking[0]) in names.hidden else "pass the saved model with --model"
        raise RepairRefused(
            f"{checkpoint.path}: does not contain all values of the model: {len(lacking)} of its {len(model.weights)} "
            f"weights are not in the file (first: {first}); {why}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--model {path}: cannot be read: {error}") from error


def _of_own_class(where: str, class_name: str) -> str:
    return (
        f"{where}: its class {class_name!r} is not part of Keras; pass a function that builds the model with --model "
        "path.py:FUNCTION"
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
