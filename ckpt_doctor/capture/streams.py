"""Data that come as a stream of batches: TFRecord files, and what a user's function gives."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.capture.runtime import reason, tensorflow
from ckpt_doctor.capture.user_code import call, load_function
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches that come one after the other.

    Attributes:
        batches: Arrays, tuples or dicts.
        ends: Whether it is known that they come to an end.
    """

    batches: Iterator[Any]
    ends: bool


def user_batches(option: str, argument: str, *, limited: bool) -> Stream:
    """Return the batches that `MODULE:FUNCTION` gives: arrays, tuples or dicts.

    A generator with a length that starts again after it, as those of Keras, is read once.

    Args:
        option: The option that named the function, for messages.
        argument: What was given.
        limited: Whether only so many samples are read.

    Raises:
        BadRequest: The function cannot be loaded, fails, gives nothing that can be gone through, or gives a
            `tf.data.Dataset` without end and nothing limits it.
    """
    source = call(option, argument, load_function(option, argument))
    length = _length(source)
    if not hasattr(source, "__iter__"):
        if length is None or not hasattr(source, "__getitem__"):
            raise BadRequest(
                f"{option} {argument}: returned {type(source).__name__}; expected a tf.data.Dataset or an iterable of "
                "batches"
            )
        # As `keras.utils.PyDataset`: batches by number.
        return Stream(_guarded(option, argument, map(source.__getitem__, range(length))), ends=True)
    if length == _ENDLESS and not limited:
        raise BadRequest(
            f"{option} {argument}: returned an endless dataset (repeat()); limit it with --samples N, or remove "
            "repeat()"
        )
    batches = _guarded(option, argument, iter(source))
    if length is None or length == _ENDLESS:
        return Stream(batches, ends=False)
    return Stream(itertools.islice(batches, length), ends=True)


# tf.data.INFINITE_CARDINALITY
_ENDLESS = -1


def _length(source: Any) -> int | None:
    """Return how many batches a source gives, `_ENDLESS` for a dataset without end, None where nothing tells."""
    if hasattr(source, "cardinality"):
        count = int(source.cardinality())
        return count if count >= _ENDLESS else None
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def _guarded(option: str, argument: str, iterator: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        # The user's own code may raise anything.
        except Exception as error:
            raise BadRequest(f"{option} {argument}: failed with {type(error).__name__}: {error}") from error
        yield batch


# Of a stream of which nothing tells whether it ends, so much is read: a hundred times what good estimates take.
MOST_SAMPLES = 200_000
MOST_BYTES = 4 * 10**9


def within_bounds(where: str, batches: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Yield the batches of a stream that may have no end.

    Raises:
        BadRequest: It goes on beyond `MOST_SAMPLES` or `MOST_BYTES`.
    """
    samples = size = 0
    for batch in batches:
        samples += len(next(iter(batch.values())))
        size += sum(array.nbytes for array in batch.values())
        if samples > MOST_SAMPLES or size > MOST_BYTES:
            raise BadRequest(
                f"{where}: has returned {samples:,} samples ({size / 1e9:.1f} GB), and may not end; limit it with "
                "--samples N"
            )
        yield batch


def record_batches(option: str, argument: str, parse: str | None, batch_size: int) -> Iterator[Any]:
    """Yield batches of the records in TFRecord files, each parsed by the user's function.

    Raises:
        BadRequest: There is no parse function or no file, or a record is damaged.
    """
    if parse is None:
        raise BadRequest(
            f"{option} {argument}: a record is bytes; pass the function that reads it with --parse MODULE:FUNCTION"
        )
    files = sorted(glob.glob(argument))  # noqa: PTH207 - a pattern as the user wrote it, absolute ones too
    if not files:
        raise BadRequest(f"{option} {argument}: no such file")
    tf = tensorflow()
    function = load_function("--parse", parse)
    dataset = call("--parse", parse, tf.data.TFRecordDataset(files).map, function).batch(batch_size)
    iterator = iter(dataset)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise BadRequest(f"{option} {argument}: {reason(error)}") from error
        yield batch


def by_input(argument: str, batch: Any, inputs: Sequence[ModelInput], renamed: Mapping[str, str]) -> dict[str, Array]:
    """Return tensor name to array for one batch.

    A dict is matched by name, a tuple by position (what follows the inputs, labels say, is not used), an array feeds a
    single input.
    """
    if isinstance(batch, Mapping):
        targets = {target: name for name, target in renamed.items()}
        table = {}
        for entry in inputs:
            names = (targets.get(entry.tensor), entry.name, entry.tensor)
            name = next((name for name in names if name is not None and name in batch), None)
            if name is None and len(inputs) == 1 and len(batch) == 1:
                name = next(iter(batch))
            if name is None:
                raise BadRequest(
                    f"--data {argument}: a batch holds {', '.join(map(str, batch)) or 'nothing'}, but the model needs "
                    f"{entry.name}; map it with --input NAME={entry.target}"
                )
            table[entry.tensor] = as_array(batch[name])
        return table
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(parts) < len(inputs):
        raise BadRequest(
            f"--data {argument}: a batch has {len(parts)} parts, but the model has {len(inputs)} inputs "
            f"({', '.join(entry.name for entry in inputs)})"
        )
    # A tuple of (inputs, labels) may hold its inputs as a dict or tuple of their own.
    if isinstance(parts[0], (Mapping, tuple, list)):
        return by_input(argument, parts[0], inputs, renamed)
    return {entry.tensor: as_array(part) for entry, part in zip(inputs, parts, strict=False)}


def as_array(value: Any) -> Array:
    """Return a tensor or an array as an array."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def stacked(where: str, batches: Sequence[Any]) -> Any:
    """Return batches of one structure, dicts and tuples of tensors, put together sample after sample as arrays.

    Raises:
        BadRequest: Their shapes differ.
    """
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: stacked(where, [batch[name] for batch in batches]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(stacked(where, parts) for parts in zip(*batches, strict=True))
    try:
        return np.concatenate([as_array(batch) for batch in batches])
    except ValueError as error:
        raise BadRequest(f"{where}: the records cannot be stacked: {error}") from error
