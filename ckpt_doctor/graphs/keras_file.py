"""A Keras file as its layers ask for it: which variables are whose, and what the optimizer keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from typing import Any

from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.graphs.facts import LinearInFront
from ckpt_doctor.graphs.keras_fronts import KerasFront, fronts, given_modes
from ckpt_doctor.graphs.keras_layers import Found, is_batch_norm, layers_of, parsed
from ckpt_doctor.graphs.keras_scopes import numbered_scopes
from ckpt_doctor.graphs.keras_updates import is_zero_debiased, updates_each_step

# How a weight's name ends: Keras 2 and 3 write `bn/gamma:0`, Keras 1 `bn_gamma` and `bn_running_std` (a variance).
_ENDINGS = re.compile(
    r"^(?:(?P<scope>.*)/)?(?:(?P<layer>.+)_)?(?P<role>gamma|beta|moving_mean|moving_variance|running_mean|running_std)"
    r"(?P<suffix>(?:_\d+)?(?::\d+)?)$"
)
# Where TensorFlow 2.12 and 2.13 kept the layers of a model.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")
# What TensorFlow adds to a name that the session holds already.
_NUMBERED = re.compile(r"_\d+$")
# Where Keras 3 keeps the counter of an optimizer, and of one inside it.
_COUNTER = re.compile(r"optimizer/(inner_optimizer/)*vars/0$")


class KerasFile:
    """What all layers ask of the file that they are in, computed once.

    Args:
        checkpoint: The file.
        config: Its model.
        found: The layers of the model.
    """

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any], found: Sequence[Found]) -> None:
        self.checkpoint = checkpoint
        self._by_path = {item.path: item for item in found}
        self._fronts = fronts(config)
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

    @cached_property
    def scopes(self) -> dict[tuple[str, ...], str]:
        """The scope of the weights of each batch norm whose scope is not its name, by the path of the layer."""
        layers = [found.path for found in self._by_path.values() if is_batch_norm(found.class_name, found.config)]
        listed: dict[str, dict[str, None]] = {}
        for (group, _), weights in self.owners.items():
            scopes = listed.setdefault(group, {})
            scopes |= dict.fromkeys(ending["scope"] or "" for _, ending in weights if not ending["layer"])
        return numbered_scopes(layers, {group: tuple(scopes) for group, scopes in listed.items()})

    def scope_of(self, found: Found) -> str:
        """Return the scope in the names of a layer's weights: its name, or that with a number.

        A model that is built or loaded a second time in a session of TensorFlow 1 is saved as `bn/bn_1/gamma:0`.
        """
        if found.path in self.scopes:
            return self.scopes[found.path].rpartition("/")[2]
        group, name = found.path[0], found.path[-1]
        if (group, name) in self._owned or (group, "") in self._owned:
            return name
        again = [scope for scope in self._numbered_scopes.get((group, name), ()) if scope not in self._names]
        return again[0] if len(again) == 1 else name

    @cached_property
    def _numbered_scopes(self) -> dict[tuple[str, str], list[str]]:
        """The last scopes in the names of weights that end in a number, by layer group and by what stands before it."""
        found: dict[tuple[str, str], list[str]] = {}
        for group, scope in self._owned:
            if _NUMBERED.search(scope):
                found.setdefault((group, _NUMBERED.sub("", scope)), []).append(scope)
        return found

    @cached_property
    def _names(self) -> set[str]:
        """The names of all layers."""
        return {path[-1] for path in self._by_path}

    def front(self, found: Found) -> LinearInFront | None:
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

    def _numbered_weights(self, here: Found, front: KerasFront) -> tuple[str | None, str | None]:
        """Return kernel and bias of a Keras 3 file: the bias is the last of a layer's variables."""
        group = self.group_of(here)
        names: list[str] = []
        while self.checkpoint.variable(f"{group}/vars/{len(names)}") is not None:
            names.append(f"{group}/vars/{len(names)}")
        bias = names.pop() if front.has_bias and len(names) > 1 else None
        return (names[-1] if names else None), bias

    def _legacy_weights(self, here: Found) -> tuple[str | None, str | None]:
        """Return kernel and bias of a legacy file; None for one of which it lists none or several."""
        names: dict[str, list[str]] = {"kernel": [], "bias": []}
        if len(here.path) == 1:  # The group of a layer of the model holds nothing else, however its weights are called.
            listed = self.checkpoint.attributes.get("weight_names", {}).get(here.path[0], ())
            weights = [str(weight) for weight in listed]
        else:
            owners = dict.fromkeys((self.scope_of(here), ""))
            weights = [weight for owner in owners for weight in self._owned.get((here.path[0], owner), ())]
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

    def group_of(self, found: Found) -> str:
        """Return a layer's group in a Keras 3 file."""
        return "/".join(self.layers if part == _LAYERS[0] else part for part in found.group.split("/"))

    def given_mode(self, found: Found) -> str:
        """Return what the calls in the config say of the mode of a layer, or of a model around it; empty: nothing."""
        path = found.path
        return " ".join(str(self._given[path[: end + 1]]) for end in range(len(path)) if path[: end + 1] in self._given)

    def called_in_inference_mode(self, found: Found) -> bool:
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

    def _numbered_variables(self, found: Found) -> list[Variable]:
        own = self._numbered(f"{self.group_of(found)}/vars")
        if is_batch_norm(found.class_name, found.config):
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


def groups_of_today(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the group of each layer in a Keras 3 file as TensorFlow 2.14 and later, tf_keras and Keras 3 call it.

    Args:
        checkpoint: A file of TensorFlow 2.12 or 2.13, with a config.

    Returns:
        Group in the file to group of today; the same layers, in the order of the config.
    """
    config = parsed(checkpoint.descriptions.keras_config or "")
    new, old = _LAYERS
    stored = layers_of(config, (), "", True, 0, listed_twice=listed_twice(checkpoint))
    today = layers_of(config, (), "", True, 0)
    return {
        "/".join(old if part == new else part for part in one.group.split("/")): other.group
        for one, other in zip(stored, today, strict=True)
    }


def listed_twice(checkpoint: Checkpoint) -> Set[str]:
    """Return the groups of layers that TensorFlow 2.12 and 2.13 counted twice when they numbered groups.

    They went through a dictionary that has every layer with weights under two keys, `layer_with_weights-0` and
    `layer-1`, and wrote it the first time (keras 2.13, engine/functional.py: `_layer_checkpoint_dependencies`;
    saving/saving_lib.py: `_save_container_state`).
    """
    new, old = _LAYERS
    found: set[str] = set()
    for variable in checkpoint.variables:
        group = variable.name.rpartition("/")[0]
        while group.startswith(f"{old}/") and (group := group.rpartition("/")[0]):
            found.add("/".join(new if part == old else part for part in group.split("/")))
    return found


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


def _last(weight: str) -> str:
    return weight.partition(":")[0].rpartition("/")[2]


def _owner(weight: str) -> str:
    """Return the last scope in the name of a weight: `dense` of `block/dense/kernel:0`."""
    return weight.partition(":")[0].rpartition("/")[0].rpartition("/")[2]


def _freezes_to_inference(checkpoint: Checkpoint) -> bool:
    """Return whether a frozen layer of this Keras trains in inference mode.

    So it is since TensorFlow 2.0; Keras 2.1.3 to 2.3.1 used the statistics of the batch, and the version of tf.keras in
    TensorFlow 1.15 and 2.0 is the same, `2.2.4-tf` (keras-team/keras issue 13892).
    """
    version = re.match(r"(\d+)\.(\d+)", str(checkpoint.attributes.get("keras_version") or ""))
    return version is not None and (int(version[1]), int(version[2])) >= (2, 4)
