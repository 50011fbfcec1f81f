"""A TF1 `.meta`: its batch-norm layers, its saver, its training wiring.

The graph is looked at twice, with its training switches turned to inference and to training. Inference says which
variables a layer reads; training says which it updates and with which decay; both together say how it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

from google.protobuf.message import DecodeError

from ckpt_doctor.graphs.declared import add_declared
from ckpt_doctor.graphs.dropout import bypass_dropout
from ckpt_doctor.graphs.facts import Companion, LayerFacts, Mode, ModelFacts
from ckpt_doctor.graphs.graph import DTYPES, PART, VARIABLE_OPS, Graph, plain_dtype, sound, split_tensor, tensor_name
from ckpt_doctor.graphs.hidden import opened_graphs, undecided, with_bodies
from ckpt_doctor.graphs.inline import inline
from ckpt_doctor.graphs.layers import CompanionVariables, Gathered, Gathering, bases_of, gather, names_of, scope_of
from ckpt_doctor.graphs.linear_in_front import FrontFinder
from ckpt_doctor.graphs.saver import Saver, read_saver
from ckpt_doctor.graphs.sites import find_sites
from ckpt_doctor.graphs.specialise import resolve_tensor, specialise, training_switches
from ckpt_doctor.graphs.update_counts import UpdateCounts
from ckpt_doctor.graphs.updates import (
    corrections_are_clipped,
    decay_of,
    followed_variables,
    gradient_updates,
    initial_value,
    trained_variables,
    update_nodes,
)
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# How many switches are tried at least, and on how many operations in all beyond that.
_FEWEST_TRIED = 16
_MOST_TRIED = 300_000


class MetaGraph:
    """A meta graph, taken apart.

    Attributes:
        proto: The `MetaGraphDef`.
        graph: Its whole graph.
        switches: The boolean nodes that switch training on and off, with the value that means inference.
        serves: Whether it is looked at as what answers requests: only what its signatures give counts, in the mode in
            which they give it.
    """

    def __init__(self, proto: pb.MetaGraphDef, *, serves: bool = False) -> None:
        self.proto = proto
        graph, self._written = inline(proto.graph_def)
        self.graph = Graph(sound(graph))
        self.serves = serves and bool(self._outputs)
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
        values = dict.fromkeys(training_switches(self._opened), False)
        fixed = self._defaults(values) if self.serves else {}
        values |= fixed
        stored, batch = self._count(values)
        # Each is tried on the whole graph; models have one switch, or one for each of a few parts.
        for name in list(values)[: max(_FEWEST_TRIED, _MOST_TRIED // max(1, len(self._opened.nodes)))]:
            if not batch:
                break
            if name in fixed:
                continue
            flipped = {**values, name: True}
            more, fewer = self._count(flipped)
            if more > stored:
                values, stored, batch = flipped, more, fewer
        return values

    @property
    def _outputs(self) -> list[str]:
        """The tensors that the signatures give."""
        return [
            self._written.get(tensor_name(info.name), info.name)
            for key, signature in self.proto.signature_def.items()
            for info in signature.outputs.values()
            if not key.startswith("__saved_model") and info.name
        ]

    @cached_property
    def _served(self) -> frozenset[str] | None:
        """The nodes of `inference` that the signatures need; None where all count."""
        if not self.serves:
            return None
        wanted = (resolve_tensor(self.graph, self.switches, tensor) for tensor in self._outputs)
        return frozenset(self.inference.ancestors(split_tensor(tensor)[0] for tensor in wanted))

    def _defaults(self, switches: Iterable[str]) -> dict[str, bool]:
        """Return the values of the switches that no signature feeds, and that therefore keep their defaults."""
        fed = {
            split_tensor(info.name)[0]
            for signature in self.proto.signature_def.values()
            for info in signature.inputs.values()
        }
        found: dict[str, bool] = {}
        for name in switches:
            node = self.graph.nodes[name]
            if node.op == "PlaceholderWithDefault" and name not in fed:
                default = self.graph.constant(self.graph.inputs(node)[0])
                if default is not None and default.size == 1:
                    found[name] = bool(default.reshape(-1)[0])
        return found

    def _count(self, switches: Mapping[str, bool]) -> tuple[int, int]:
        """Return how many sites read stored statistics, and how many take those of their batch."""
        kinds = [found.statistics for found in find_sites(specialise(self._opened, switches))]
        return kinds.count("stored"), kinds.count("batch")

    @cached_property
    def _opened(self) -> Graph:
        """The whole graph with the bodies of its loops written out: for looking only."""
        return with_bodies(self.graph)

    @cached_property
    def hidden(self) -> list[Gathered]:
        """The layers that stand only where they cannot be measured: in functions of loops, in branches of the data."""
        if self.serves or (self._opened is self.graph and not undecided(self.inference)):
            return []
        known = {name for item in self._gathering.layers for name in _variables(item)}
        found: list[Gathered] = []
        training = {name: not value for name, value in self.switches.items()}
        for inference, trained in opened_graphs(self._opened, self.switches, training):
            for item in gather(inference, trained).layers:
                names = _variables(item)
                if names and not names & known:
                    known |= names
                    found.append(item)
        return found

    @cached_property
    def _gathering(self) -> Gathering:
        found = gather(self.inference, None if self.serves else self.training, self._served)
        if not self.serves:
            add_declared(self.graph, found.layers)
        return found

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
        names = {node.name: PART.sub("", _own_name(node)) for node in self.graph.of_op(VARIABLE_OPS)}
        if self.saver is not None:
            prefix = self.saver.prefix
            names = {node: f"{prefix}{name}" for node, name in names.items()}
            names.update({node: name for name, node in self.saver.saved.items()})
            names.update({node: name for node, (name, _) in self.saver.parts.items()})
        return names

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Names of the variables in the collection `trainable_variables`."""
        names = set()
        for entry in self.proto.collection_def["trainable_variables"].bytes_list.value:
            # A damaged entry names nothing.
            with suppress(DecodeError):
                names.add(pb.VariableDef.FromString(entry).variable_name.split(":")[0])
        return frozenset(names)

    @cached_property
    def facts(self) -> ModelFacts:
        """What the graph says about batch norm."""
        found = self._gathering
        gradients = gradient_updates(self.graph)
        items = [*found.layers, *self.hidden]
        layers = [self._layer(item, name, gradients) for item, name in zip(items, names_of(items), strict=True)]
        shown = len(found.layers)
        # Whether their updates run is as hidden as they are.
        layers[shown:] = [
            replace(layer, sites=(), updates_run=None, updates=None, counted=False) for layer in layers[shown:]
        ]
        if gradients:
            layers = self._untrained(items, layers)
        return ModelFacts(
            evidence="graph",
            layers=tuple(layers),
            saved=None if self.saver is None else frozenset(self.saver.saved),
            stored=frozenset() if self.saver is None else self._stored(self.saver),
            trains=bool(gradients) and not self.serves,
            other_normalization=frozenset(found.other),
            not_judged=tuple(found.not_judged),
            names=None if self.serves else frozenset(self.saved_names.values()),
        )

    def _stored(self, saver: Saver) -> frozenset[str]:
        """Return the names of trained variables in the saver's list; slots and counters are often cut out of files."""
        return frozenset(name for name, node in saver.saved.items() if node in self.trainable)

    def _untrained(self, items: list[Gathered], layers: list[LayerFacts]) -> list[LayerFacts]:
        """Return the layers; how those on stored statistics that get no gradient were trained, the graph does not say.

        Neither their own weights nor those in front get one: they may be frozen, or a teacher or target network, whose
        weights are assigned from those of another.
        """
        nodes = {name: node for node, name in self.saved_names.items()}
        owners = {
            node: layer.name
            for item, layer in zip(items, layers, strict=True)
            for node in (item.gamma, item.beta)
            if node is not None
        }
        result = []
        for item, layer in zip(items, layers, strict=True):
            own = {node for node in (item.gamma, item.beta) if node is not None}
            front = (
                {nodes.get(name or "", "") for name in (layer.front.kernel, layer.front.bias)} if layer.front else set()
            )
            if layer.mode == "stored" and own and not (own | front) & self._trained_by_gradient:
                sources = {
                    owners[node] for each in own for node in followed_variables(self.graph, each) if node in owners
                } - {layer.name}
                layer = replace(layer, trained=None, follows=sources.pop() if len(sources) == 1 else None)
            result.append(layer)
        return result

    def _layer(self, item: Gathered, name: str, gradients: set[str]) -> LayerFacts:
        mode = item.mode
        training_mode = self._training_mode(item) if gradients else mode
        statistics = [variable for variable in (item.moving_mean, item.moving_variance) if variable]
        # Looked for where the training switch is resolved: inside a cond, an update writes through a Switch.
        updates = update_nodes(self.training, statistics)
        has_updates = bool(statistics) and all(updates[variable] for variable in statistics)
        called = [[self._calling(name) for name in names] for names in updates.values()]
        companions = tuple(self._companions.of(item))
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
            updates=self._update_counts.each_step(called),
            counted=has_updates and training_mode in ("batch", "switch") and self._is_counted(statistics, called),
            updates_run=self._updates_run(called) if gradients and training_mode != "stored" and statistics else None,
            trained=self._trained(training_mode, item) if gradients else None,
            gradient_trains=bool(set(statistics) & self._trained_by_gradient),
            initial=self._initial(item),
            renorm_clipped=self._renorm_clipped(companions),
            front=self._fronts.of(item.sites[0]) if item.sites else None,
            # Of several switches, each may have been fed something else.
            decided_by=mode if len(self.switches) < 2 else None,
        )

    @cached_property
    def _fronts(self) -> FrontFinder:
        sites = [site for item in self._gathering.layers for site in item.sites]
        return FrontFinder(self.inference, sites, self.saved_names)

    def _renorm_clipped(self, companions: Iterable[Companion]) -> bool | None:
        names = {companion.name for companion in companions if companion.role == "renorm_stddev"}
        if not names:
            return None
        nodes = [node for node, name in self.saved_names.items() if name in names]
        return any(map(partial(corrections_are_clipped, self.training), nodes))

    @cached_property
    def _companions(self) -> CompanionVariables:
        return CompanionVariables(self.graph, self.saved_names)

    @cached_property
    def _trained_by_gradient(self) -> frozenset[str]:
        return trained_variables(self.graph)

    def _training_mode(self, item: Gathered) -> Mode:
        """Return how the whole graph runs a layer; what signatures give is a part of it."""
        if not self.serves:
            return item.mode
        return self._whole_modes.get(item.moving_mean or item.moving_variance or "", "unknown")

    @cached_property
    def _whole_modes(self) -> Mapping[str, Mode]:
        """How the whole graph of a SavedModel, which may train, runs each layer, by its statistics."""
        layers = gather(self.inference, self.training).layers
        return {item.moving_mean or item.moving_variance or "": item.mode for item in layers}

    def _trained(self, mode: Mode, item: Gathered) -> bool | None:
        """Return whether training ran on the moments of each batch; None where a switch or nothing known decides.

        What was fed to a placeholder, or assigned to a variable, during training is in no graph: a switch that was at
        inference all along leaves the same file. Where the graph has a branch of its own for training, gradients come
        through that one alone.
        """
        batch, stored = item.made_by.get("batch", set()), item.made_by.get("stored", set())
        if batch and stored and batch & self._before_gradients and not stored & self._before_gradients:
            return True
        known: dict[Mode, bool] = {"batch": True, "stored": False}
        return known.get(mode)

    @cached_property
    def _before_gradients(self) -> set[str]:
        """The nodes of `inference` that gradients are computed from."""
        return self.inference.ancestors(gradient_updates(self.inference))

    def _initial(self, item: Gathered) -> str | None:
        """Return what the averages start at, by their initialisers; None where a checkpoint initialises them."""
        statistics = (item.moving_mean, item.moving_variance)
        if any(name is not None and self._update_counts.is_loaded(name) for name in statistics):
            return None
        values = [None if variable is None else initial_value(self.graph, variable) for variable in statistics]
        if values == [0.0, 1.0]:
            return "0/1"
        if values == [0.0, 0.0]:
            return "0/0"
        return None if any(value is not None for value in values) else "0/1"

    @cached_property
    def _update_counts(self) -> UpdateCounts:
        return UpdateCounts(self.graph, self.training)

    def _is_counted(self, statistics: Iterable[str], updates: list[list[str]]) -> bool:
        """Return whether the graph proves that there were no more updates of a layer than the counter says."""
        counts = self._update_counts
        return counts.counted(updates) and not any(map(counts.comes_without_counter, statistics))

    def _updates_run(self, updates: list[list[str]]) -> bool:
        return all(updates) and self._update_counts.run_together(updates)

    def _calling(self, name: str) -> str:
        """Return a node of a specialised graph as it is in the whole one: inside a branch, the `If` that runs it."""
        scope = name
        while scope and scope not in self.graph.nodes:
            scope = scope_of(scope)
        return scope or name

    def _averaged(self, statistics: Iterable[str]) -> list[str]:
        """Return the statistics, and the zero-debiased averages behind them, which hold the decay."""
        names = list(statistics)
        biased = (f"{base}/biased" for name in names for base in bases_of(name))
        return names + [node for node in dict.fromkeys(biased) if node in self.graph.nodes]

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


def _variables(item: Gathered) -> set[str]:
    return {name for name in (item.moving_mean, item.moving_variance, item.gamma, item.beta) if name}


def _own_name(node: pb.NodeDef) -> str:
    shared: bytes = node.attr["shared_name"].s if "shared_name" in node.attr else b""
    return shared.decode("utf-8", "replace") if node.op == "VarHandleOp" and shared else node.name


def _seven_digits(value: float) -> float:
    """Return a float32 as its author wrote it: 0.001, not 0.0010000000474974513."""
    return float(f"{value:.7g}")
