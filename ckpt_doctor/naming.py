"""What the name of a variable says: the catalogue of every batch-norm implementation, as ordered plain code.

Schemes overlap, so the order matters: what certainly is something else (an optimizer slot, a counter) is told first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ATTRIBUTES = "/.ATTRIBUTES/VARIABLE_VALUE"

# Last components that TensorFlow's optimizers give to their slots (tensorflow/python/training/*.py, contrib/opt).
_SLOTS = frozenset(
    "Adam Adam_1 Momentum RMSProp RMSProp_1 RMSProp_2 Adagrad Adadelta Adadelta_1 Ftrl Ftrl_1 AdagradDA AdagradDA_1 "
    "ProximalAdagrad AdaMax AdaMax_1 LARSOptimizer PowerSignOptimizer AddSignOptimizer MomentumW Shampoo Shampoo_1 "
    "adam_m adam_v vr vc".split()
)
_OPTIMIZER_SCOPES = re.compile(
    r"(^|/)(optimizer|optimizers|optimizer_weights|training/[A-Z]\w*|[a-z_]*optimizer\d*|Adam|SGD|RMSprop)(/|$)"
)
_OPTIMIZER_SCALARS = re.compile(
    r"(^|/)(beta1_power|beta2_power|beta_1|beta_2|iter|iterations?|learning_rate|decay)(_\d+)?$"
)
_COUNTERS = frozenset("global_step local_step save_counter is_training".split())
_SHADOWS = ("ExponentialMovingAverage",)

# Role by the last component of the name, as each implementation writes it.
_ROLES = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "moving_var": "moving_variance",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "running_variance": "moving_variance",
    "running_std": "moving_variance",
    "pop_mean": "moving_mean",
    "pop_var": "moving_variance",
    "pop_variance": "moving_variance",
    "avg_mean": "moving_mean",
    "avg_var": "moving_variance",
    "mov_mean": "moving_mean",
    "mov_var": "moving_variance",
    "train_mean": "moving_mean",
    "train_var": "moving_variance",
    "avgBatchMean": "moving_mean",
    "avgBatchVar": "moving_variance",
}
# Words that are a role only beside statistics (kaffe, Sonnet 2, hand-written).
_WEAK_ROLES = {
    "scale": "gamma",
    "offset": "beta",
    "mean": "moving_mean",
    "variance": "moving_variance",
}
# Keras 1 writes the role behind the layer's name: `bn2a_running_std`.
_SUFFIXED = re.compile(r"^(?P<layer>.+)_(?P<role>gamma|beta|running_mean|running_std|moving_mean|moving_variance)$")

BATCH_NORM_SCOPE = re.compile(r"(^|[/_-])(bn|batch_?norm\w*|batch_?normali[sz]ation\w*|BatchNorm\w*)", re.IGNORECASE)
# `bn1`, `conv1_bn`, `2a_bn_3`: letters of other words must not touch it.
SHORT_SCOPE = re.compile(r"(^|[/_.-])bn\d*([/_.-]|$)|bn\d+[a-z]?(_|$)", re.IGNORECASE)
OTHER_SCOPE = re.compile(
    r"layer_?norm|group_?norm|instance_?norm|rms_?norm|LayerNorm|GroupNorm|InstanceNorm|(^|/)ln(_\d+)?(/|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Named:
    """What a name says.

    Attributes:
        kind: `batch-norm` (a certain role), `maybe` (a role only in company), `slot`, `shadow`, `companion`, `counter`
            or `other`.
        layer: The name without the role: what the variables of one layer share.
        role: `gamma`, `beta`, `moving_mean`, `moving_variance`; for a companion its own.
        of: For a companion, the role that it belongs to; for a shadow, the name that it shadows.
    """

    kind: str
    layer: str = ""
    role: str = ""
    of: str = ""


def read_name(name: str) -> Named:
    """Return what `name`, a key of any format, says about its variable."""
    bare = name.split(":")[0]
    if "/.OPTIMIZER_SLOT/" in bare:
        return Named("slot")
    if bare.endswith(_ATTRIBUTES):
        bare = bare[: -len(_ATTRIBUTES)]
    scope, _, last = bare.rpartition("/")
    if last in _SLOTS:
        return Named("slot")
    if last in _SHADOWS:
        shadowed = read_name(scope)
        # An average of a batch's moments is the statistic itself, of a hand-written layer.
        if re.search(r"/moments/(Squeeze|mean)$", scope):
            return Named("batch-norm", _undoubled(scope.rpartition("/moments/")[0]), "moving_mean")
        if re.search(r"/moments/(Squeeze_1|variance|moments_1/mean)$", scope):
            return Named("batch-norm", _undoubled(scope.rpartition("/moments/")[0]), "moving_variance")
        return Named("shadow", shadowed.layer, shadowed.role, scope)
    if last == "EMA" and scope.rpartition("/")[2] in ("mean", "variance"):
        layer, _, role = scope.rpartition("/")
        return Named("batch-norm", layer, f"moving_{role}")
    if last == "average" and scope.rpartition("/")[2] in ("moving_mean", "moving_variance"):
        layer, _, role = scope.rpartition("/")
        return Named("batch-norm", layer, role)
    companion = _companion(scope, last)
    if companion is not None:
        return companion
    if last in _COUNTERS or _OPTIMIZER_SCALARS.search(bare):
        return Named("counter")
    if _OPTIMIZER_SCOPES.search(bare):
        return Named("slot")
    return _role(scope, last)


def _companion(scope: str, last: str) -> Named | None:
    owner, _, role = scope.rpartition("/")
    if last in ("biased", "local_step", "_hidden", "_counter", "hidden", "counter") and role in _ROLES:
        return Named("companion", _undoubled(owner), last.lstrip("_"), _ROLES[role])
    if last in ("renorm_mean", "renorm_stddev", "moving_stddev", "renorm_mean_weight", "renorm_stddev_weight"):
        return Named("companion", scope, last, "layer")
    return None


def _role(scope: str, last: str) -> Named:
    if last in _ROLES:
        return Named("batch-norm", scope, _ROLES[last])
    numbered = re.sub(r"_\d+$", "", last)
    if numbered in _ROLES and numbered not in ("gamma", "beta"):
        return Named("batch-norm", f"{scope}/{last[len(numbered) + 1 :]}".lstrip("/"), _ROLES[numbered])
    suffixed = _SUFFIXED.match(last)
    if suffixed is not None:
        prefix = (
            f"{scope}/" if scope and scope.rpartition("/")[2] != suffixed["layer"] else f"{scope.rpartition('/')[0]}/"
        )
        return Named("batch-norm", f"{prefix}{suffixed['layer']}".lstrip("/"), _ROLES[suffixed["role"]])
    if last in _WEAK_ROLES:
        return Named("maybe", scope, _WEAK_ROLES[last])
    return Named("other", scope)


def _undoubled(scope: str) -> str:
    """Return a scope that was entered twice (`a/bn/a/bn`, `bn/bn`) once."""
    parts = scope.split("/")
    for size in range(1, len(parts)):
        head, tail = parts[:size], parts[size:]
        if tail[: len(head)] == head:
            return "/".join(tail)
    return scope


def with_role(name: str, role: str) -> str:
    """Return the name that the variable of another role of the same layer would have."""
    key, colon, number = name.partition(":")
    suffix = _ATTRIBUTES if key.endswith(_ATTRIBUTES) else ""
    if suffix:
        key = key[: -len(suffix)]
    scope, slash, _ = key.rpartition("/")
    return f"{scope}{slash}{role}{suffix}{colon}{number}"


def looks_like_batch_norm(scope: str) -> bool:
    """Return whether the name of a scope says batch norm and no other normalisation."""
    return not OTHER_SCOPE.search(scope) and bool(BATCH_NORM_SCOPE.search(scope) or SHORT_SCOPE.search(scope))
