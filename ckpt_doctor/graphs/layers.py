"""The sites of a graph, gathered into layers.

A layer is what reads or updates one pair of statistics, wherever and however often it is called. Inference and training
are two graphs of one model: a site of the one is that of the other when both have the same input, or the same gamma and
beta.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ckpt_doctor.graphs.facts import Companion, Mode, Site
from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph
from ckpt_doctor.graphs.replicas import first_variable, without_copies
from ckpt_doctor.graphs.sites import FoundSite, find_sites, statistic_variable
from ckpt_doctor.graphs.updates import assigned_variables

# Last components of the names of variables that belong to a statistic
# (tensorflow/python/training/moving_averages.py: `_zero_debias`), and to a layer with batch renormalisation
# (tensorflow/python/keras/layers/normalization.py: `_add_renorm_weight`).
_ZERO_DEBIAS = ("biased", "local_step")
# tensorflow/python/training/moving_averages.py: `ExponentialMovingAverage.apply`.
_SHADOW = "ExponentialMovingAverage"
_RENORM = ("renorm_mean", "renorm_stddev", "moving_stddev", "renorm_mean_weight", "renorm_stddev_weight")
# An average that is kept under the name of what it averages: tensorpack's, Sonnet 2's.
_AVERAGES = ("/EMA", "/average")
_ANONYMOUS = re.compile(r"(^|/)Variable(_\d+)?$")
# Scopes that the code of a layer opens around its arithmetic.
_INNER_SCOPES = re.compile(r"(/(batchnorm|moments|cond|If|then|else|PartitionedCall|StatefulPartitionedCall)(_\d+)?)+$")


@dataclass(eq=False)
class Gathered:
    """What a graph says of one layer.

    Attributes:
        moving_mean: The variable's node, or None where the layer keeps no statistics.
        moving_variance: Likewise.
        gamma: The variable's node, or None where there is none.
        beta: Likewise.
        sites: Where it normalises at inference.
        modes: Where its statistics come from at inference (`stored`, `batch`), and in training (`training-batch` …).
        node: The node that makes its first output.
        made_by: The nodes that make its outputs at inference, by where their statistics come from.
    """

    moving_mean: str | None
    moving_variance: str | None
    gamma: str | None = None
    beta: str | None = None
    sites: list[Site] = field(default_factory=list)
    modes: set[str] = field(default_factory=set)
    node: str = ""
    made_by: dict[str, set[str]] = field(default_factory=dict)

    @property
    def mode(self) -> Mode:
        """How it normalises in this graph."""
        if "stored" in self.modes:
            return "switch" if "training-batch" in self.modes else "stored"
        return "batch" if "batch" in self.modes or "training-batch" in self.modes else "unknown"


@dataclass(eq=False)
class Gathering:
    """All layers of a graph.

    Attributes:
        layers: In the order of the graph.
        other: Scopes of normalisation over other axes than the batch.
        not_judged: Node to the reason, of normalisation that is not understood.
    """

    layers: list[Gathered]
    other: set[str]
    not_judged: list[tuple[str, str]]


def gather(inference: Graph, training: Graph | None, served: Collection[str] | None = None) -> Gathering:
    """Return the layers of a model.

    Args:
        inference: The graph with every switch at inference.
        training: The graph with every switch at training; None where only inference counts.
        served: The nodes that count; None: all.
    """
    result = Gathering([], set(), [])
    known: dict[object, Gathered] = {}
    for graph, counts in ((inference, True), (training, False)):
        for found in find_sites(graph) if graph is not None else ():
            if served is not None and found.node not in served:
                continue
            if found.statistics == "other":
                result.other.add(scope_of(found.node))
            elif found.statistics == "unknown":
                if counts:
                    reason = "it normalises with statistics of an origin that is not understood"
                    result.not_judged.append((found.node, reason))
            elif graph is not None:
                _add(result, known, graph, found, counts=counts)
    for item in result.layers:
        item.sites = without_copies(item.sites)
    return result


def _add(result: Gathering, known: dict[object, Gathered], graph: Graph, found: FoundSite, *, counts: bool) -> None:
    mean, variance = _statistic_variables(graph, found)
    # Batch renormalisation multiplies gamma, and adds to beta, what is 1 and 0 at inference.
    gamma, beta = _variable(graph, found.site.scale), _variable(graph, found.site.offset)
    keys: list[object] = [name for name in (mean, variance) if name is not None]
    if not counts or not keys:
        # A layer whose updates are switched off has no statistics in the training graph; its place tells.
        keys += [("affine", gamma, beta)] if gamma or beta else []
        keys += [] if counts else [("place", found.site.x)]
    item = next((known[key] for key in keys if key in known), None)
    if item is None and counts and (gamma or beta):
        # The branch that trains, with the moments of the batch, may come first and store them nowhere.
        other = known.get(("affine", gamma, beta))
        item = other if other is not None and not (other.moving_mean or other.moving_variance) else None
    if item is None:
        item = Gathered(mean, variance)
        result.layers.append(item)
    item.gamma, item.beta = item.gamma or gamma, item.beta or beta
    item.moving_mean, item.moving_variance = item.moving_mean or mean, item.moving_variance or variance
    item.node = item.node or found.node
    if found.statistics == "mixed":
        # A fed number decides: inference may read the stored statistics, training those of the batch.
        item.modes |= {"stored", "training-batch"}
    else:
        item.modes.add(found.statistics if counts else f"training-{found.statistics}")
    if counts:
        item.sites.append(found.site)
        item.made_by.setdefault(found.statistics, set()).add(found.node)
    for key in [*keys, ("affine", gamma, beta) if gamma or beta else None, ("place", found.site.x)]:
        if key is not None:
            known.setdefault(key, item)


def _variable(graph: Graph, tensor: str | None) -> str | None:
    found = statistic_variable(graph, tensor) if tensor else None
    return None if found is None else first_variable(graph, found)


def _statistic_variables(graph: Graph, found: FoundSite) -> tuple[str | None, str | None]:
    """Return the variables' nodes of mean and variance: those read, or those that the moments are averaged into."""
    if found.statistics in ("stored", "mixed"):
        return _variable(graph, found.mean), _variable(graph, found.variance)
    result: list[str | None] = []
    for tensor in (found.mean, found.variance):
        stored = [
            first_variable(graph, name)
            for name in assigned_variables(graph, graph.source(tensor))
            if not name.endswith((*_ZERO_DEBIAS, *_RENORM))
        ]
        result.append(stored[0] if stored else None)
    if result[0] is not None and result[1] is None and result[0].endswith("/moving_mean"):
        # Batch renormalisation averages the standard deviation and squares it.
        sibling = graph.nodes.get(result[0][: -len("mean")] + "variance")
        result[1] = sibling.name if sibling is not None and sibling.op in VARIABLE_OPS else None
    # Both moments of the fused op lead to one variable only if something went wrong: then none is believed.
    return (result[0], result[1]) if result[0] != result[1] or result[0] is None else (None, None)


def scope_of(name: str) -> str:
    """Return the scope that a node stands in."""
    return name.rpartition("/")[0]


def place_of(tensor: str) -> str:
    """Return the scope in which a layer makes a tensor, without the scopes that its own code opens."""
    return _INNER_SCOPES.sub("", f"/{scope_of(tensor)}").lstrip("/")


def bases_of(statistic: str) -> Iterator[str]:
    """Yield the scopes in which companions of a statistic stand: its own name, also where the scope is doubled.

    `a/bn/moving_mean` has those below `a/bn/moving_mean`, `a/bn/a/bn/moving_mean` and `a/a/bn/moving_mean`.
    """
    yield statistic
    end = statistic.find("/")
    while end >= 0:
        yield f"{statistic[:end]}/{statistic}"
        end = statistic.find("/", end + 1)


class CompanionVariables:
    """The variables that belong to statistics, by the scope in which they stand.

    Args:
        graph: The whole graph.
        saved: Variable's node to its name in the file.
    """

    def __init__(self, graph: Graph, saved: Mapping[str, str]) -> None:
        self._below: dict[str, list[tuple[int, str, str, bool]]] = {}
        for number, (node, name) in enumerate(saved.items()):
            base, _, last = node.rpartition("/")
            if last in (*_ZERO_DEBIAS, _SHADOW, *_RENORM):
                is_variable = (found := graph.nodes.get(node)) is not None and found.op in VARIABLE_OPS
                self._below.setdefault(base, []).append((number, last, name, is_variable))

    def of(self, item: Gathered) -> list[Companion]:
        """Return the companions of a layer, in the order in which they are saved."""
        found: list[Companion] = []
        for role, statistic in (("moving_mean", item.moving_mean), ("moving_variance", item.moving_variance)):
            if statistic is None:
                continue
            of_statistic = [
                (number, Companion(name, "shadow" if last == _SHADOW else last, role))
                for base in bases_of(statistic)
                for number, last, name, _ in self._below.get(base, ())
                if last in _ZERO_DEBIAS or (last == _SHADOW and base == statistic)
            ]
            found += [companion for _, companion in sorted(of_statistic, key=lambda each: each[0])]
        scope = scope_of(item.moving_mean or item.moving_variance or "")
        found += [
            Companion(name, last, "layer")
            for _, last, name, is_variable in (self._below.get(scope, ()) if scope else ())
            if last in _RENORM and is_variable
        ]
        return found


def names_of(layers: list[Gathered]) -> list[str]:
    """Return a name for each layer: the scope of its statistics, or what else tells it from the others."""
    names = []
    for item in layers:
        anchor = item.moving_mean or item.moving_variance or item.gamma or item.beta
        if anchor and anchor.endswith(_AVERAGES):
            anchor = scope_of(anchor)
        scope = scope_of(anchor) if anchor else scope_of(scope_of(item.node)) or scope_of(item.node) or item.node
        if anchor and _ANONYMOUS.search(anchor):
            # Variables without names say nothing of their layer; where it computes may.
            scope = place_of(item.node)
        marker = scope.find("/moments/")
        if marker >= 0 or scope.endswith("/moments"):
            scope = scope[: marker if marker >= 0 else -len("/moments")]
            half = scope[: len(scope) // 2]
            scope = half if scope == f"{half}/{half}" else scope
        names.append(scope or anchor or item.node)
    counts = Counter(names)
    return [
        (item.moving_mean or item.gamma or item.beta or item.node) if counts[name] > 1 else name
        for item, name in zip(layers, names, strict=True)
    ]
