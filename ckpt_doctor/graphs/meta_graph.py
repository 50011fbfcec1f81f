"""A TF1 `.meta`: its batch-norm layers, its saver, its training wiring.

The graph is looked at twice, with its training switches turned to inference and to training. Inference says which
variables a layer reads; training says which it updates and with which decay; both together say how it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ckpt_doctor.graphs.dropout import bypass_dropout
from ckpt_doctor.graphs.facts import Companion, LayerFacts, Mode, ModelFacts, Site
from ckpt_doctor.graphs.graph import DTYPES, Graph, plain_dtype
from ckpt_doctor.graphs.saver import Saver, read_saver
from ckpt_doctor.graphs.sites import FoundSite, find_sites
from ckpt_doctor.graphs.specialise import specialise, training_switches
from ckpt_doctor.graphs.updates import assigned_variables, decay_of, gradient_updates, run_together, update_nodes
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Last components of the names of variables that belong to a statistic
# (tensorflow/python/training/moving_averages.py: `_zero_debias`).
_ZERO_DEBIAS = ("biased", "local_step")


@dataclass(eq=False)
class _Gathered:
    """What is known of one layer while its sites are being collected."""

    moving_mean: str | None
    moving_variance: str | None
    gamma: str | None = None
    beta: str | None = None
    sites: list[Site] = field(default_factory=list)
    modes: set[str] = field(default_factory=set)
    node: str = ""
    order: int = 0


class MetaGraph:
    """A meta graph, taken apart.

    Attributes:
        proto: The `MetaGraphDef`.
        graph: Its whole graph.
        switches: The boolean nodes that switch training on and off, with the value that means inference.
    """

    def __init__(self, proto: pb.MetaGraphDef) -> None:
        self.proto = proto
        self.graph = Graph(proto.graph_def)
        self.switches = self._inference_values()

    @classmethod
    def parse(cls, data: bytes) -> MetaGraph:
        """Return the meta graph in `data`.

        Raises:
            google.protobuf.message.DecodeError: The bytes are no `MetaGraphDef`.
        """
        return cls(pb.MetaGraphDef.FromString(data))

    def _inference_values(self) -> dict[str, bool]:
        """Return the value of every switch with which most layers read stored statistics.

        Nearly all code calls the switch `is_training`, so false is tried first; `is_test` and its like are found by
        what they do.
        """
        values = dict.fromkeys(training_switches(self.graph), False)
        for name in values:
            flipped = {**values, name: True}
            if self._stored(flipped) > self._stored(values):
                values = flipped
        return values

    def _stored(self, switches: Mapping[str, bool]) -> int:
        return sum(found.statistics == "stored" for found in find_sites(specialise(self.graph, switches)))

    @cached_property
    def _without_dropout(self) -> tuple[Graph, tuple[str, ...]]:
        return bypass_dropout(specialise(self.graph, self.switches))

    @cached_property
    def inference(self) -> Graph:
        """The graph with every switch at inference and dropout taken out."""
        return self._without_dropout[0]

    @cached_property
    def bypassed_dropout(self) -> tuple[str, ...]:
        """Names of the dropout nodes that were taken out of `inference`."""
        return self._without_dropout[1]

    @cached_property
    def training(self) -> Graph:
        """The graph with every switch at training."""
        return specialise(self.graph, {name: not value for name, value in self.switches.items()})

    @cached_property
    def saver(self) -> Saver | None:
        """The saver that the meta graph names."""
        return read_saver(self.proto, self.graph)

    @cached_property
    def saved_names(self) -> dict[str, str]:
        """Variable node to its name in the file: the saver's, else the variable's own."""
        names = {node.name: _own_name(node) for node in self.graph.of_op(("VariableV2", "Variable", "VarHandleOp"))}
        if self.saver is not None:
            names.update({node: name for name, node in self.saver.saved.items()})
        return names

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Names of the variables in the collection `trainable_variables`."""
        names = set()
        for entry in self.proto.collection_def["trainable_variables"].bytes_list.value:
            names.add(pb.VariableDef.FromString(entry).variable_name.split(":")[0])
        return frozenset(names)

    @cached_property
    def facts(self) -> ModelFacts:
        """What the graph says about batch norm."""
        layers, other, not_judged = self._gather()
        gradients = gradient_updates(self.graph)
        return ModelFacts(
            evidence="graph",
            layers=tuple(self._layer(item, name, gradients) for item, name in zip(layers, _names(layers), strict=True)),
            saved=None if self.saver is None else frozenset(self.saver.saved),
            trains=bool(gradients),
            other_normalization=frozenset(other),
            not_judged=tuple(not_judged),
        )

    def _gather(self) -> tuple[list[_Gathered], set[str], list[tuple[str, str]]]:
        layers: dict[object, _Gathered] = {}
        other: set[str] = set()
        not_judged: list[tuple[str, str]] = []
        for graph, counts in ((self.inference, True), (self.training, False)):
            for found in find_sites(graph):
                if found.statistics == "other":
                    other.add(_scope(found.node))
                    continue
                if found.statistics == "unknown":
                    if counts:
                        not_judged.append(
                            (found.node, "it normalises with statistics of an origin that is not understood")
                        )
                    continue
                mean, variance = _statistic_variables(graph, found)
                gamma, beta = _variable(graph, found.site.scale), _variable(graph, found.site.offset)
                key = mean or variance or (gamma, beta) if (mean or variance or gamma or beta) else found.node
                item = layers.setdefault(key, _Gathered(mean, variance, order=len(layers)))
                item.gamma, item.beta = item.gamma or gamma, item.beta or beta
                item.moving_mean, item.moving_variance = item.moving_mean or mean, item.moving_variance or variance
                item.node = item.node or found.node
                item.modes.add(found.statistics if counts else f"training-{found.statistics}")
                if counts:
                    item.sites.append(found.site)
        return list(layers.values()), other, not_judged

    def _layer(self, item: _Gathered, name: str, gradients: set[str]) -> LayerFacts:
        mode = _mode(item.modes)
        statistics = [variable for variable in (item.moving_mean, item.moving_variance) if variable]
        # Looked for where the training switch is resolved: inside a cond, an update writes through a Switch.
        updates = update_nodes(self.training, statistics)
        has_updates = bool(statistics) and all(updates[variable] for variable in statistics)
        companions = tuple(_companions(self.graph, self.saved_names, item))
        channels = self._channels((*statistics, item.gamma, item.beta))
        decays = (decay_of(self.training, variable) for variable in self._averaged(statistics))
        saved = self.saved_names
        return LayerFacts(
            name=name,
            gamma=saved.get(item.gamma, item.gamma) if item.gamma else None,
            beta=saved.get(item.beta, item.beta) if item.beta else None,
            moving_mean=saved.get(item.moving_mean, item.moving_mean) if item.moving_mean else None,
            moving_variance=saved.get(item.moving_variance, item.moving_variance) if item.moving_variance else None,
            companions=companions,
            channels=channels,
            epsilon=_seven_digits(item.sites[0].epsilon) if item.sites else None,
            momentum=next((decay for decay in decays if decay is not None), None),
            mode=mode,
            sites=tuple(item.sites),
            has_update_ops=has_updates,
            updates_run=self._updates_run(gradients, updates)
            if gradients and mode != "stored" and statistics
            else None,
            trained=None if not gradients else mode in ("switch", "batch"),
        )

    def _updates_run(self, gradients: set[str], updates: Mapping[str, list[str]]) -> bool:
        return all(updates.values()) and run_together(self.graph, gradients, updates.values())

    def _averaged(self, statistics: Iterable[str]) -> list[str]:
        """Return the statistics, and the zero-debiased averages behind them, which hold the decay."""
        names = list(statistics)
        biased = [node for node in self.graph.nodes if node.endswith("/biased")]
        return names + [node for node in biased if any(_belongs(node[: -len("/biased")], name) for name in names)]

    def _channels(self, variables: Iterable[str | None]) -> int | None:
        for name in variables:
            if name:
                sizes = [dim.size for dim in self.graph.nodes[name].attr["shape"].shape.dim]
                known = [size for size in sizes if size != 1] or sizes
                if len(known) == 1 and known[0] > 0:
                    return known[0]
        return None

    def variable_type(self, node: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape of a variable's node.

        Raises:
            KeyError: The graph has no such node, or it has no plain dtype.
        """
        found = self.graph.nodes[node]
        shape = tuple(dim.size for dim in found.attr["shape"].shape.dim)
        return DTYPES[plain_dtype(found.attr["dtype"].type)], shape


def _own_name(node: pb.NodeDef) -> str:
    shared: bytes = node.attr["shared_name"].s if "shared_name" in node.attr else b""
    return shared.decode("utf-8", "replace") if node.op == "VarHandleOp" and shared else node.name


def _variable(graph: Graph, tensor: str | None) -> str | None:
    return graph.variable(tensor) if tensor else None


def _seven_digits(value: float) -> float:
    """Return a float32 as its author wrote it: 0.001, not 0.0010000000474974513."""
    return float(f"{value:.7g}")


def _statistic_variables(graph: Graph, found: FoundSite) -> tuple[str | None, str | None]:
    """Return the variables' nodes of mean and variance: those read, or those that the moments are averaged into."""
    if found.statistics == "stored":
        pair = [graph.variable(tensor) for tensor in (found.mean, found.variance)]
        for number, tensor in enumerate((found.mean, found.variance)):
            node = graph.producer(graph.source(tensor))
            if pair[number] is None and node is not None and node.op == "Maximum":
                pair[number] = graph.variable(graph.inputs(node)[0])
        return pair[0], pair[1]
    result = []
    for tensor in (found.mean, found.variance):
        stored = [name for name in assigned_variables(graph, graph.source(tensor)) if not name.endswith(_ZERO_DEBIAS)]
        result.append(stored[0] if stored else None)
    # Both moments of the fused op lead to one variable only if something went wrong: then none is believed.
    return (result[0], result[1]) if result[0] != result[1] or result[0] is None else (None, None)


def _mode(modes: set[str]) -> Mode:
    if "stored" in modes:
        return "switch" if "training-batch" in modes else "stored"
    return "batch" if "batch" in modes or "training-batch" in modes else "unknown"


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _belongs(base: str, statistic: str) -> bool:
    """Return whether companions under `base` are those of `statistic`, also where the scope is doubled."""
    return base == statistic or (
        base.endswith("/" + statistic) and statistic.startswith(base[: -len(statistic) - 1] + "/")
    )


def _companions(graph: Graph, saved: Mapping[str, str], item: _Gathered) -> Iterable[Companion]:
    for role, statistic in (("moving_mean", item.moving_mean), ("moving_variance", item.moving_variance)):
        if statistic is None:
            continue
        for node, name in saved.items():
            base, _, last = node.rpartition("/")
            if last in _ZERO_DEBIAS and _belongs(base, statistic):
                yield Companion(name, last, role)


def _names(layers: list[_Gathered]) -> list[str]:
    """Return a name for each layer: the scope of its statistics, or what else tells it from the others."""
    names = []
    for item in layers:
        anchor = item.moving_mean or item.moving_variance or item.gamma or item.beta
        scope = _scope(anchor) if anchor else _scope(_scope(item.node)) or _scope(item.node) or item.node
        marker = scope.find("/moments/")
        if marker >= 0 or scope.endswith("/moments"):
            scope = scope[: marker if marker >= 0 else -len("/moments")]
            half = scope[: len(scope) // 2]
            scope = half if scope == f"{half}/{half}" else scope
        names.append(scope or anchor or item.node)
    repeated = {name for name in names if names.count(name) > 1}
    return [
        (item.moving_mean or item.gamma or item.beta or item.node) if name in repeated else name
        for item, name in zip(layers, names, strict=True)
    ]
