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

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ckpt_doctor.capture.levels import Level, in_sequence, plan_levels
from ckpt_doctor.capture.live import DEFAULT_LIMIT, LiveTensors
from ckpt_doctor.capture.program import Program
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.capture.session import DoesNotRun, Session
from ckpt_doctor.capture.tally import Tally
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.moments import Moments
from ckpt_doctor.observation import Observation
from ckpt_doctor.progress import Listener, unheard

_log = logging.getLogger(__name__)

# A layer that feeds itself has settled when no channel moves by more than this, and is left after so many sweeps.
# What still moves is further from its end than its last step, so it goes on until that is small, or mere rounding.
SETTLED = 1e-5
_AT_REST = 1e-6
MOST_SWEEPS = 20

# Bytes of inputs in a batch, where the engine chooses the batch: activations are some hundred times as large. Below
# eight samples a processor's threads have too little to share.
_SMALL_BATCH = 4 * 10**6
_FEWEST_SAMPLES = 8
# Bytes of all layers' inputs that a plain pass may hold whatever --cache-memory says.
_ALWAYS_ROOM = 100 * 10**6

# Mean and variance of one layer, each of shape `(channels,)`.
Pair = tuple[Array, Array]


_Result = TypeVar("_Result")


class Engine(Session):
    """Measures the sites of a program.

    Use as a context manager: it holds a TensorFlow session.

    Args:
        program: What to run.
        stored: Layer to its stored mean and variance, for the layers that are not measured.
        cache_memory: Bytes of live tensors that are held in memory; more go to disk.
    """

    def __init__(
        self, program: Program, stored: Mapping[str, tuple[Array, Array]], *, cache_memory: int = DEFAULT_LIMIT
    ) -> None:
        super().__init__(program)
        self.stored = stored
        self.cache_memory = cache_memory
        self._drops_remainder = False

    def __enter__(self) -> Engine:
        return self

    def _statistics(
        self, known: Mapping[int, Pair], by_layer: Mapping[str, Pair], wanted: Collection[int] | None = None
    ) -> dict[str, Array]:
        """Return what is fed for the statistics of the wanted sites, or of all."""
        feeds = {}
        for number in range(len(self.sites)) if wanted is None else wanted:
            site = self.sites[number]
            pair = known.get(number) or by_layer.get(site.layer) or self.stored.get(site.layer)
            if pair is not None:
                feeds[site.mean], feeds[site.variance] = (np.asarray(value, np.float32) for value in pair)
        return feeds

    def measure(
        self, samples: Samples, layers: Sequence[str], *, whole: bool, progress: Listener = unheard
    ) -> tuple[dict[str, Observation], dict[str, str]]:
        """Return the moments of the named layers.

        Args:
            samples: The data.
            layers: The layers whose statistics are to be found; all others use their stored ones.
            whole: Whether the chunk is all the data (layerwise) or each batch (training).
            progress: Hears of every batch.

        Returns:
            Layer to what was measured, and layer to the reason why it has no answer.

        Raises:
            RepairRefused: An activation is not finite, or TensorFlow cannot run an operation.
        """
        wanted = set(layers)
        measured = [number for number, site in enumerate(self.sites) if site.layer in wanted]
        sequences = in_sequence(self.graph, self.sites, measured) if whole else set()

        def run(batches: Samples) -> tuple[dict[str, Observation], dict[str, str]]:
            if not sequences:
                return self._sweep(batches, measured, whole=whole, given={}, progress=progress), {}
            return self._sweeps(batches, measured, sequences, progress)

        return self._with_remainder(samples, run)

    def fitted(self, samples: Samples) -> Samples:
        """Return those of the samples that are run, with a note on the others: a last, short batch may be too short."""
        return samples.without_remainder() if self._drops_remainder else samples

    def _with_remainder(self, samples: Samples, run: Callable[[Samples], _Result]) -> _Result:
        """Return what `run` gives for all samples, or without the last batch where only whole ones run."""
        try:
            return run(self.fitted(samples))
        except DoesNotRun as error:
            shorter = samples.without_remainder()
            if shorter.lengths == self.fitted(samples).lengths:
                raise
            _log.debug("%s; tried without the last batch of %d samples", error, samples.lengths[-1])
            result = run(shorter)
            self._drops_remainder = True
            return result

    def _sweeps(
        self, samples: Samples, measured: Sequence[int], sequences: set[str], progress: Listener
    ) -> tuple[dict[str, Observation], dict[str, str]]:
        """Measure again with what was found until it no longer moves.

        A layer that feeds itself normalises its later input with the statistics that this input helps to make, so its
        answer is a fixed point. The first guess is what the batches say in training mode.
        """
        first = self._sweep(samples, measured, whole=False, given={}, progress=progress)
        given = {layer: (first[layer].mean, first[layer].variance) for layer in sequences}
        found: dict[str, Observation] = {}
        residual: dict[str, float] = {}
        worst = float("inf")
        for _ in range(MOST_SWEEPS):
            found = self._sweep(samples, measured, whole=True, given=given, progress=progress)
            epsilon = {site.layer: site.epsilon for site in self.sites}
            residual = {layer: found[layer].distance(*given[layer], epsilon[layer]) for layer in sequences}
            _log.debug("layers that feed themselves moved by %.2g in this sweep", max(residual.values()))
            before, worst = worst, max(residual.values())
            if worst <= SETTLED and (worst <= _AT_REST or worst > before / 2):
                return found, {}
            given = {layer: (found[layer].mean, found[layer].variance) for layer in sequences}
        if worst <= SETTLED:
            return found, {}
        left = {
            layer: f"it is applied several times in a row, and after {MOST_SWEEPS} sweeps its statistics still move by "
            f"{value:.1g}; estimate it with --method training"
            for layer, value in residual.items()
            if value > SETTLED
        }
        return {layer: seen for layer, seen in found.items() if layer not in left}, left

    def _sweep(
        self, samples: Samples, measured: Sequence[int], *, whole: bool, given: Mapping[str, Pair], progress: Listener
    ) -> dict[str, Observation]:
        """Measure the sites once; layers in `given` normalise with these statistics instead of their own moments."""

        def run(batches: Samples) -> dict[str, Observation]:
            return self._swept(batches, measured, whole=whole, given=given, progress=progress)

        return self._in_small_batches(samples, run) if whole else run(samples)

    def _swept(
        self, samples: Samples, measured: Sequence[int], *, whole: bool, given: Mapping[str, Pair], progress: Listener
    ) -> dict[str, Observation]:
        awaited = [number for number in measured if self.sites[number].layer not in given]
        inputs = [entry.tensor for entry in self.program.inputs]
        levels = plan_levels(self.graph, inputs, self.sites, measured, awaited, pooled=whole, unheld=self._unheld)
        batches = range(samples.batch_count)
        chunks = [list(batches)] if whole else [[number] for number in batches]
        _log.debug(
            "%d levels for %d of %d sites; %d samples in %d batches; each chunk is %s",
            len(levels),
            len(measured),
            len(self.sites),
            len(samples),
            samples.batch_count,
            "all batches" if whole else "one batch",
        )
        for number, level in enumerate(levels):
            _log.debug(
                "level %d measures %s; reads %d inputs and %d live tensors, keeps %d, drops %d",
                number,
                ", ".join(dict.fromkeys(self.sites[site].layer for site in level.sites)) or "nothing",
                len(level.inputs),
                len(level.feeds),
                len(level.kept),
                len(level.dropped),
            )
        tally = Tally(self.sites, samples, progress, levels=len(levels))
        with LiveTensors(self.cache_memory) as live:
            for chunk in chunks:
                known: dict[int, Pair] = {}
                # A layer may stand at several levels, and all of them together are its statistics.
                pooled: dict[int, Moments] = {}
                for level in levels:
                    feeds = self._statistics(known, given, level.normalised)
                    for to_come, batch in zip(reversed(range(len(chunk))), chunk, strict=True):
                        self._run_level(level, batch, samples, live, feeds, tally, pooled, to_come)
                    known |= self._known(pooled, whole)
            _log.debug(
                "of live tensors at most %d bytes were in memory (limit %d); %d bytes went to disk",
                live.most_held,
                live.limit,
                live.spilled,
            )
        return tally.result()

    def _run_level(
        self,
        level: Level,
        batch: int,
        samples: Samples,
        live: LiveTensors,
        feeds: Mapping[str, Array],
        tally: Tally,
        pooled: dict[int, Moments],
        to_come: int,
    ) -> None:
        fed = {tensor: live.get(batch, tensor) for tensor in level.feeds}
        if level.inputs:
            given = samples.read(batch)
            fed |= {tensor: given[tensor] for tensor in level.inputs}
        values = dict(zip(level.fetches, self._run(level.fetches, {**feeds, **fed}), strict=True))
        for site in level.sites:
            moments = tally.add(site, batch, values[self.sites[site].x])
            pooled[site] = pooled[site].merge(moments) if site in pooled else moments
        for tensor in level.dropped:
            live.drop(batch, tensor)
        # What the run gave lies in memory beside the copies that are kept.
        passing = sum(value.nbytes for value in values.values())
        for tensor in level.kept:
            live.put(batch, tensor, values[tensor], beside=passing, to_come=to_come)
        tally.step()

    def _known(self, found: Mapping[int, Moments], whole: bool) -> dict[int, Pair]:
        """Return the statistics that the next level normalises with: a site's own, or its layer's."""
        shared = dict(found)
        if whole:
            for layer in {self.sites[site].layer for site in found}:
                alike = [site for site in found if self.sites[site].layer == layer]
                total = found[alike[0]]
                for site in alike[1:]:
                    total = total.merge(found[site])
                shared |= dict.fromkeys(alike, total)
        return {site: _pair(moments) for site, moments in shared.items()}

    def _in_small_batches(
        self, samples: Samples, run: Callable[[Samples], dict[str, Observation]]
    ) -> dict[str, Observation]:
        """Return what `run` gives for the samples in batches small enough for little memory.

        What a run holds grows with its batch: at 224 pixels the inputs of all layers of a ResNet-50 are 44 MB an image.
        A model whose inputs have a fixed number of samples keeps the batches that it was given.
        """
        if not self._open_ended:
            return run(samples)
        size = sum(array.nbytes for array in samples.fetch(0, 0, 1).values())
        small = samples.split(max(_FEWEST_SAMPLES, int(_SMALL_BATCH / max(size, 1))))
        try:
            return run(small)
        except DoesNotRun:
            if small.lengths == samples.lengths:
                raise
            # Towers share a batch in equal parts, virtual batches are parts of one: others may be what the model takes.
            _log.debug("batches of %d samples do not run; those that were given are tried", max(small.lengths))
            return run(samples)

    @property
    def _open_ended(self) -> bool:
        return all(entry.shape is not None and entry.shape[0] is None for entry in self.program.inputs)

    def _for_room(self, samples: Samples, inputs: Sequence[str], feeds: Mapping[str, Array]) -> Samples:
        """Return the samples in batches of which the inputs of all layers may be held at once."""
        if not self._open_ended:
            return samples
        try:
            few = self._run(inputs, {**feeds, **samples.fetch(0, 0, samples.multiple)})
        except DoesNotRun:
            # As above: a single sample may be no batch.
            return samples
        room = self.cache_memory + _ALWAYS_ROOM
        each = sum(value.nbytes for value in few) // samples.multiple
        return samples.split(max(1, room // max(each, 1)))

    def observe(self, samples: Samples, *, progress: Listener = unheard) -> dict[str, Observation]:
        """Return the moments of every layer in one plain inference pass with the stored statistics."""
        return self._with_remainder(
            samples, lambda whole: self._in_small_batches(whole, lambda batches: self._observed(batches, progress))
        )

    def _observed(self, samples: Samples, progress: Listener) -> dict[str, Observation]:
        feeds = self._statistics({}, {})
        inputs = [site.x for site in self.sites]
        samples = self._for_room(samples, inputs, feeds)
        _log.debug("a plain pass over %d samples in %d batches", len(samples), samples.batch_count)
        tally = Tally(self.sites, samples, progress, levels=1)
        for number, batch in enumerate(samples):
            for site, value in enumerate(self._run(inputs, {**feeds, **batch})):
                tally.add(site, number, value)
            tally.step()
        return tally.result()

    def run(self, outputs: Sequence[str], batch: Mapping[str, Array]) -> list[Array]:
        """Return the values of tensors for one batch, with the stored statistics."""
        return self._run(outputs, {**self._statistics({}, {}), **batch})

    def predict(self, samples: Samples, outputs: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of the output tensors for every batch, with the stored statistics."""
        for batch in samples:
            yield self.run(outputs, batch)


def _pair(moments: Moments) -> Pair:
    if not moments.count:
        # All of the batch is masked: Keras 3 divides sums of nothing by its epsilon (`_moments`).
        return moments.mean, moments.m2
    return moments.mean, moments.variance
