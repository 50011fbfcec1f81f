"""What the statistics of a Keras model should be: its own code, run eagerly in float64, and nothing of the engine's.

Every batch-norm layer normalises by the moments of all the data; layers at several places are iterated until they
settle.
"""

from __future__ import annotations

import contextlib

import numpy as np
import tensorflow as tf

if __package__:
    from benchmarks.trial_models import keras
else:
    from trial_models import keras

# The class of Keras that normalises: in Keras 2 a base of what is public.
NORM = next(kind for kind in keras.layers.BatchNormalization.__mro__ if "call" in vars(kind))
MOST_SWEEPS = 200


def batch_norms(model):
    """Return the batch-norm layers of a model in the order in which Keras walks it, wrapped ones included."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, NORM)]


def anew(model, build, data, precision="float32"):
    """Return the same model, built anew to compute in a precision; one with a policy of its own keeps that.

    What a model was saved by may change how it is called.
    """
    policy = keras.mixed_precision.global_policy()
    keras.backend.set_floatx(precision)
    keras.mixed_precision.set_global_policy(precision)
    try:
        other = build()
        if len(other.weights) < len(model.weights):
            other(data)
    finally:
        keras.backend.set_floatx("float32")
        keras.mixed_precision.set_global_policy(policy)
    other.set_weights([np.asarray(value) for value in model.get_weights()])
    return other


@contextlib.contextmanager
def normalising(function):
    """Let every batch-norm layer compute `function(layer, inputs, mask)` meanwhile, or as ever where that is None."""
    original = NORM.call

    def call(self, inputs, training=None, mask=None):
        result = function(self, inputs, mask)
        return original(self, inputs, training=False) if result is None else result

    NORM.call = call
    try:
        yield
    finally:
        NORM.call = original


def axis_of(layer):
    """Return the number of the channels' dimension: Keras 2 makes a list of it, and counts one more for its own use."""
    if isinstance(layer.axis, int):
        return layer.axis
    return layer.axis[0] - (layer.virtual_batch_size is not None)


def normalised(layer, x, mean, variance):
    """Return what Keras computes from statistics, in x's own precision, at least float32."""
    dtype = np.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype.as_numpy_dtype
    shape = [1] * len(x.shape)
    shape[axis_of(layer)] = -1
    factor = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        factor = factor * np.asarray(layer.gamma).astype(np.float64).ravel()
    summand = -mean * factor
    if layer.beta is not None:
        summand = summand + np.asarray(layer.beta).astype(np.float64).ravel()
    y = np.asarray(x).astype(dtype) * factor.reshape(shape).astype(dtype) + summand.reshape(shape).astype(dtype)
    return tf.cast(tf.constant(y), layer.compute_dtype)


def rows(layer, x, mask):
    """Return what counts of a layer's input: float64 of shape (values, channels)."""
    values = np.moveaxis(np.asarray(x).astype(np.float64), axis_of(layer), -1)
    return values[np.asarray(mask)] if mask is not None else values.reshape(-1, values.shape[-1])


def oracle(model, data, kept):
    """Return mean and variance of every batch-norm layer, with all the data as one batch, in float64.

    Layers whose number is in `kept` normalise with what is stored.
    """
    layers = batch_norms(model)
    stored_ids = {id(layers[number]) for number in kept}
    seen: dict[int, list[np.ndarray]] = {}

    def own(layer, x, mask):
        if id(layer) in stored_ids:
            return None
        mine = rows(layer, x, mask)
        seen.setdefault(id(layer), []).append(mine)
        return normalised(layer, x, mine.mean(axis=0), mine.var(axis=0))

    tf.config.run_functions_eagerly(True)
    with normalising(own):
        model(data, training=False)
    found = {key: np.concatenate(parts) for key, parts in seen.items()}
    known = {key: (value.mean(axis=0), value.var(axis=0)) for key, value in found.items()}
    sweeps = MOST_SWEEPS if any(len(parts) > 1 for parts in seen.values()) else 0
    for _ in range(sweeps):
        seen.clear()

        def with_known(layer, x, mask, known=known):
            if id(layer) in stored_ids:
                return None
            seen.setdefault(id(layer), []).append(rows(layer, x, mask))
            return normalised(layer, x, *known[id(layer)])

        with normalising(with_known):
            model(data, training=False)
        found = {key: np.concatenate(parts) for key, parts in seen.items()}
        new = {key: (value.mean(axis=0), value.var(axis=0)) for key, value in found.items()}
        moved = max(float(np.abs(new[key][1] - known[key][1]).max()) for key in new)
        known = new
        if moved < 1e-12:
            break
    tf.config.run_functions_eagerly(False)
    return [known.get(id(layer)) for layer in layers]


def is_untouched(layer):
    """Return whether a layer has the statistics that it starts at."""
    return not np.asarray(layer.moving_mean).any() and bool(np.all(np.asarray(layer.moving_variance) == 1))


def in_double(data):
    """Return data with float64 in the place of float32."""
    return tf.nest.map_structure(lambda array: array.astype(np.float64) if array.dtype == np.float32 else array, data)


def stored(model):
    """Return what lies in a model as the oracle gives it: None for layers at 0 and 1."""
    return [
        None
        if is_untouched(layer)
        else tuple(np.asarray(value).astype(np.float64).ravel() for value in (layer.moving_mean, layer.moving_variance))
        for layer in batch_norms(model)
    ]


def worst(model, found, truth):
    """Return the largest error of a channel over the layers with statistics, and how many those are."""
    errors = [0.0]
    changed = 0
    for layer, pair, expected in zip(batch_norms(model), found, truth, strict=True):
        if pair is None:
            continue
        mean, variance = pair
        changed += 1
        assert expected is not None, f"{layer.name} was repaired, and the oracle never saw it"
        spread = expected[1] + layer.epsilon
        errors.append(float((np.abs(mean - expected[0]) / np.sqrt(spread)).max()))
        errors.append(float((np.abs(variance - expected[1]) / spread).max()))
    return max(errors), changed
