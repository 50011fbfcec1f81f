"""What the name of one variable says: the catalogue of every batch-norm implementation, as ordered plain code.

Schemes overlap, so the order matters: what certainly is something else (an optimizer slot, a counter) is told first.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

ATTRIBUTES = "/.ATTRIBUTES/VARIABLE_VALUE"
AFFINE = ("gamma", "beta")
STATISTICS = ("moving_mean", "moving_variance")

Kind = Literal["batch-norm", "maybe", "slot", "shadow", "companion", "counter", "other"]

# Last components that TensorFlow's optimizers give to their slots (tensorflow/python/training/*.py, contrib/opt).
_SLOTS = frozenset(
    "Adam Adam_1 Momentum RMSProp RMSProp_1 RMSProp_2 Adagrad Adadelta Adadelta_1 Ftrl Ftrl_1 AdagradDA AdagradDA_1 "
    "ProximalAdagrad AdaMax AdaMax_1 LARSOptimizer PowerSignOptimizer AddSignOptimizer MomentumW Shampoo Shampoo_1 "
    "adam_m adam_v vr vc".split()
)
# An optimizer names its slots after itself, and its user may call it otherwise: `gamma/AdamW`, `gamma/D_Adam_1`.
_NAMED_SLOT = re.compile(r"\w*?(?P<kind>Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl)W?(?:Optimizer)?(?P<number>_\d+)?")
_OPTIMIZER_SCOPES = re.compile(
    r"(^|/)(optimizer|optimizers|optimizer_weights|training/[A-Z]\w*|[a-z_]*optimizer\d*|Adam|SGD|RMSprop)(/|$)"
)
# Last components.
_OPTIMIZER_SCALARS = re.compile(
    r"(beta1_power|beta2_power|beta_1|beta_2|iter|iterations?|_iterations|learning_rate|_learning_rate|decay)(_\d+)?$"
)
_COUNTERS = frozenset("global_step local_step save_counter is_training".split())
_SHADOW = "ExponentialMovingAverage"

# Role by the last component of the name, as each implementation writes it.
_ROLES = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "moving_var": "moving_variance",
    "moving_avg": "moving_mean",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "running_variance": "moving_variance",
    "running_std": "moving_variance",
    "pop_mean": "moving_mean",
    "pop_var": "moving_variance",
    "pop_variance": "moving_variance",
    "population_mean": "moving_mean",
    "population_variance": "moving_variance",
    "avg_mean": "moving_mean",
    "avg_var": "moving_variance",
    "mov_mean": "moving_mean",
    "mov_var": "moving_variance",
    "train_mean": "moving_mean",
    "train_var": "moving_variance",
    "avgBatchMean": "moving_mean",
    "avgBatchVar": "moving_variance",
}
# The layers of frameworks start at 0 and 1; the hand-written ones above as their author liked.
_STARTS_AT_0_1 = frozenset("moving_mean moving_variance moving_var running_mean running_std".split())
# Words that are a role only beside statistics (kaffe, Sonnet 2, hand-written).
_WEAK_ROLES = {
    "scale": "gamma",
    "offset": "beta",
    "mean": "moving_mean",
    "variance": "moving_variance",
}
# Keras 1, and people who number by hand, write the role behind the layer's name: `bn2a_running_std`, `bn1_pop_mean`.
# TensorFlow adds a number behind it all where a session holds the name already: `bn1_gamma_1`.
_SUFFIXED = re.compile(rf"^(?P<layer>.+?)_(?P<role>{'|'.join(sorted(_ROLES, key=len, reverse=True))})(?P<again>_\d+)?$")
_NUMBERED = re.compile(r"^(?P<role>.+?)_?(?P<number>\d+)$")
# An average of a batch's moments is the statistic itself. `tf.nn.moments` has had several names for its results
# (tensorflow/python/ops/nn_impl.py of 0.6 to 1.x).
_AVERAGED_MOMENT = re.compile(
    r"^(?:(?P<scope>.*?)/)?(?P<moments>(?:moments|normalize|sufficient_statistics)(?:_\d+)?)/"
    r"(?:(?P<mean>Squeeze|mean|Mean|normalize/mean|mean_ss|Reshape)|"
    r"(?P<variance>Squeeze_1|variance|Variance|normalize/variance|moments_1/mean|var_ss|Reshape_1))$"
)
# Words that name the four vectors of a layer where all four stand together, whatever word of the author's own is before
# them: `b0_mean` beside `b0_gamma`, `average_mean` beside `gamma`.
_ANY_WORDS = {
    **dict.fromkeys(("gamma", "scale"), "gamma"),
    **dict.fromkeys(("beta", "offset", "shift"), "beta"),
    "mean": "moving_mean",
    **dict.fromkeys(("variance", "var"), "moving_variance"),
}
_ENDS_IN_WORD = re.compile(rf"^(?:(?P<stem>.+)_)?(?P<word>{'|'.join(_ANY_WORDS)})$")
_COMPANIONS = frozenset("biased local_step _hidden _counter hidden counter".split())
_OF_LAYER = frozenset(
    "renorm_mean renorm_stddev moving_stddev renorm_mean_weight renorm_stddev_weight accu_mean accu_variance "
    "accu_counter update_accus".split()
)

# `bn1`, `conv1_bn`, `box-0-bn-3`, `2a_bn_3`, `bn2a_branch2a`: letters of other words must not touch it (`bneck`).
_BATCH_NORM_SCOPE = re.compile(
    r"(^|[/_.-])bn([\d/_.-]|$)|bn\d+[a-z]?([/_-]|$)|[a-z\d]BN(\d|[/_-]|$)|"
    r"(^|[/_.\d-])batch_?(re)?norm(ali[sz]ation)?(?![a-z])|Batch_?(Re)?Norm",
    re.IGNORECASE,
)
_OTHER_SCOPE = re.compile(
    r"layer_?norm|group_?norm|instance_?norm|rms_?norm|weight_?norm|spectral_?norm|LayerNorm|GroupNorm|InstanceNorm|"
    r"(^|[/_])(ln|gn)\d*(_\d+)?(/|$)|(^|/)(in|inorm|instnorm)\d*(_\d+)?(/|$)",
    re.IGNORECASE,
)


class Named(NamedTuple):
    """What a name says.

    Attributes:
        kind: `batch-norm` (a certain role), `maybe` (a role only in company), `slot`, `shadow`, `companion`, `counter`
            or `other`.
        layer: The name without the role: what the variables of one layer share.
        role: `gamma`, `beta`, `moving_mean`, `moving_variance`; for a companion its own.
        of: For a companion, the role that it belongs to; for a slot or shadow, the name that it belongs to.
        initial: For a statistic, what its average starts at: `0/1`, `0/0`, or None where nothing tells.
        last: The last component of the name, which says its kind to people.
    """

    kind: Kind
    layer: str = ""
    role: str = ""
    of: str = ""
    initial: str | None = "0/1"
    last: str = ""


def bare_name(name: str) -> str:
    """Return a key without what its format adds behind it: `:0`, `/.ATTRIBUTES/VARIABLE_VALUE`."""
    bare = name.partition(":")[0]
    return bare[: -len(ATTRIBUTES)] if bare.endswith(ATTRIBUTES) else bare


@lru_cache(maxsize=1 << 16)
def read_name(name: str) -> Named:
    """Return what `name`, a key of any format, says about its variable; asked for the same names again and again."""
    if "/.OPTIMIZER_SLOT/" in name:
        owner, _, slot = name.partition("/.OPTIMIZER_SLOT/")
        return Named("slot", of=owner + ATTRIBUTES, last=bare_name(slot).rpartition("/")[2])
    bare = bare_name(name)
    scope, _, last = bare.rpartition("/")
    kind = _slot(last)
    if kind is not None:
        return Named("slot", of=scope, last=kind)
    if last == _SHADOW:
        return _shadow(scope)
    if last in ("EMA", "average") and scope.rpartition("/")[2] in (
        "mean",
        "variance",
        "moving_mean",
        "moving_variance",
    ):
        layer, _, role = scope.rpartition("/")
        # tensorpack's averages start at 0 and 1; Sonnet 2's at 0, and are corrected for it.
        return Named(
            "batch-norm", layer, f"moving_{role.removeprefix('moving_')}", initial="0/1" if last == "EMA" else "0/0"
        )
    companion = _companion(scope, last)
    if companion is not None:
        return companion
    if last in _COUNTERS or _OPTIMIZER_SCALARS.match(last):
        return Named("counter", last=last)
    if _is_in_optimizer(scope) or _is_in_optimizer(last) or _is_trained_by(scope, last):
        return Named("slot", last=last)
    return _role(scope, last)


@lru_cache(maxsize=1 << 12)
def _slot(last: str) -> str | None:
    """Return the kind of an optimizer's slot as TensorFlow calls it, or None for what is none."""
    if last in _SLOTS:
        return last
    named = _NAMED_SLOT.fullmatch(last)
    return None if named is None else named["kind"] + (named["number"] or "")


@lru_cache(maxsize=1 << 12)
def _is_in_optimizer(scope: str) -> bool:
    """Return whether a scope, or a last component, is an optimizer's; asked for each variable of it."""
    return bool(_OPTIMIZER_SCOPES.search(scope))


def _is_trained_by(scope: str, last: str) -> bool:
    """Return whether a name ends in `training/` and an optimizer's name."""
    return scope.rpartition("/")[2] == "training" and _is_in_optimizer(f"training/{last}")


def _shadow(scope: str) -> Named:
    moment = _AVERAGED_MOMENT.match(scope)
    if moment is not None:
        role = "moving_mean" if moment["mean"] else "moving_variance"
        return Named("batch-norm", _layer_of_moments(moment), role, initial="0/0")
    shadowed = read_name(scope)
    if shadowed.kind in ("batch-norm", "maybe"):
        return Named("shadow", shadowed.layer, shadowed.role, scope)
    return Named("shadow", of=scope)


def _layer_of_moments(moment: re.Match[str]) -> str:
    """Return the layer: the scope of the moments, or with several moments in one scope the numbered one."""
    scope = undoubled(moment["scope"] or "")
    numbered = "_" in moment["moments"] and moment["moments"].rpartition("_")[2].isdigit()
    return f"{scope}/{moment['moments']}".lstrip("/") if numbered or not scope else scope


def _companion(scope: str, last: str) -> Named | None:
    owner, _, role = scope.rpartition("/")
    if last in _COMPANIONS and role in _ROLES:
        return Named("companion", owner, last.lstrip("_"), _ROLES[role], last=last)
    if last in ("biased", "local_step") and role == _SHADOW:
        # The average of a batch's moment, itself zero-debiased.
        read = _shadow(owner)
        return Named("companion", read.layer, last, read.role, last=last) if read.kind == "batch-norm" else None
    if last in _OF_LAYER:
        return Named("companion", owner if role == "accu" else scope, last, "layer", last=last)
    return None


def _role(scope: str, last: str) -> Named:
    if last in _ROLES:
        return Named("batch-norm", scope, _ROLES[last], initial=_start(last), last=last)
    if last in _WEAK_ROLES:
        return Named("maybe", scope, _WEAK_ROLES[last], initial=None, last=last)
    numbered = _NUMBERED.match(last)
    if numbered is not None and numbered["role"] in _ROLES and numbered["role"] not in ("gamma", "beta"):
        role = numbered["role"]
        return Named(
            "batch-norm", f"{scope}/{numbered['number']}".lstrip("/"), _ROLES[role], initial=_start(role), last=role
        )
    suffixed = _SUFFIXED.match(last)
    if suffixed is not None:
        own = scope.rpartition("/")[2] == suffixed["layer"]
        prefix = scope.rpartition("/")[0] if own else scope
        again = "" if own else suffixed["again"] or ""
        layer = f"{prefix}/{suffixed['layer']}{again}".lstrip("/")
        return Named(
            "batch-norm", layer, _ROLES[suffixed["role"]], initial=_start(suffixed["role"]), last=suffixed["role"]
        )
    return Named("other", scope, last=last)


def possible_roles(name: str) -> list[tuple[str, str, str]]:
    """Return what a name that certainly says nothing may say in company: layer, role, and the word before the role.

    `a/b0_mean` may be the mean of a layer `a/b0`, or one that its author calls `b0` in a layer `a`.
    """
    scope, _, last = bare_name(name).rpartition("/")
    found = _ENDS_IN_WORD.match(last)
    if found is None:
        return []
    role, stem = _ANY_WORDS[found["word"]], found["stem"]
    if stem is None:
        return [(scope, role, "")]
    return [(f"{scope}/{stem}".lstrip("/"), role, ""), (scope, role, stem)]


def _start(word: str) -> str | None:
    return "0/1" if word in _STARTS_AT_0_1 else None


def undoubled(scope: str) -> str:
    """Return a scope that was entered twice (`a/bn/a/bn`, `bn/bn`, `d_bn1/d_bn1_1`) once.

    A variable that takes the name of an operation stands in two scopes: its own, and that of the operation, which gets
    a number when it is entered again.
    """
    parts = scope.split("/")
    size = 1
    while size < len(parts):
        head, tail = parts[:size], parts[size:]
        if len(tail) >= size and all(map(_is_again, head, tail)):
            # The first is the scope of the variables; what follows the repetition belongs to both.
            parts, size = head + tail[size:], 1
        else:
            size += 1
    return "/".join(parts)


def _is_again(first: str, second: str) -> bool:
    return second == first or (second.startswith(f"{first}_") and second[len(first) + 1 :].isdigit())


def with_role(name: str, role: str) -> str:
    """Return the name that the variable of another role of the same layer would have."""
    key, colon, number = name.partition(":")
    suffix = ATTRIBUTES if key.endswith(ATTRIBUTES) else ""
    if suffix:
        key = key[: -len(suffix)]
    scope, slash, last = key.rpartition("/")
    suffixed = _SUFFIXED.match(last)
    if suffixed is not None and last not in _ROLES:
        role = f"{suffixed['layer']}_{role}{suffixed['again'] or ''}"
    return f"{scope}{slash}{role}{suffix}{colon}{number}"


def looks_like_batch_norm(scope: str) -> bool:
    """Return whether the name of a scope says batch norm and no other normalisation."""
    return bool(_BATCH_NORM_SCOPE.search(scope)) and not is_other_normalization(scope)


def is_other_normalization(scope: str) -> bool:
    """Return whether the name of a scope says layer, group, instance or another norm that keeps no statistics."""
    return bool(_OTHER_SCOPE.search(scope))
