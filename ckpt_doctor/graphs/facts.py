"""What a model says about its batch norm: the common answer of every graph and config reader.

Names of variables are those that the model's own saver would write, so that they can be held against a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Evidence = Literal["graph", "config", "object-graph", "names"]

# How a layer normalises in the graph at hand: `switch` has both branches (a placeholder or `cond` decides), `batch`
# always uses the moments of its batch, `stored` always the stored statistics.
Mode = Literal["switch", "batch", "stored", "unknown"]


@dataclass(frozen=True)
class Site:
    """One place where a layer normalises: `y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`.

    Tensor names are those of the graph after `graphs.specialise` (control flow around training removed).

    Attributes:
        x: What goes in.
        y: What comes out.
        axis: The channel axis: -1 (last), or 1 for NCHW.
        epsilon: Added to the variance.
        scale: The tensor that multiplies (gamma), None where there is none.
        offset: The tensor that is added (beta), None where there is none.
    """

    x: str
    y: str
    axis: int
    epsilon: float
    scale: str | None
    offset: str | None


@dataclass(frozen=True)
class LinearInFront:
    """The linear layer whose output a batch norm normalises, and which nothing else reads.

    Attributes:
        kernel: Name of its variable in the file; None where nothing tells it.
        bias: Likewise; None where it has none.
        axes: The axes of the kernel that are the channels of the output, counted from its end.
        l2: The factor f of a penalty `f * sum(kernel ** 2)` in the loss, whose gradient is `2 * f * kernel`; None where
            it is not known.
    """

    kernel: str | None
    bias: str | None
    axes: tuple[int, ...] = (-1,)
    l2: float | None = None


@dataclass(frozen=True)
class OptimizerSlots:
    """What an optimizer keeps of the gradients of one variable, by the names of its variables in the file.

    Attributes:
        first: A decaying sum or mean of the gradients: Adam's first moment, momentum.
        second: Likewise of their squares: Adam's second moment, RMSprop's and Adagrad's.
        is_root: Whether `second` holds a root of squares already: Adamax's largest gradient.
        starts_above_zero: Whether `second` starts at a number that is not 0 and is the same everywhere.
    """

    first: str | None = None
    second: str | None = None
    is_root: bool = False
    starts_above_zero: bool = False


@dataclass(frozen=True)
class Companion:
    """A variable that belongs to a statistic and must agree with it.

    Attributes:
        name: The variable.
        role: `biased`, `local_step`, `renorm_mean`, `renorm_stddev`, `moving_stddev`, `shadow`, `counter`, `hidden` …
        of: The role of the statistic it belongs to: `moving_mean`, `moving_variance`; or `layer`.
    """

    name: str
    role: str
    of: str


@dataclass(frozen=True)
class Unshown:
    """Gamma and beta of a layer that no object of a checkpoint shows; the optimizer that trained them lists them.

    Attributes:
        gamma: Name of its variable in the file; None where the file has only its slots.
        beta: Likewise.
        names: What its variables and their slots call the layer, in this order.
    """

    gamma: str | None
    beta: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class LayerFacts:
    """One batch-norm layer as the model describes it.

    Attributes:
        name: The layer: the scope of its variables, or its path in the Keras model.
        gamma: Name of its variable, or None where the layer has none.
        beta: Likewise.
        moving_mean: Likewise; None where the layer keeps no statistics.
        moving_variance: Likewise.
        companions: Variables that belong to the statistics.
        channels: Length of its vectors, where known.
        epsilon: Added to the variance, where known.
        momentum: The decay d of the moving averages: `new = d * old + (1 - d) * batch`, where known.
        mode: How it normalises in this graph.
        sites: Where it does so.
        has_update_ops: Whether the graph holds ops that update its statistics.
        updates: How often one training step updates its statistics: once, or once a device, call or step of time; None
            where nothing tells.
        counted: Whether the graph proves that the step counter counts these updates, which run whatever is fed.
        zero_debiased: Whether its averages may correct for their start with nothing in the file that shows it.
        updates_run: Whether one training op runs them together with all gradient updates; None where the model does
            not say.
        trained: Whether training normalised with the moments of each batch, so that its statistics should have moved;
            None where nothing proves it either way (a switch, a config, a step counter).
        gradient_trains: Whether a gradient is applied to a statistic.
        initial: Mean and variance that its averages start at: `0/1`, `0/0`, or None where the model does not say.
        evidence: The kind of description, where it is not that of the whole model.
        front: The linear layer in front of it, where the model shows one.
        decided_by: What decides how it runs in training, the same for all layers that one switch or one call decides
            for; None where it may stand alone.
        follows: The layer that its weights are copied or averaged from, where the graph assigns them and trains them by
            no gradient: that of a student whose teacher or target network this is.
        renorm_clipped: Whether batch renormalisation limits how far its averages may correct a batch's moments; None
            where the layer has no renormalisation or nothing tells.
    """

    name: str
    gamma: str | None
    beta: str | None
    moving_mean: str | None
    moving_variance: str | None
    companions: tuple[Companion, ...] = ()
    channels: int | None = None
    epsilon: float | None = None
    momentum: float | None = None
    mode: Mode = "unknown"
    sites: tuple[Site, ...] = ()
    has_update_ops: bool = False
    updates: int | None = 1
    counted: bool = False
    zero_debiased: bool = False
    updates_run: bool | None = None
    trained: bool | None = None
    gradient_trains: bool = False
    initial: str | None = "0/1"
    evidence: Evidence | None = None
    renorm_clipped: bool | None = None
    front: LinearInFront | None = None
    decided_by: str | None = None
    follows: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """All that a model description says about batch norm.

    Attributes:
        evidence: The kind of description.
        layers: Its batch-norm layers, in the order of the model.
        saved: The names in the saver's own list, or None where there is no saver.
        trains: Whether the model holds gradient updates (a Keras file: was compiled and has stepped).
        other_normalization: Scopes or layer names of what looks like batch norm and is none (LayerNorm …).
        not_judged: Places that could not be understood, each with the reason.
        problems: Why the description as a whole could not be read, or empty.
        names: Every variable that the description speaks of, as the file would name it; None where it lists none, or
            describes the very file that it lies in.
        stored: Variables that the description proves the file to hold when it is whole, as far as it proves any.
        slots: Name of a variable to the optimizer's slots of it, where the optimizer numbers its variables and only
            the model says which is whose.
        copies: Name of every variable that the file holds a second time, to the name of that which it is a copy of.
        unseen: Groups of the file, each with a slash at its end or empty for all of it, whose layers the description
            does not list: those inside a class of the user's own.
        unshown: Normalisation whose gamma and beta only an optimizer lists.
        weight_orders: Legacy Keras files: layer group to the names of all its weights in the order in which Keras loads
            them, missing statistics included, where a live model tells.
    """

    evidence: Evidence
    layers: tuple[LayerFacts, ...] = ()
    saved: frozenset[str] | None = None
    trains: bool = False
    other_normalization: frozenset[str] = frozenset()
    not_judged: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = field(default_factory=tuple)
    names: frozenset[str] | None = None
    stored: frozenset[str] = frozenset()
    slots: Mapping[str, OptimizerSlots] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    unshown: tuple[Unshown, ...] = ()
    weight_orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
