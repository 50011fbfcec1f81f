"""Batches of a model's inputs, which can be asked for again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_doctor.capture.live import LiveTensors
from ckpt_doctor.checkpoint import Array

# Batches that come from a stream are kept on disk beyond so many bytes.
_STREAM_MEMORY = 256 * 10**6


@dataclass(frozen=True, eq=False)
class Samples:
    """Data in batches; a batch is the same whenever it is asked for.

    Attributes:
        lengths: Number of samples in each batch.
        read: Number of a batch to its arrays: tensor name to array of shape `(batch, …)`.
        notes: What looks odd about the data, a sentence each.
    """

    lengths: tuple[int, ...]
    read: Callable[[int], dict[str, Array]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def batch_count(self) -> int:
        """Number of batches."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self.read(number) for number in range(self.batch_count))

    def split(self, largest: int) -> Samples:
        """Return the same samples in the same order, in batches of at most `largest`."""
        places = [
            (number, start, min(start + largest, length))
            for number, length in enumerate(self.lengths)
            for start in range(0, length, largest)
        ]
        last: list[tuple[int, dict[str, Array]]] = []

        def read(piece: int) -> dict[str, Array]:
            number, start, end = places[piece]
            if not last or last[0][0] != number:
                last[:] = [(number, self.read(number))]
            return {tensor: array[start:end] for tensor, array in last[0][1].items()}

        return Samples(tuple(end - start for _, start, end in places), read, self.notes)


def permutation(count: int, seed: int | None) -> Array:
    """Return the numbers below `count` in the order that the seed decides; rising for None."""
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def from_arrays(
    arrays: Mapping[str, Array], order: Sequence[int] | Array, batch_size: int, notes: Iterable[str] = ()
) -> Samples:
    """Return arrays, each of shape `(samples, …)`, in batches taken in `order`; the last batch may be shorter."""
    order = np.asarray(order)
    starts = range(0, len(order), batch_size)

    def read(number: int) -> dict[str, Array]:
        chosen = order[starts[number] : starts[number] + batch_size]
        return {tensor: np.ascontiguousarray(array[chosen]) for tensor, array in arrays.items()}

    return Samples(tuple(len(order[start : start + batch_size]) for start in starts), read, tuple(notes))


def from_stream(
    batches: Iterable[Mapping[str, Array]], limit: int | None, notes: Sequence[str], kept: contextlib.ExitStack
) -> Samples:
    """Return the batches of a stream, which is read once and kept.

    Args:
        batches: Tensor name to array, of shape `(batch, …)`.
        limit: Take at most so many samples.
        notes: What looks odd about the data; looked at after the stream was read.
        kept: Frees the batches when it is closed.
    """
    store = kept.enter_context(LiveTensors(_STREAM_MEMORY))
    lengths: list[int] = []
    tensors: list[str] = []
    for batch in batches:
        room = None if limit is None else limit - sum(lengths)
        if room is not None and room <= 0:
            break
        tensors = list(batch)
        for tensor, array in batch.items():
            store.put(len(lengths), tensor, array if room is None else array[:room])
        lengths.append(len(store.get(len(lengths), tensors[0])))

    def read(number: int) -> dict[str, Array]:
        return {tensor: store.get(number, tensor) for tensor in tensors}

    return Samples(tuple(lengths), read, tuple(dict.fromkeys(notes)))
