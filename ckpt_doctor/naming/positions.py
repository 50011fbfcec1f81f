"""Files that give variables numbers instead of names: Keras 3 (`…/vars/2`) and Keras 0.3 (`layer_3/param_2`).

Roles are positions there. Four vectors of one length are gamma, beta, mean, variance. Three say only which are the
statistics: whether the first is gamma or beta stands in the config alone. Two may be the statistics, or gamma and beta
of another normalisation.
Source: keras/src/saving/saving_lib.py (`_save_state`); keras 0.3, keras/layers/normalization.py (`set_weights`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.naming.reading import is_other_normalization, looks_like_batch_norm

_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
# Batch renormalisation's own variables follow (tf.keras/layers/normalization.py: `_add_renorm_weight`).
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
_MEMBER = re.compile(r"^(?:(?P<scope>.*)/)?vars/(?P<number>\d+)$")
_PARAMETER = re.compile(r"^(?P<scope>.*)/param_(?P<number>\d+)$")
_CLASS = re.compile(r"(^|/)(sync_|tpu_)?batch_normalization(_v[12])?(_\d+)?$")

Found = tuple[str, dict[str, str], dict[str, str]]


def read_positions(
    variables: Sequence[Variable], *, numbered: bool
) -> tuple[list[Found], dict[str, str], list[Variable]]:
    """Return the layers (scope, roles, companions), what could be either with the reason, and all that is left."""
    pattern = _PARAMETER if numbered else _MEMBER
    groups: dict[str, list[tuple[int, Variable]]] = {}
    for variable in variables:
        member = pattern.match(variable.name)
        if member is not None:
            groups.setdefault(member["scope"] or "", []).append((int(member["number"]), variable))
    found: list[Found] = []
    ambiguous: dict[str, str] = {}
    for scope, numbers in groups.items():
        members = [variable for _, variable in sorted(numbers, key=lambda entry: entry[0])]
        if scope.split("/")[0] in ("optimizer", "optimizer_weights", "metrics", "_optimizer"):
            continue
        if numbered:
            layers, doubts = _numbered(scope, members)
            found += layers
            ambiguous |= doubts
        else:
            layer, reason = _members(scope, members)
            if layer is not None:
                found.append(layer)
            if reason:
                taken = set(layer[1].values()) if layer is not None else set()
                ambiguous |= {variable.name: reason for variable in members if variable.name not in taken}
    claimed = {name for _, roles, companions in found for name in (*roles.values(), *companions.values())}
    left = [variable for variable in variables if variable.name not in claimed and variable.name not in ambiguous]
    return found, ambiguous, left


def _vectors(members: Sequence[Variable]) -> bool:
    return bool(members) and len(members[0].shape) > 0 and all(entry.shape == members[0].shape for entry in members)


def _members(scope: str, members: Sequence[Variable]) -> tuple[Found | None, str]:
    """Return the layer whose `vars` are given, or None; and why what of them is left cannot be judged, or nothing."""
    label = next((entry.label for entry in members if entry.label), "") or ""
    is_class = _CLASS.search(scope) is not None
    says_so = is_class or looks_like_batch_norm(scope.rpartition("/")[2]) or looks_like_batch_norm(label)
    if not _vectors(members) or len(members[0].shape) > 5 or is_other_normalization(scope):
        return None, ""
    if len(members) in (6, 7) and is_class:
        names = [entry.name for entry in members]
        if len(members) == 7:
            return (scope, dict(zip(_ROLES, names, strict=False)), _companions(names[4:])), ""
        roles = dict(zip(_ROLES[2:], names[1:3], strict=True))
        return (scope, roles, _companions(names[3:])), _ONE_OF_TWO
    if len(members) == 4:
        if not says_so and len(members[0].shape) != 1:
            return None, ""
        return (scope, {role: entry.name for role, entry in zip(_ROLES, members, strict=True)}, {}), ""
    if len(members) == 3 and says_so:
        roles = {role: entry.name for role, entry in zip(_ROLES[2:], members[1:], strict=True)}
        return (scope, roles, {}), _ONE_OF_TWO
    if len(members) == 2 and is_class:
        return (scope, {role: entry.name for role, entry in zip(_ROLES[2:], members, strict=True)}, {}), ""
    if len(members) == 2 and says_so and len(members[0].shape) == 1:
        return None, "two vectors: mean and variance of a batch norm, or gamma and beta of another normalisation"
    return None, ""


_ONE_OF_TWO = "gamma or beta: the file says its position only, and the layer has but one of them; the config would tell"


def _companions(names: Sequence[str]) -> dict[str, str]:
    return {f"layer/{role}": name for role, name in zip(_RENORM, names, strict=True)}


def _numbered(scope: str, members: Sequence[Variable]) -> tuple[list[Found], dict[str, str]]:
    """Return the layers in one list of Keras 0.3 parameters: a layer's own, or those of a whole Graph model.

    A weight matrix is followed by its bias; of what vectors are left, every four of one length are a batch norm.
    """
    found: list[Found] = []
    doubts: dict[str, str] = {}
    run: list[Variable] = []
    whole = len(members) > len(_ROLES)
    bias_due: int | None = None
    for entry in [*members, None]:
        is_vector = entry is not None and len(entry.shape) == 1
        if entry is not None and is_vector and bias_due in entry.shape:
            bias_due = None
            continue
        bias_due = None
        if entry is not None and is_vector and (not run or run[-1].shape == entry.shape):
            run.append(entry)
            if len(run) < len(_ROLES):
                continue
            name = f"{scope}/{run[0].name.rpartition('/')[2]}" if whole else scope
            found.append((name, {role: one.name for role, one in zip(_ROLES, run, strict=True)}, {}))
            run = []
            continue
        if len(run) > 1:
            reason = "vectors without names: not the four of a batch norm, and nothing says what they are"
            doubts |= {one.name: reason for one in run}
        run = [entry] if entry is not None and is_vector else []
        if entry is not None and not is_vector and entry.shape:
            # Dense: [in, out]; a convolution of Theano: [out, in, rows, columns].
            bias_due = entry.shape[-1] if len(entry.shape) == 2 else entry.shape[0]
    return found, doubts
