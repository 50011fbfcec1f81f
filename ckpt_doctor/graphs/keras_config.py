"""A Keras model's config: its batch-norm layers, nested and wrapped ones included, and where a file keeps each.

The config is the only place that says whether a layer has gamma or beta; in Keras 3 files roles are positions and group
names come from classes (`layers/batch_normalization_2/vars/1`), so without it three vectors are ambiguous.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.graphs.facts import Companion, LayerFacts, ModelFacts
from ckpt_doctor.graphs.keras_updates import is_zero_debiased, updates_each_step

BATCH_NORM_CLASSES = frozenset(
    "BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization TPUBatchNormalization".split()
)
_OTHER_NORMALIZATION = re.compile(r"(Layer|Group|Instance|RMS|Unit|Spectral|Weight)Norm|^Normalization$")
# Attributes under which wrappers keep the layers they wrap (keras/src/layers/rnn/bidirectional.py and wrapper.py).
_WRAPPED = {"layer": "layer", "forward_layer": "forward_layer", "backward_layer": "backward_layer", "cell": "cell"}
# A class of the user's own, derived from Keras' layer.
_DERIVED = re.compile(r"Batch_?Norm")
_DEEPEST = 30
# How a weight's name ends: Keras 2 and 3 write `bn/gamma:0`, Keras 1 `bn_gamma` and `bn_running_std` (a variance).
_ENDINGS = re.compile(
    r"^(?:(?P<scope>.*)/)?(?:(?P<layer>.+)_)?(?P<role>gamma|beta|moving_mean|moving_variance|running_mean|running_std)"
    r"(?P<suffix>(?:_\d+)?(?::\d+)?)$"
)
_KERAS_1 = {"running_mean": "moving_mean", "running_std": "moving_variance"}
# Where TensorFlow 2.12 kept the layers of a model.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")
_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
# Where Keras 3 keeps the counter of an optimizer, and of one inside it.
_COUNTER = re.compile(r"optimizer/(inner_optimizer/)*vars/0$")


@dataclass(frozen=True)
class _Found:
    """One layer of the config.

    Attributes:
        class_name: Its class.
        config: Its own config.
        path: Names of the models and wrappers around it, outermost first, and its own name last.
        group: Its group in a Keras 3 weights file.
        trainable: Whether it and everything around it is trainable.
    """

    class_name: str
    config: Mapping[str, Any]
    path: tuple[str, ...]
    group: str
    trainable: bool


def describe_keras(checkpoint: Checkpoint) -> ModelFacts:
    """Return what the config of a Keras file says about its batch norm."""
    assert checkpoint.descriptions.keras_config is not None
    try:
        config = _parsed(checkpoint.descriptions.keras_config)
        found = list(_layers(config, (), "", True, 0))
    except _NotUnderstood as error:
        return ModelFacts("config", problems=(f"the model config cannot be understood: {error}",))
    counts = Counter(item.path[-1] for item in found)
    file = _File(checkpoint, config)
    layers = [
        _facts(file, item, item.path[-1] if counts[item.path[-1]] == 1 else "/".join(item.path))
        for item in found
        if _is_batch_norm(item)
    ]
    return ModelFacts(
        evidence="config",
        layers=tuple(layers),
        trains=bool(file.steps),
        other_normalization=frozenset(i.path[-1] for i in found if _OTHER_NORMALIZATION.search(i.class_name)),
    )


class _NotUnderstood(Exception):
    """A config is not what Keras writes."""


def _parsed(text: str) -> Mapping[str, Any]:
    """Return the config of a model, a JSON object."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _NotUnderstood(f"{type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise _NotUnderstood(f"a JSON object is expected, not {type(config).__name__}")
    return config


def _is_batch_norm(found: _Found) -> bool:
    name = found.class_name.rpartition(">")[2]
    return name in BATCH_NORM_CLASSES or (_DERIVED.search(name) is not None and "momentum" in found.config)


def _snake_case(class_name: str) -> str:
    """Return the group name that Keras 3 makes of a class (keras/src/utils/naming.py: `to_snake_case`)."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers(
    entry: Mapping[str, Any], path: tuple[str, ...], group: str, trainable: bool, depth: int
) -> Iterator[_Found]:
    """Yield the layers inside a model, or the layer itself and what it wraps."""
    if depth > _DEEPEST:
        raise _NotUnderstood(f"models are nested more than {_DEEPEST} deep")
    config = entry.get("config") or {}
    if isinstance(config, list):  # Keras 1 and early 2: a Sequential's config is its list of layers.
        config = {"layers": config}
    if not isinstance(config, dict):
        raise _NotUnderstood(f"the config of {'/'.join(path) or 'the model'} is a {type(config).__name__}")
    trainable = trainable and bool(config.get("trainable", True))
    inner = config.get("layers")
    if isinstance(inner, list):
        used: dict[str, int] = {}
        for layer in inner:
            if not isinstance(layer, dict):
                raise _NotUnderstood(f"{'/'.join(path) or 'the model'} has a layer that is a {type(layer).__name__}")
            class_name = str(layer.get("class_name", ""))
            snake = _snake_case(class_name)
            number = used.get(snake, 0)
            used[snake] = number + 1
            name = str(
                (layer["config"].get("name") if isinstance(layer.get("config"), dict) else None)
                or layer.get("name")
                or snake
            )
            child = f"{group}/layers/{snake}{f'_{number}' if number else ''}".lstrip("/")
            yield from _layers(layer, (*path, name), child, trainable, depth + 1)
        return
    class_name = str(entry.get("class_name", ""))
    yield _Found(class_name, config, path or (str(config.get("name", class_name)),), group, trainable)
    for attribute, member in _WRAPPED.items():
        wrapped = config.get(attribute)
        if isinstance(wrapped, dict) and "class_name" in wrapped:
            inner_config = wrapped.get("config") or {}
            name = str(inner_config.get("name", attribute)) if isinstance(inner_config, dict) else attribute
            yield from _layers(wrapped, (*path, name), f"{group}/{member}", trainable, depth + 1)


def optimizer_steps(checkpoint: Checkpoint) -> int | None:
    """Return how many steps the stored optimizer has made, or None where the file keeps no optimizer.

    An optimizer inside another (`LossScaleOptimizer`) counts its steps, and the outer one leaves its own counter at 0:
    the largest tells.
    """
    found: list[int] = []
    for variable in checkpoint.variables:
        last = variable.name.rpartition("/")[2].split(":")[0]
        legacy = variable.name.startswith("optimizer_weights/") and last in ("iteration", "iterations", "iter")
        if (legacy or _COUNTER.match(variable.name)) and variable.shape == () and "int" in variable.dtype:
            with suppress(UnreadableCheckpoint):
                found.append(int(variable.read()))
    return max(found, default=None)


class _File:
    """What all layers ask of the file that they are in, computed once.

    Args:
        checkpoint: The file.
        config: The model in it.
    """

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.steps = optimizer_steps(checkpoint)
        self.legacy = checkpoint.layout.legacy_keras
        new, old = _LAYERS
        self.layers = old if any(variable.name.startswith(f"{old}/") for variable in checkpoint.variables) else new
        self.freezes_to_inference = _freezes_to_inference(checkpoint)
        version, backend = (checkpoint.attributes.get(key) for key in ("keras_version", "backend"))
        self.updates = updates_each_step(config, keras_3=str(version).startswith("3."))
        self.zero_debiased = self.legacy and is_zero_debiased(version, backend)

    @cached_property
    def owners(self) -> dict[tuple[str, str], list[tuple[int, re.Match[str]]]]:
        """The batch-norm weights that a legacy file lists, by layer group and by the layer that their names say.

        Each with its place in the list of the group.
        """
        found: dict[tuple[str, str], list[tuple[int, re.Match[str]]]] = {}
        for group, listed in self.checkpoint.attributes.get("weight_names", {}).items():
            for number, weight in enumerate(listed):
                ending = _ENDINGS.match(str(weight))
                if ending is not None:
                    owner = ending["layer"] or (ending["scope"] or "").rpartition("/")[2]
                    found.setdefault((group, owner), []).append((number, ending))
        return found

    @cached_property
    def has_colons(self) -> bool:
        """Whether weights are called `gamma:0`, as before Keras 3."""
        listed = self.checkpoint.attributes.get("weight_names", {}).values()
        return any(str(weight).endswith(":0") for weights in listed for weight in weights)


def _facts(file: _File, found: _Found, name: str) -> LayerFacts:
    checkpoint, config, steps = file.checkpoint, found.config, file.steps
    roles = [
        role
        for role in _ROLES
        if not (role == "gamma" and config.get("scale") is False)
        and not (role == "beta" and config.get("center") is False)
    ]
    group = "/".join(file.layers if part == _LAYERS[0] else part for part in found.group.split("/"))
    names = _legacy_names(file, found, roles) if file.legacy else _positions(group, roles)
    companions: tuple[Companion, ...] = ()
    if config.get("renorm") is True:
        before, _, after = names["moving_mean"].rpartition("moving_mean")
        companions = tuple(
            Companion(f"{before}{role}{after}" if file.legacy else f"{group}/vars/{number}", role, "layer")
            for number, role in enumerate(("moving_stddev", "renorm_mean", "renorm_stddev"), start=len(roles))
        )
    # Steps of an optimizer do not prove updates: a loop of the user's own, `training=False` at the call or a wrapper
    # may have kept the layer in inference mode; and no steps may mean none since the model was compiled again.
    trained = False if steps and not found.trainable else None
    if config.get("mode") in (1, 2):
        # Keras 1: normalises each sample, or with its batch at inference too; the averages are not read.
        trained = False
    return LayerFacts(
        name=name,
        gamma=names.get("gamma"),
        beta=names.get("beta"),
        moving_mean=names.get("moving_mean"),
        moving_variance=names.get("moving_variance"),
        companions=companions,
        channels=_channels(checkpoint, names),
        epsilon=_number(config.get("epsilon")),
        momentum=_number(config.get("momentum")),
        # Keras runs a frozen layer with its stored statistics, in training too.
        mode="stored" if steps and not found.trainable and file.freezes_to_inference else "switch",
        has_update_ops=found.trainable,
        updates=file.updates.get(found.path, 1),
        zero_debiased=file.zero_debiased,
        trained=trained,
        renorm_clipped=bool(config.get("renorm_clipping")) if config.get("renorm") is True else None,
    )


def _number(value: object) -> float | None:
    """Return a number of a config; None where it is absent, something else, or an integer that no float holds."""
    return float(value) if isinstance(value, (int, float)) and abs(value) <= sys.float_info.max else None


def _freezes_to_inference(checkpoint: Checkpoint) -> bool:
    """Return whether a frozen layer of this Keras trains in inference mode.

    So it is since TensorFlow 2.0; Keras 2.1.3 to 2.3.1 used the statistics of the batch, and the version of tf.keras in
    TensorFlow 1.15 and 2.0 is the same, `2.2.4-tf` (keras-team/keras issue 13892).
    """
    version = re.match(r"(\d+)\.(\d+)", str(checkpoint.attributes.get("keras_version") or ""))
    return version is not None and (int(version[1]), int(version[2])) >= (2, 4)


def _positions(group: str, roles: list[str]) -> dict[str, str]:
    """Return the names in a Keras 3 weights file, where a role is a position."""
    return {role: f"{group}/vars/{number}" for number, role in enumerate(roles)}


def _channels(checkpoint: Checkpoint, names: Mapping[str, str]) -> int | None:
    for name in names.values():
        variable = checkpoint.variable(name)
        if variable is not None and len(variable.shape) == 1:
            return variable.shape[0]
    return None


def _legacy_names(file: _File, found: _Found, roles: list[str]) -> dict[str, str]:
    """Return the names in a legacy file: those listed for the layer, and made in their likeness where one is absent."""
    root = file.checkpoint.attributes.get("root", "")
    names: dict[str, str] = {}
    likeness: tuple[str, str] | None = None
    closest = -1
    # A weight without scope and layer in its name is the layer's own whose group it is in.
    owners = dict.fromkeys((found.path[-1], *found.path[-2:-1], ""))
    listed = [entry for owner in owners for entry in file.owners.get((found.path[0], owner), ())]
    for _, ending in sorted(listed, key=lambda entry: entry[0]):
        role = _KERAS_1.get(ending["role"], ending["role"])
        # Layers of one name, in models inside each other, differ by the scope around them.
        scope = [part for part in (*(ending["scope"] or "").split("/"), ending["layer"]) if part]
        fit = _alike_at_the_end(scope, found.path[1:])
        if fit < closest:
            continue
        if fit > closest:
            names, closest = {}, fit
        names[role] = ending.string
        likeness = (ending.string[: ending.start("role")], ending["suffix"])
    if likeness is None:
        likeness = (f"{found.path[-1]}/", ":0" if file.has_colons else "")
    before, suffix = likeness
    full = {role: names.get(role, f"{before}{role}{suffix}") for role in roles}
    return {role: "/".join(part for part in (root, found.path[0], weight) if part) for role, weight in full.items()}


def _alike_at_the_end(scope: Sequence[str], path: Sequence[str]) -> int:
    """Return how well a scope fits a path of layers: 0 for nothing, most where both are the same."""
    same = 0
    for one, other in zip(reversed(scope), reversed(path), strict=False):
        if one != other:
            break
        same += 1
    return 2 * same + (len(scope) == len(path) == same)
