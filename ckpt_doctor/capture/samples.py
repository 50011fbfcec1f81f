"""Batches of a model's inputs, which can be asked for again and again."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ckpt_doctor.capture.live import LiveTensors
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.progress import Listener, Progress, unheard

# Batches that come from a stream are kept on disk beyond so many bytes.
_STREAM_MEMORY = 64 * 10**6


# Number of a batch, first sample of it, end: to their arrays.
Fetch = Callable[[int, int, int], dict[str, Array]]


@dataclass(frozen=True, eq=False)
class Samples:
    """Data in batches; a batch is the same whenever it is asked for.

    Attributes:
        lengths: Number of samples in each batch.
        fetch: Number of a batch, start and end in it, to arrays: tensor name to array of shape `(end - start, …)`.
        notes: What looks odd about the data, a sentence each.
        multiple: The model takes batches of multiples of this.
    """

    lengths: tuple[int, ...]
    fetch: Fetch
    notes: tuple[str, ...] = ()
    multiple: int = 1

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def batch_count(self) -> int:
        """Number of batches."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self.read(number) for number in range(self.batch_count))

    def read(self, number: int) -> dict[str, Array]:
        """Return a batch: tensor name to array of shape `(batch, …)`."""
        return self.fetch(number, 0, self.lengths[number])

    def split(self, largest: int) -> Samples:
        """Return the same samples in the same order, in batches of at most `largest`, or of the least that runs."""
        largest = max(self.multiple, largest - largest % self.multiple)
        places = [
            (number, start, min(start + largest, length))
            for number, length in enumerate(self.lengths)
            for start in range(0, length, largest)
        ]

        def fetch(piece: int, start: int, end: int) -> dict[str, Array]:
            number, first, _ = places[piece]
            return self.fetch(number, first + start, first + end)

        return replace(self, lengths=tuple(end - start for _, start, end in places), fetch=fetch)

    def regrouped(self, size: int, count: int) -> Samples:
        """Return the first `count` samples in batches of `size`, the last of which may be shorter.

        Raises:
            BadRequest: Samples that would come into one batch differ in shape.
        """
        ends = list(itertools.accumulate(self.lengths))
        starts = [end - length for end, length in zip(ends, self.lengths, strict=True)]
        firsts = range(0, count, size)

        def fetch(number: int, start: int, end: int) -> dict[str, Array]:
            first, last = firsts[number] + start, firsts[number] + end
            parts = [
                self.fetch(batch, max(first, starts[batch]) - starts[batch], min(last, ends[batch]) - starts[batch])
                for batch in range(bisect.bisect_right(ends, first), bisect.bisect_left(ends, last) + 1)
            ]
            if len(parts) == 1:
                return parts[0]
            try:
                return {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in parts[0]}
            except ValueError as error:
                raise BadRequest(
                    f"samples of several batches cannot be put into one of {size}: {error}; pass batches of that size"
                ) from error

        return replace(self, lengths=tuple(min(size, count - first) for first in firsts), fetch=fetch)

    def without_remainder(self) -> Samples:
        """Return the samples without the last batch where that is shorter than the others."""
        if self.batch_count < 2 or self.lengths[-1] >= min(self.lengths[:-1]):
            return self
        note = (
            f"the model does not run on the last {self.lengths[-1]} of {len(self):,} samples, which do not fill a "
            "batch of "
            f"{max(self.lengths)}, so they were not used"
        )
        return replace(self, lengths=self.lengths[:-1], notes=(*self.notes, note))


def permutation(count: int, seed: int | None) -> Array:
    """Return the numbers below `count` in the order that the seed decides; rising for None."""
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def from_arrays(
    arrays: Mapping[str, Array], order: Sequence[int] | Array, batch_size: int, notes: Iterable[str] = ()
) -> Samples:
    """Return arrays, each of shape `(samples, …)`, in batches taken in `order`; the last batch may be shorter."""
    order = np.asarray(order)
    starts = range(0, len(order), batch_size)

    def fetch(number: int, start: int, end: int) -> dict[str, Array]:
        chosen = order[starts[number] + start : starts[number] + end]
        return {tensor: np.ascontiguousarray(array[chosen]) for tensor, array in arrays.items()}

    return Samples(tuple(len(order[start : start + batch_size]) for start in starts), fetch, tuple(notes))


def from_stream(
    batches: Iterable[Mapping[str, Array]],
    limit: int | None,
    notes: Sequence[str],
    kept: contextlib.ExitStack,
    progress: Listener = unheard,
) -> Samples:
    """Return the batches of a stream, which is read once and kept.

    Args:
        batches: Tensor name to array, of shape `(batch, …)`.
        limit: Take at most so many samples.
        notes: What looks odd about the data; looked at after the stream was read.
        kept: Frees the batches when it is closed.
        progress: Hears how many samples have been read.
    """
    store = kept.enter_context(LiveTensors(_STREAM_MEMORY))
    lengths: list[int] = []
    tensors: list[str] = []
    for batch in batches:
        room = None if limit is None else limit - sum(lengths)
        tensors = list(batch)
        for tensor, array in batch.items():
            store.put(len(lengths), tensor, array if room is None else array[:room])
        lengths.append(len(store.get(len(lengths), tensors[0])))
        progress(Progress("reading the data (samples)", sum(lengths), limit))
        if sum(lengths) == limit:
            break  # The next batch may take long to come.

    last: list[tuple[int, dict[str, Array]]] = []

    def fetch(number: int, start: int, end: int) -> dict[str, Array]:
        # Parts of a batch are asked for one after the other, and each would read all of it from disk.
        if not last or last[0][0] != number:
            last[:] = [(number, {tensor: store.get(number, tensor) for tensor in tensors})]
        return {tensor: array[start:end] for tensor, array in last[0][1].items()}

    return Samples(tuple(lengths), fetch, tuple(dict.fromkeys(notes)))
