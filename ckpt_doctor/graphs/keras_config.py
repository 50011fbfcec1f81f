"""A Keras model's config: its batch-norm layers, nested and wrapped ones included, and where a file keeps each.

The config is the only place that says whether a layer has gamma or beta; in Keras 3 files roles are positions and group
names come from classes (`layers/batch_normalization_2/vars/1`), so without it three vectors are ambiguous.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.graphs.facts import Companion, LayerFacts, ModelFacts
from ckpt_doctor.graphs.keras_file import KerasFile, listed_twice
from ckpt_doctor.graphs.keras_layers import Found, NotUnderstood, is_batch_norm, layers_of, parsed
from ckpt_doctor.graphs.keras_slots import numbered_slots

_OTHER_NORMALIZATION = re.compile(r"(Layer|Group|Instance|RMS|Unit|Spectral|Weight)Norm|^Normalization$")
_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
_LAYERS = "layers/"
# Layers of Keras whose first variable is a kernel or a table, whatever their options (keras/src/layers, 3.0 to 3.15).
_WEIGHTED = frozenset(
    "Dense EinsumDense Embedding DepthwiseConv1D DepthwiseConv2D Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose "
    "Conv3DTranspose".split()
)
_KERAS_1 = {"running_mean": "moving_mean", "running_std": "moving_variance"}


def describe_keras(checkpoint: Checkpoint) -> ModelFacts:
    """Return what the config of a Keras file says about its batch norm."""
    assert checkpoint.descriptions.keras_config is not None
    try:
        config = parsed(checkpoint.descriptions.keras_config)
        found = list(layers_of(config, (), "", True, 0, listed_twice=listed_twice(checkpoint)))
    except NotUnderstood as error:
        return ModelFacts("config", problems=(f"the model config cannot be understood: {error}",))
    counts = Counter(item.path[-1] for item in found)
    file = KerasFile(checkpoint, config, found)
    layers = [
        _facts(file, item, item.path[-1] if counts[item.path[-1]] == 1 else "/".join(item.path))
        for item in found
        if is_batch_norm(item.class_name, item.config)
    ]
    return ModelFacts(
        evidence="config",
        layers=tuple(layers),
        trains=bool(file.steps),
        other_normalization=frozenset(i.path[-1] for i in found if _OTHER_NORMALIZATION.search(i.class_name)),
        unseen=tuple(_unseen(file, found)) if file.legacy else (),
        stored=_stored(file, found),
        slots=numbered_slots(file.trainable, file.optimizer, checkpoint.descriptions.keras_training),
    )


def _stored(file: KerasFile, found: Sequence[Found]) -> frozenset[str]:
    """Return the first variable of each layer of a `.keras` file of Keras 3 that cannot be without one.

    None where a group of the file belongs to no layer: its numbers then count others.
    """
    checkpoint = file.checkpoint
    if checkpoint.format != "keras-v3" or not str(checkpoint.attributes.get("keras_version")).startswith("3."):
        return frozenset()
    groups = {file.group_of(item) for item in found}
    held = {
        variable.name.rpartition("/vars/")[0] for variable in checkpoint.variables if variable.name.startswith(_LAYERS)
    }
    if not held or any(not _ancestors(group) & groups for group in held):
        return frozenset()
    # A layer that two models share is stored with the first of them.
    counts = Counter((item.class_name, item.path[-1]) for item in found)
    return frozenset(
        f"{file.group_of(item)}/vars/0"
        for item in found
        if item.class_name in _WEIGHTED
        and not item.own_class
        and item.inside in ("", "/".join(item.path))
        and counts[item.class_name, item.path[-1]] == 1
    )


def _ancestors(group: str) -> set[str]:
    """Return a group and all groups around it."""
    parts = group.split("/")
    return {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _unseen(file: KerasFile, found: Sequence[Found]) -> Iterator[str]:
    """Yield the groups of a legacy file that hold what is inside a class of the user's own."""
    root = file.checkpoint.attributes.get("root", "")
    for item in found:
        if item.own_class and not is_batch_norm(item.class_name, item.config):
            # The model itself, of a class that lists no layers, has all groups.
            group = item.path[0] if item.path[0] in file.checkpoint.attributes.get("weight_names", ()) else ""
            yield "".join(f"{part}/" for part in (root, group) if part)


def _facts(file: KerasFile, found: Found, name: str) -> LayerFacts:
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


def _positions(group: str, roles: list[str]) -> dict[str, str]:
    """Return the names in a Keras 3 weights file, where a role is a position."""
    return {role: f"{group}/vars/{number}" for number, role in enumerate(roles)}


def _channels(checkpoint: Checkpoint, names: Mapping[str, str]) -> int | None:
    for name in names.values():
        variable = checkpoint.variable(name)
        if variable is not None and len(variable.shape) == 1:
            return variable.shape[0]
    return None


def _legacy_names(file: KerasFile, found: Found, roles: list[str]) -> dict[str, str]:
    """Return the names in a legacy file: those listed for the layer, and made in their likeness where one is absent."""
    root = file.checkpoint.attributes.get("root", "")
    names: dict[str, str] = {}
    likeness: tuple[str, str] | None = None
    closest = -1
    # A weight without scope and layer in its name is the layer's own whose group it is in.
    own_scope = file.scopes.get(found.path)
    owners = dict.fromkeys((file.scope_of(found), *(() if own_scope is not None else (*found.path[-2:-1], ""))))
    listed = [entry for owner in owners for entry in file.owners.get((found.path[0], owner), ())]
    for _, ending in sorted(listed, key=lambda entry: entry[0]):
        role = _KERAS_1.get(ending["role"], ending["role"])
        # Layers of one name, in models inside each other, differ by the scope around them.
        scope = [part for part in (*(ending["scope"] or "").split("/"), ending["layer"]) if part]
        if own_scope is not None and (ending["scope"] or "") != own_scope:
            continue
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
