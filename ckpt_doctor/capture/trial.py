"""A repaired model tried on part of the data: what its layers see in training mode, what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.levels import in_sequence
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.graphs.graph import split_tensor
from ckpt_doctor.observation import Observation

# Samples of a trial: moments are then right to 6 % of a standard deviation, and shares of answers to 3 % (a standard
# error of 1/sqrt(256), and of half of that).
_MOST_SAMPLES = 256
# Bytes of answers that are fetched at once, and values of an output that are kept: a segmentation answers for every
# pixel, a language model for every word of its vocabulary.
_FETCHED_BYTES = 64 * 10**6
_KEPT_VALUES = 4 * 10**6


def part_of(samples: Samples, most: int = _MOST_SAMPLES) -> Samples:
    """Return whole batches, evenly spread, of about `most` samples; a batch at least."""
    largest = max(samples.lengths)
    count = min(samples.batch_count, max(1, most // largest))
    chosen = [number * samples.batch_count // count for number in range(count)]

    def fetch(number: int, start: int, end: int) -> dict[str, Array]:
        return samples.fetch(chosen[number], start, end)

    return replace(samples, lengths=tuple(samples.lengths[number] for number in chosen), fetch=fetch)


def layers_at_several_sites(engine: Engine) -> set[str]:
    """Return the layers that the model runs at more than one place."""
    names = [site.layer for site in engine.sites]
    return {name for name in names if names.count(name) > 1}


def in_training_mode(engine: Engine, samples: Samples) -> dict[str, Observation]:
    """Return what goes into every layer where each normalises with the moments of the data.

    Layers that feed themselves are measured batch by batch, which takes one sweep and not up to twenty.

    Raises:
        RepairRefused: An activation is not finite, or TensorFlow cannot run an operation.
    """
    names = list(dict.fromkeys(site.layer for site in engine.sites))
    whole = not in_sequence(engine.graph, engine.sites, range(len(engine.sites)))
    return engine.measure(samples, names, whole=whole)[0]


def answers(
    engine: Engine, statistics: Mapping[str, tuple[Array, Array]], samples: Samples, outputs: Mapping[str, str]
) -> dict[str, Array]:
    """Return what a model answers with these statistics: output to array of shape `(answers, k)`, k its last axis.

    Of many answers those at regular distances are kept, the same ones whatever the statistics.

    Args:
        engine: The model; its stored statistics are what they were afterwards.
        statistics: Layer to mean and variance.
        samples: The data.
        outputs: Name of each output to its tensor; those that the engine does not compute are left out.

    Raises:
        RepairRefused: TensorFlow cannot run what stands behind the layers.
    """
    named = {name: tensor for name, tensor in outputs.items() if split_tensor(tensor)[0] in engine.graph.nodes}
    if not named:
        return {}
    tensors = list(named.values())
    before, engine.stored = engine.stored, statistics
    try:
        if all(entry.shape is not None and entry.shape[0] is None for entry in engine.program.inputs):
            few = engine.run(tensors, samples.fetch(0, 0, samples.multiple))
            each = sum(value.nbytes for value in few) // samples.multiple
            samples = samples.split(max(1, _FETCHED_BYTES // max(1, each)))
        kept: dict[str, list[Array]] = {name: [] for name in named}
        for values in engine.predict(samples, tensors):
            for name, value in zip(named, values, strict=True):
                if value.ndim >= 2:
                    kept[name].append(_thinned(value, _KEPT_VALUES // samples.batch_count))
    finally:
        engine.stored = before
    return {name: np.concatenate(parts) for name, parts in kept.items() if parts}


def _thinned(values: Array, most: int) -> Array:
    """Return rows of shape `(answers, k)` at regular distances, of `most` values together, but a row at least."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[:: max(1, -(-rows.size // max(1, most)))]
