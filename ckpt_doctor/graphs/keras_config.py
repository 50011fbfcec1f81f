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

from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.graphs.facts import Companion, LayerFacts, LinearInFront, ModelFacts
from ckpt_doctor.graphs.keras_fronts import KerasFront, fronts, given_modes
from ckpt_doctor.graphs.keras_slots import numbered_slots
from ckpt_doctor.graphs.keras_updates import is_zero_debiased, updates_each_step

BATCH_NORM_CLASSES = frozenset(
    "BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization TPUBatchNormalization".split()
)
_OTHER_NORMALIZATION = re.compile(r"(Layer|Group|Instance|RMS|Unit|Spectral|Weight)Norm|^Normalization$")
# Attributes under which wrappers keep the layers they wrap (keras/src/layers/rnn/bidirectional.py and wrapper.py).
_WRAPPED = {"layer": "layer", "forward_layer": "forward_layer", "backward_layer": "backward_layer", "cell": "cell"}
# What Keras itself puts around layers, and runs in the mode in which it is run.
_KERAS_CONTAINERS = frozenset("Functional Model Sequential TimeDistributed Bidirectional".split())
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
        inside: The path of the outermost model or wrapper around it that is of no class of Keras, or empty.
    """

    class_name: str
    config: Mapping[str, Any]
    path: tuple[str, ...]
    group: str
    trainable: bool
    inside: str = ""


def describe_keras(checkpoint: Checkpoint) -> ModelFacts:
    """Return what the config of a Keras file says about its batch norm."""
    assert checkpoint.descriptions.keras_config is not None
    try:
        config = _parsed(checkpoint.descriptions.keras_config)
        found = list(_layers(config, (), "", True, 0))
    except _NotUnderstood as error:
        return ModelFacts("config", problems=(f"the model config cannot be understood: {error}",))
    counts = Counter(item.path[-1] for item in found)
    file = _File(checkpoint, config, found)
    layers = [
        _facts(file, item, item.path[-1] if counts[item.path[-1]] == 1 else "/".join(item.path))
        for item in found
        if _is_batch_norm(item.class_name, item.config)
    ]
    return ModelFacts(
        evidence="config",
        layers=tuple(layers),
        trains=bool(file.steps),
        other_normalization=frozenset(i.path[-1] for i in found if _OTHER_NORMALIZATION.search(i.class_name)),
        slots=numbered_slots(file.trainable, file.optimizer, checkpoint.descriptions.keras_training),
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


def _is_batch_norm(class_name: str, config: Mapping[str, Any]) -> bool:
    name = class_name.rpartition(">")[2]
    return name in BATCH_NORM_CLASSES or (_DERIVED.search(name) is not None and "momentum" in config)


def _snake_case(class_name: str) -> str:
    """Return the group name that Keras 3 makes of a class (keras/src/utils/naming.py: `to_snake_case`)."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers(
    entry: Mapping[str, Any], path: tuple[str, ...], group: str, trainable: bool, depth: int, inside: str = ""
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
    class_name = str(entry.get("class_name", ""))
    own_code = class_name.rpartition(">")[2] not in _KERAS_CONTAINERS
    inner = config.get("layers")
    if isinstance(inner, list):
        used: dict[str, int] = {}
        for layer in inner:
            if not isinstance(layer, dict):
                raise _NotUnderstood(f"{'/'.join(path) or 'the model'} has a layer that is a {type(layer).__name__}")
            snake = _snake_case(str(layer.get("class_name", "")))
            number = used.get(snake, 0)
            used[snake] = number + 1
            name = str(
                (layer["config"].get("name") if isinstance(layer.get("config"), dict) else None)
                or layer.get("name")
                or snake
            )
            child = f"{group}/layers/{snake}{f'_{number}' if number else ''}".lstrip("/")
            # What a class of the user's own calls its layers with, each in its own way, no file says.
            within = inside or ("/".join((*path, name)) if own_code else "")
            yield from _layers(layer, (*path, name), child, trainable, depth + 1, within)
        return
    if own_code and (class_name.rpartition(">")[2] not in BATCH_NORM_CLASSES):
        inside = inside or "/".join(path)
    yield _Found(class_name, config, path or (str(config.get("name", class_name)),), group, trainable, inside)
    for attribute, member in _WRAPPED.items():
        wrapped = config.get(attribute)
        if isinstance(wrapped, dict) and "class_name" in wrapped:
            inner_config = wrapped.get("config") or {}
            name = str(inner_config.get("name", attribute)) if isinstance(inner_config, dict) else attribute
            yield from _layers(wrapped, (*path, name), f"{group}/{member}", trainable, depth + 1, inside)


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
        config: Its model.
        found: The layers of the model.
    """

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any], found: Sequence[_Found]) -> None:
        self.checkpoint = checkpoint
        self._by_path = {item.path: item for item in found}
        self._fronts = fronts(config, _is_batch_norm)
        self._given = given_modes(config)
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

    def front(self, found: _Found) -> LinearInFront | None:
        """Return the linear layer in front of a batch norm, where both are trained."""
        front = self._fronts.get(found.path)
        here = self._by_path.get(front.path) if front is not None else None
        if front is None or here is None or not (here.trainable and found.trainable):
            return None
        kernel, bias = self._legacy_weights(here) if self.legacy else self._numbered_weights(here, front)
        if not front.axes or found.config.get("gamma_regularizer"):
            kernel = None
        bias = bias if front.has_bias else None
        return None if kernel is None and bias is None else LinearInFront(kernel, bias, front.axes, front.l2)

    def _numbered_weights(self, here: _Found, front: KerasFront) -> tuple[str | None, str | None]:
        """Return kernel and bias of a Keras 3 file: the bias is the last of a layer's variables."""
        group = self.group_of(here)
        names: list[str] = []
        while self.checkpoint.variable(f"{group}/vars/{len(names)}") is not None:
            names.append(f"{group}/vars/{len(names)}")
        bias = names.pop() if front.has_bias and len(names) > 1 else None
        return (names[-1] if names else None), bias

    def _legacy_weights(self, here: _Found) -> tuple[str | None, str | None]:
        """Return kernel and bias of a legacy file; None for one of which it lists none or several."""
        names: dict[str, list[str]] = {"kernel": [], "bias": []}
        weights = [weight for owner in (here.path[-1], "") for weight in self._owned.get((here.path[0], owner), ())]
        pointwise = any(_last(weight) == "pointwise_kernel" for weight in weights)
        for weight in weights:
            last = _last(weight)
            if last.endswith("kernel") and not (pointwise and last == "depthwise_kernel"):
                names["kernel"].append(weight)
            elif last == "bias":
                names["bias"].append(weight)
        kernel, bias = (self._path(here.path[0], found[0]) if len(found) == 1 else None for found in names.values())
        return kernel, bias

    @cached_property
    def _owned(self) -> dict[tuple[str, str], list[str]]:
        """The weights that a legacy file lists, by layer group and by the last scope in their names."""
        found: dict[tuple[str, str], list[str]] = {}
        for group, listed in self.checkpoint.attributes.get("weight_names", {}).items():
            for weight in map(str, listed):
                found.setdefault((group, _owner(weight)), []).append(weight)
        return found

    def _path(self, group: str, weight: str) -> str:
        root = self.checkpoint.attributes.get("root", "")
        return "/".join(part for part in (root, group, weight) if part)

    def group_of(self, found: _Found) -> str:
        """Return a layer's group in a Keras 3 file."""
        return "/".join(self.layers if part == _LAYERS[0] else part for part in found.group.split("/"))

    def given_mode(self, found: _Found) -> str:
        """Return what the calls in the config say of the mode of a layer, or of a model around it; empty: nothing."""
        path = found.path
        return " ".join(str(self._given[path[: end + 1]]) for end in range(len(path)) if path[: end + 1] in self._given)

    def called_in_inference_mode(self, found: _Found) -> bool:
        """Return whether all calls of the layer, or of a model around it, run it with `training=False`.

        Keras 2 obeys; in Keras 3 `fit` overrides it in functional models, and only `model(x)` and `export` obey
        (seen with 3.15.1).
        """
        version = str(self.checkpoint.attributes.get("keras_version") or "")
        inside = any(self._given.get(found.path[: end + 1]) == (False,) for end in range(len(found.path)))
        return version.startswith("2.") and inside

    @property
    def optimizer(self) -> list[Variable]:
        """The optimizer's variables in its own order."""
        if self.legacy:
            names = self.checkpoint.attributes.get("optimizer_weight_names", ())
            listed = (self.checkpoint.variable(f"optimizer_weights/{name}") for name in names)
            return [variable for variable in listed if variable is not None]
        for group in ("optimizer/inner_optimizer/vars", "optimizer/vars"):
            found = self._numbered(group)
            if found:
                return found
        return []

    def _numbered(self, group: str) -> list[Variable]:
        found: list[Variable] = []
        while (variable := self.checkpoint.variable(f"{group}/{len(found)}")) is not None:
            found.append(variable)
        return found

    @property
    def trainable(self) -> list[Variable]:
        """The model's trainable variables, in the order of the model; of layers that are not known, all but integers.

        A list that is not the optimizer's own has other shapes, and is then not used.
        """
        listed = self._legacy_variables() if self.legacy else self._numbered_variables_of_all()
        return [variable for variable in listed if not variable.dtype.startswith(("int", "uint", "string", "bool"))]

    def _numbered_variables_of_all(self) -> Iterator[Variable]:
        for found in self._by_path.values():
            if found.trainable and found.class_name != "Normalization":
                yield from self._numbered_variables(found)

    def _numbered_variables(self, found: _Found) -> list[Variable]:
        own = self._numbered(f"{self.group_of(found)}/vars")
        if _is_batch_norm(found.class_name, found.config):
            return own[: sum(found.config.get(switch) is not False for switch in ("scale", "center"))]
        # Layers that are made of others keep theirs below: `multi_head_attention/query_dense/vars/0`.
        return own or self._below.get(self.group_of(found), [])

    @cached_property
    def _below(self) -> dict[str, list[Variable]]:
        """The variables of groups that the config does not list, by the nearest group above that it does."""
        groups = {self.group_of(found) for found in self._by_path.values()}
        result: dict[str, list[Variable]] = {}
        for variable in self.checkpoint.variables:
            group = variable.name.rpartition("/vars/")[0]
            while group and group not in groups:
                group = group.rpartition("/")[0]
            if group:
                result.setdefault(group, []).append(variable)
        return result

    def _legacy_variables(self) -> Iterator[Variable]:
        frozen = {(found.path[0], found.path[-1]) for found in self._by_path.values() if not found.trainable}
        for group, listed in self.checkpoint.attributes.get("weight_names", {}).items():
            for weight in map(str, listed):
                if (group, _owner(weight)) in frozen or (group, group) in frozen:
                    continue
                variable = self.checkpoint.variable(self._path(group, weight))
                if variable is not None and not _last(weight).startswith(("moving_", "running_")):
                    yield variable

    @cached_property
    def has_colons(self) -> bool:
        """Whether weights are called `gamma:0`, as before Keras 3."""
        listed = self.checkpoint.attributes.get("weight_names", {}).values()
        return any(str(weight).endswith(":0") for weights in listed for weight in weights)


def _last(weight: str) -> str:
    return weight.partition(":")[0].rpartition("/")[2]


def _owner(weight: str) -> str:
    """Return the last scope in the name of a weight: `dense` of `block/dense/kernel:0`."""
    return weight.partition(":")[0].rpartition("/")[0].rpartition("/")[2]


def _facts(file: _File, found: _Found, name: str) -> LayerFacts:
    checkpoint, config, steps = file.checkpoint, found.config, file.steps
    roles = [
        role
        for role in _ROLES
        if not (role == "gamma" and config.get("scale") is False)
        and not (role == "beta" and config.get("center") is False)
    ]
    group = file.group_of(found)
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
    frozen = bool(steps) and not found.trainable and file.freezes_to_inference
    if file.called_in_inference_mode(found):
        trained, frozen = False, True
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
        mode="stored" if frozen else "switch",
        has_update_ops=found.trainable,
        updates=file.updates.get(found.path, 1),
        zero_debiased=file.zero_debiased,
        trained=trained,
        renorm_clipped=bool(config.get("renorm_clipping")) if config.get("renorm") is True else None,
        front=file.front(found),
        # One `fit` runs them all; a class of the user's own, or an argument, may decide otherwise for what is in it.
        decided_by=f"{found.inside} {found.trainable} {file.given_mode(found)}",
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
