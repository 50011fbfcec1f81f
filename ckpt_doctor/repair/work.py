"""One repair on its way: the steps that need the model and the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.estimation import (
    Loaded,
    load_model,
    read_data,
    stored_statistics,
)
from ckpt_doctor.capture.metric import MetricFunction, measure_metric
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.heuristics.agreement import DEFAULT_EPSILON
from ckpt_doctor.heuristics.stored_in_training import followed
from ckpt_doctor.observation import Observation
from ckpt_doctor.options import RepairOptions
from ckpt_doctor.progress import Listener, Progress
from ckpt_doctor.repair.contradiction import Objections
from ckpt_doctor.repair.guard import Trial, objections
from ckpt_doctor.repair.planning import LayerPlan
from ckpt_doctor.repair.proof import doubts
from ckpt_doctor.repair.targets import Targets
from ckpt_doctor.repair.without_data import copied_statistics, debiased_statistics, initial_statistics
from ckpt_doctor.repair_result import Metric
from ckpt_doctor.verdict import Verdict


class Work:
    """One repair on its way: the model is loaded and the data are read when the first step needs them.

    Attributes:
        left: Layer and reason, of those that were to be repaired and could not be.
        notes: What the user should know.
        meta: The TF1 graph, where the model is one.
        samples: Number of samples used.
        batches: Number of batches they came in.
    """

    def __init__(
        self,
        verdict: Verdict,
        request: RepairOptions,
        targets: Targets,
        kept: ExitStack,
        progress: Listener,
    ) -> None:
        self.verdict = verdict
        self.source = verdict.analysis.checkpoint
        self.inventory = verdict.analysis.inventory
        self.request = request
        self.targets = targets
        self.kept = kept
        self.progress = progress
        self.by_name = {layer.name: layer for layer in self.inventory.layers}
        self.left = list(targets.left)
        self.notes: list[str] = []
        self.meta = verdict.analysis.graph
        self.samples = self.batches = 0
        self.engine: Engine | None = None
        self.feed: Samples | None = None
        self.outputs: Mapping[str, str] = {}
        self.measured: Mapping[str, Observation] = {}

    def without_data(self) -> Iterator[LayerPlan]:
        """Yield the plans of the layers that need no data; what cannot be done is left."""
        for name in (*self.targets.copied, *self.targets.initial, *self.targets.debiased):
            if name in self.targets.estimated:
                continue
            layer = self.by_name[name]
            try:
                if name in self.targets.copied:
                    swap = self.verdict.subject.role_swaps.get(name)
                    values, origin = copied_statistics(layer, swap, followed(layer, self.by_name))
                    self.notes.append(f"{name}: {origin}")
                    yield LayerPlan(layer, "copy", values)
                elif name in self.targets.initial:
                    yield LayerPlan(layer, "initial", initial_statistics(layer))
                else:
                    yield LayerPlan(layer, "debias", debiased_statistics(layer, self.verdict.subject.shares.of(layer)))
            except RepairRefused as refusal:
                self.left.append((name, str(refusal)))
        if self.targets.initial:
            told = next((mode.shown for name in self.targets.initial if (mode := self.by_name[name].trained)), None)
            self.notes.append(
                f"{len(self.targets.initial)} layers get the initial values of their statistics, with which they were "
                + (f"trained: {told}" if told else "trained according to --layers")
            )
        if self.targets.debiased:
            self.notes.append(
                "debias removes the initial value from the averages; the result is an average over training, not the "
                "statistics of the final weights; for those, pass --data"
            )

    def estimated(self, *, whole: bool) -> Iterator[LayerPlan]:
        """Yield the plans of the layers whose statistics come from data."""
        if not self.targets.estimated:
            return
        self.progress(Progress("reading the model", 0, None))
        loaded = load_model(self.source, self.inventory, self.request)
        self.left += [(name, loaded.left[name]) for name in self.targets.estimated if name in loaded.left]
        measurable = [name for name in self.targets.estimated if name not in loaded.left]
        if not measurable:
            return
        engine, feed = self._open(loaded)
        measured, unsettled = engine.measure(feed, measurable, whole=whole, progress=self.progress)
        self.feed = feed = engine.fitted(feed)
        self.samples, self.batches = len(feed), feed.batch_count
        self.notes += [*loaded.program.notes, *feed.notes]
        self.measured = measured
        self.left += unsettled.items()
        self.notes += doubts(self.inventory, measured)
        for name, seen in measured.items():
            layer = self.by_name[name]
            error = seen.largest_error(layer.epsilon or DEFAULT_EPSILON)
            yield LayerPlan(
                layer,
                "layerwise" if whole else "training",
                {"moving_mean": seen.mean, "moving_variance": seen.variance},
                error,
            )

    def _open(self, loaded: Loaded) -> tuple[Engine, Samples]:
        """Read the data and start the model with the statistics of the source."""
        self.feed = read_data(loaded, self.request, self.kept, self.progress)
        self.engine = self.kept.enter_context(
            Engine(loaded.program, stored_statistics(self.inventory.layers), cache_memory=self.request.cache_memory)
        )
        self.outputs = loaded.outputs
        return self.engine, self.feed

    def observe(self, after: Inventory) -> dict[str, Observation]:
        """Return what goes into every layer of the repaired checkpoint; empty without data or a model to run."""
        if not self.request.data:
            return {}
        if self.engine is not None and self.feed is not None:
            self.engine.stored = stored_statistics(after.layers)
            return self.engine.observe(self.feed, progress=self.progress)
        # Everything came from the file; what the data say of it is what `scan --data` would ask.
        try:
            engine, feed = self._open(load_model(self.source, after, self.request))
            engine.stored = stored_statistics(after.layers)
            return engine.observe(feed, progress=self.progress)
        except RepairRefused as refusal:
            self.notes.append(f"not compared with the data: {refusal}")
            return {}

    def noise(self, seen: Mapping[str, Observation]) -> Mapping[str, float]:
        """Return how far passes over the same data differ in each layer; empty for a graph that draws no numbers.

        Args:
            seen: What went into every layer in one pass, with the statistics that the model has now.
        """
        if self.engine is None or self.feed is None or not self.engine.program.random or not seen:
            return {}
        passes = [seen, *(self.engine.observe(self.feed, progress=self.progress) for _ in range(2))]
        found = {}
        for name in seen:
            epsilon = self.by_name[name].epsilon or DEFAULT_EPSILON
            pairs = itertools.combinations([one[name] for one in passes], 2)
            found[name] = max(left.distance(right.mean, right.variance, epsilon) for left, right in pairs)
        self.notes.append(
            f"the graph draws random numbers before its layers ({self.engine.program.random[0]}), so the statistics "
            f"depend on the draw; another draw differs by up to {max(found.values()):.1g} standard deviations"
        )
        return found

    def objections(self, after: Inventory, seen: Mapping[str, Observation]) -> Objections:
        """Return what speaks against the repair, by the file's own word about the data and by what the model answers.

        Args:
            after: The repaired checkpoint.
            seen: What goes into its layers at inference; empty where no data were used.

        Raises:
            RepairRefused: It is strong, and neither `--unproven` nor a `--metric` takes it.
        """
        if self.engine is None or self.feed is None or not seen:
            return Objections()
        trial = Trial(self.engine, self.feed, self.outputs, self.measured, seen)
        found = objections(self.verdict, self.targets, after, trial)
        if found.refusing and not self.request.unproven and self.request.metric is None:
            raise RepairRefused(
                f"{'; '.join(found.refusing)}; nothing was written; pass data that are prepared as in training "
                "(scale, channel order, domain), or decide by --metric, or write anyway with --unproven"
            )
        return found

    def compare(self, judge: MetricFunction, plans: Sequence[LayerPlan]) -> Metric:
        """Return the user's measure before and after, and refuse a repair that makes it worse."""
        before = stored_statistics(self.inventory.layers)
        after = before | {
            plan.layer.name: (plan.values["moving_mean"], plan.values["moving_variance"]) for plan in plans
        }
        measured = Metric(*measure_metric(judge, self.request, self.source, self.inventory, (before, after)))
        if measured.after < measured.before and not self.request.unproven:
            raise RepairRefused(
                f"the metric falls from {measured.before:.6g} to {measured.after:.6g}, so nothing was written; look "
                "at the layers with --dry-run, or write anyway with --unproven"
            )
        return measured
