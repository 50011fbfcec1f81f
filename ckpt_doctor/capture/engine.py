"""Runs a cut graph level by level and takes the moments of what goes into every batch-norm site.

A site's level is the longest chain of sites before it. A run of one level feeds the live tensors that earlier runs
left, fetches the inputs of the level's sites and what later levels need, and so runs every operation once. Between two
levels the moments are taken and become the statistics that the next run normalises with:

* chunk = one batch (`training`): each batch is normalised with its own moments, as TensorFlow does in training mode;
* chunk = all batches (`layerwise`): the whole data set is one batch, so that every layer is measured on what it will
  see at inference.

The result pools all values that a layer saw; its variance is the population variance, spread between batches included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_doctor.capture.data import Samples
from ckpt_doctor.capture.program import Program
from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.graphs.cut import CutSite
from ckpt_doctor.graphs.graph import Graph, split_tensor, tensor_name
from ckpt_doctor.moments import Moments
from ckpt_doctor.progress import Listener, Progress, unheard


@dataclass(frozen=True, eq=False)
class Measured:
    """The moments of one layer.

    Attributes:
        moments: Of all values that went into the layer, at all its sites.
        batch_means: The mean of each batch, float64 of shape `(batches, channels)`: their spread is the error bar.
    """

    moments: Moments
    batch_means: Array


@dataclass(frozen=True)
class _Level:
    """One run.

    Attributes:
        feeds: Live tensors that it reads.
        sites: Indices of the sites whose input it computes.
        fetches: Tensors that it leaves for later runs, inputs of its own sites included.
        dropped: Live tensors that no later run reads.
    """

    feeds: tuple[str, ...]
    sites: tuple[int, ...]
    fetches: tuple[str, ...]
    dropped: tuple[str, ...]


def plan_levels(
    graph: Graph, inputs: Sequence[str], sites: Sequence[CutSite], measured: Sequence[int], *, pooled: bool = False
) -> list[_Level]:
    """Return the runs that measure the named sites.

    Args:
        graph: The cut graph.
        inputs: Tensors that take data.
        sites: All sites of the graph.
        measured: Indices of the sites whose statistics are not known beforehand; the others are fed stored ones.
        pooled: Whether all sites of a layer share one pair of statistics, so that each waits for all of them.
    """
    level = _levels_of_nodes(graph, inputs, sites, measured, pooled=pooled)
    wanted = {split_tensor(sites[number].x)[0] for number in measured}
    needed = graph.ancestors(wanted, control=False)
    last_use: dict[str, int] = {}
    given = {tensor_name(name) for name in inputs}
    made: dict[str, int] = dict.fromkeys(given, 0)
    for name in needed:
        if name not in level:
            continue
        for tensor in graph.inputs(graph.nodes[name]):
            if level.get(split_tensor(tensor)[0], -1) >= 0 or tensor in made:
                made.setdefault(tensor, level[split_tensor(tensor)[0]])
                last_use[tensor] = max(last_use.get(tensor, 0), level[name])
    placeholders = {tensor for site in sites for tensor in (site.mean, site.variance)}
    runs = []
    for number in range(1 + max((level.get(split_tensor(sites[s].x)[0], 0) for s in measured), default=0)):
        own = tuple(s for s in measured if level.get(split_tensor(sites[s].x)[0], 0) == number)
        feeds = [
            tensor
            for tensor, last in last_use.items()
            if tensor not in placeholders
            and (made[tensor] < number or tensor in given)
            and any(level.get(node.name) == number and node.name in needed for node, _ in graph.consumers[tensor])
        ]
        fetches = [
            tensor
            for tensor, last in last_use.items()
            if tensor not in placeholders and tensor not in given and made[tensor] == number and last > number
        ]
        fetches += [sites[s].x for s in own if sites[s].x not in fetches]
        dropped = [tensor for tensor, last in last_use.items() if last == number and made[tensor] < number]
        runs.append(_Level(tuple(feeds), own, tuple(fetches), tuple(dropped)))
    return runs


def _levels_of_nodes(
    graph: Graph, inputs: Sequence[str], sites: Sequence[CutSite], measured: Sequence[int], *, pooled: bool
) -> dict[str, int]:
    """Return the level of every node that depends on data; nodes of constants and variables have none."""
    waits: dict[str, list[str]] = {}
    for number in measured:
        awaited = [
            split_tensor(sites[other].x)[0]
            for other in measured
            if other == number or (pooled and sites[other].layer == sites[number].layer)
        ]
        for placeholder in (sites[number].mean, sites[number].variance):
            waits[split_tensor(placeholder)[0]] = awaited
    level: dict[str, int] = {split_tensor(name)[0]: 0 for name in inputs}
    pending: set[str] = set()

    def visit(start: str) -> None:
        # Deep models are longer than Python's stack, so this walks with its own.
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, ready = stack.pop()
            if name in level:
                continue
            sources = waits.get(name) or [split_tensor(t)[0] for t in graph.inputs(graph.nodes[name])]
            if not ready:
                if name in pending:
                    # A loop's back edge: its nodes are one level.
                    continue
                pending.add(name)
                stack.append((name, True))
                stack.extend((source, False) for source in sources if source in graph.nodes and source not in level)
            else:
                known = [level[source] for source in sources if level.get(source, -1) >= 0]
                level[name] = max(known, default=-1) + (name in waits and bool(known))

    for name in graph.nodes:
        visit(name)
    return {name: number for name, number in level.items() if number >= 0}


class Engine:
    """Measures the sites of a program.

    Use as a context manager: it holds a TensorFlow session.

    Args:
        program: What to run.
        stored: Layer to its stored mean and variance, for the layers that are not measured.
    """

    def __init__(self, program: Program, stored: Mapping[str, tuple[Array, Array]]) -> None:
        self.program = program
        self.sites = program.cut.sites
        self.graph = Graph(program.cut.proto)
        self.stored = stored
        self.tf = tensorflow()
        tf_graph = self.tf.Graph()
        with tf_graph.as_default():
            definition = self.tf.compat.v1.GraphDef.FromString(program.cut.proto.SerializeToString())
            try:
                self.tf.import_graph_def(definition, name="")
            except ValueError as error:
                raise RepairRefused(
                    f"TensorFlow {self.tf.__version__} cannot import the model's graph: {error}"
                ) from error
        self.session = self.tf.compat.v1.Session(graph=tf_graph, config=self._config())
        self._set_variables()

    def _config(self) -> Any:
        config = self.tf.compat.v1.ConfigProto()
        rewrite = config.graph_options.rewrite_options
        # Every level is a graph of its own, and optimising each costs more than it saves. NCHW convolutions run on a
        # CPU only after a change of layout, which is the optimiser's.
        layouts = {node.attr["data_format"].s for node in self.program.cut.proto.node if "data_format" in node.attr}
        if any(layout.startswith(b"NC") for layout in layouts):
            rewrite.cpu_layout_conversion = 1  # NCHW_TO_NHWC
        else:
            rewrite.disable_meta_optimizer = True
        return config

    def _set_variables(self) -> None:
        for node, (placeholder, assign) in self.program.cut.variables.items():
            self.session.run(assign, {placeholder: self.program.values[node]()})

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _run(self, fetches: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        try:
            values: list[Array] = self.session.run(list(fetches), {**self.program.feeds, **feeds})
        except self.tf.errors.OpError as error:
            node = getattr(error, "node_def", None)
            where = f"{node.op} {node.name}: " if node is not None else ""
            raise RepairRefused(
                f"TensorFlow cannot run the model: {where}{str(error.message).splitlines()[0]}"
            ) from error
        except (TypeError, ValueError) as error:
            raise BadRequest(f"the model cannot be fed: {error}") from error
        return values

    def _statistics(self, known: Mapping[int, tuple[Array, Array]]) -> dict[str, Array]:
        feeds = {}
        for number, site in enumerate(self.sites):
            pair = known.get(number) or self.stored.get(site.layer)
            if pair is not None:
                feeds[site.mean], feeds[site.variance] = (np.asarray(value, np.float32) for value in pair)
        return feeds

    def measure(
        self, samples: Samples, layers: Sequence[str], *, whole: bool, progress: Listener = unheard
    ) -> dict[str, Measured]:
        """Return the moments of the named layers.

        Args:
            samples: The data.
            layers: The layers whose statistics are to be found; all others use their stored ones.
            whole: Whether the chunk is all the data (layerwise) or each batch (training).
            progress: Hears of every batch.

        Raises:
            RepairRefused: An activation is not finite, or TensorFlow cannot run an operation.
        """
        measured = [number for number, site in enumerate(self.sites) if site.layer in set(layers)]
        if whole:
            self._refuse_sequences(measured)
        levels = plan_levels(
            self.graph, [entry.tensor for entry in self.program.inputs], self.sites, measured, pooled=whole
        )
        batches = range(samples.batch_count)
        chunks = [list(batches)] if whole else [[number] for number in batches]
        tally = _Tally(self.sites, progress, len(levels) * samples.batch_count)
        for chunk in chunks:
            live: list[dict[str, Array]] = [samples.batch(number) for number in chunk]
            known: dict[int, tuple[Array, Array]] = {}
            for level in levels:
                feeds = self._statistics(known)
                pooled: dict[int, Moments] = {}
                for position, number in enumerate(chunk):
                    tensors = live[position]
                    fed = {tensor: tensors[tensor] for tensor in level.feeds if tensor in tensors}
                    values = dict(zip(level.fetches, self._run(level.fetches, {**feeds, **fed}), strict=True))
                    for site in level.sites:
                        moments = tally.add(site, number, values[self.sites[site].x])
                        pooled[site] = pooled[site].merge(moments) if site in pooled else moments
                    tensors.update(values)
                    for tensor in level.dropped:
                        tensors.pop(tensor, None)
                    tally.step()
                known |= self._known(pooled, whole)
        return tally.result()

    def _known(self, found: Mapping[int, Moments], whole: bool) -> dict[int, tuple[Array, Array]]:
        """Return the statistics that the next level normalises with: a site's own, or its layer's."""
        shared = dict(found)
        if whole:
            for layer in {self.sites[site].layer for site in found}:
                alike = [site for site in found if self.sites[site].layer == layer]
                total = found[alike[0]]
                for site in alike[1:]:
                    total = total.merge(found[site])
                shared |= dict.fromkeys(alike, total)
        return {site: (moments.mean, moments.variance) for site, moments in shared.items()}

    def _refuse_sequences(self, measured: Sequence[int]) -> None:
        """Refuse a layer that feeds itself: its whole-data statistics have no one-sweep answer."""
        for number in measured:
            site = self.sites[number]
            before = self.graph.ancestors([split_tensor(site.x)[0]], control=False)
            for other in measured:
                if self.sites[other].layer == site.layer and split_tensor(self.sites[other].mean)[0] in before:
                    raise RepairRefused(
                        f"layer {site.layer} is applied several times in a row, and each pass changes what the next "
                        "one sees; estimate it with --method training"
                    )

    def observe(self, samples: Samples, *, progress: Listener = unheard) -> dict[str, Measured]:
        """Return the moments of every layer in one plain inference pass with the stored statistics."""
        feeds = self._statistics({})
        tally = _Tally(self.sites, progress, samples.batch_count)
        inputs = [site.x for site in self.sites]
        for number, batch in enumerate(samples):
            for site, value in enumerate(self._run(inputs, {**feeds, **batch})):
                tally.add(site, number, value)
            tally.step()
        return tally.result()

    def predict(self, samples: Samples, outputs: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of the output tensors for every batch, with the stored statistics."""
        feeds = self._statistics({})
        for batch in samples:
            yield self._run(outputs, {**feeds, **batch})


class _Tally:
    """Adds up the moments of every layer, batch by batch."""

    def __init__(self, sites: Sequence[CutSite], progress: Listener, steps: int) -> None:
        self.sites = sites
        self.moments: dict[str, Moments] = {}
        self.means: dict[str, dict[int, Moments]] = {}
        self.progress = progress
        self.steps = steps
        self.done = 0

    def add(self, number: int, batch: int, values: Array) -> Moments:
        site = self.sites[number]
        try:
            moments = Moments.of(values, site.axis)
        except FloatingPointError as error:
            raise RepairRefused(
                f"layer {site.layer}, batch {batch + 1}: {error} in what goes into the layer ({site.x}); "
                "check the data and the weights before it (ckpt-doctor scan)"
            ) from error
        self.moments[site.layer] = self.moments[site.layer].merge(moments) if site.layer in self.moments else moments
        seen = self.means.setdefault(site.layer, {})
        seen[batch] = seen[batch].merge(moments) if batch in seen else moments
        return moments

    def step(self) -> None:
        self.done += 1
        self.progress(Progress("measuring", self.done, self.steps))

    def result(self) -> dict[str, Measured]:
        return {
            layer: Measured(moments, np.stack([self.means[layer][batch].mean for batch in sorted(self.means[layer])]))
            for layer, moments in self.moments.items()
        }


def stack_batches(batches: Iterator[list[Array]]) -> list[Array]:
    """Return the outputs of all batches joined along the first axis."""
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
