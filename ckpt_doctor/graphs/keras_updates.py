"""How often one step of training updates a batch norm of a Keras model, by the calls in its config.

A layer is updated once for each of its calls, and so is every layer of a model that is called. `TimeDistributed` of
Keras 3 calls what it wraps for each step of time (keras/src/layers/rnn/time_distributed.py), that of Keras 2 folds time
into the batch and calls it once (tf_keras/src/layers/rnn/time_distributed.py). `keras.remat` runs a layer twice and
leaves no trace in the config; gradient accumulation of Keras 3 counts each of its small steps in `iterations`, and so
changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_doctor.graphs.keras_calls import DEEPEST, calls_of, input_shapes, layers_in
from ckpt_doctor.graphs.keras_layers import WRAPPED

_TIME_DISTRIBUTED = "TimeDistributed"
# A wrapper of a kernel, which calls its layer once (keras/src/layers/normalization/spectral_normalization.py).
_CALL_ONCE = frozenset({"SpectralNormalization"})
# Averages that correct for their start: Keras 2.1.3 to 2.3.1 on TensorFlow 1 (keras/backend/tensorflow_backend.py:
# `moving_average_update`, `zero_debias=True`; of 2.3 on TensorFlow 2 nothing is known). The versions `2.2.4-tf` are
# those of tf.keras, which does without.
_ZERO_DEBIASED = ((2, 1, 3), (2, 4, 0))
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?$")


def is_zero_debiased(version: object, backend: object) -> bool:
    """Return whether the averages of a Keras H5 file may be corrected for their start, by what wrote it.

    Args:
        version: The attribute `keras_version`.
        backend: The attribute `backend`; of others than TensorFlow none corrects.
    """
    found = _VERSION.match(str(version or ""))
    if found is None or backend not in (None, "", "tensorflow"):
        return False
    first, last = _ZERO_DEBIASED
    return first <= (int(found[1]), int(found[2]), int(found[3] or 0)) < last


def updates_each_step(model: Mapping[str, Any], *, keras_3: bool) -> dict[tuple[str, ...], int | None]:
    """Return how often a step of training calls each layer of a model; None where nothing tells.

    Args:
        model: The model, `{"class_name": …, "config": …}`.
        keras_3: Whether it is one of Keras 3, which does not obey `training=False` at a call while it trains.

    Returns:
        Names of the models and wrappers around a layer, outermost first, and its own last, to the number of calls.
    """
    found: dict[tuple[str, ...], int | None] = {}
    for path, updates in _walk(model, (), 1, keras_3, 0):
        # Two layers of one path cannot be told apart.
        found[path] = updates if found.get(path, updates) == updates else None
    return found


def _walk(
    entry: Any, path: tuple[str, ...], updates: int | None, keras_3: bool, depth: int
) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """Yield the path of every layer inside an entry, itself included, with how often a step calls it."""
    if depth > DEEPEST:
        return
    layers = layers_in(entry)
    if layers is not None:
        for name, layer in layers:
            called = None if updates is None else updates * _updating_calls(layer, keras_3)
            yield from _walk(layer, (*path, name), called, keras_3, depth + 1)
        return
    config = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(config, dict):
        return
    yield path or (str(config.get("name", "")),), updates
    for attribute in WRAPPED:
        wrapped = config.get(attribute)
        inner = wrapped.get("config") if isinstance(wrapped, dict) and "class_name" in wrapped else None
        if isinstance(inner, dict):
            called = _inside(entry, attribute, updates, keras_3)
            yield from _walk(wrapped, (*path, str(inner.get("name", attribute))), called, keras_3, depth + 1)


def _updating_calls(layer: Mapping[str, Any], keras_3: bool) -> int:
    """Return how many calls of a layer, as its model lists them, update it: not those of Keras 2 in inference mode."""
    return max(sum(keras_3 or call.arguments.get("training") is not False for call in calls_of(layer)), 1)


def _inside(wrapper: Mapping[str, Any], attribute: str, updates: int | None, keras_3: bool) -> int | None:
    """Return how often a step calls the layer in a wrapper, which it calls `updates` times; None if nothing tells."""
    name = str(wrapper.get("class_name", "")).rpartition(">")[2]
    if updates is None or attribute != "layer":
        return None
    if name == _TIME_DISTRIBUTED:
        steps = _time_steps(wrapper) if keras_3 else 1
        return None if steps is None else updates * steps
    return updates if name in _CALL_ONCE else None


def _time_steps(wrapper: Mapping[str, Any]) -> int | None:
    """Return the length of the time axis that a wrapper was built with; None where it is open or not written down."""
    build = wrapper.get("build_config")
    shapes = [build.get("input_shape")] if isinstance(build, dict) else []
    shapes += input_shapes(wrapper)
    lengths = [shape[1] for shape in shapes if isinstance(shape, list) and len(shape) > 1]
    known = {length if isinstance(length, int) and length > 0 else None for length in lengths}
    return known.pop() if len(known) == 1 else None
