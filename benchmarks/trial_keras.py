"""Repairs Keras models of every shape, and holds each statistic against a float64 oracle independent of the engine.

Every model gets random weights, is saved with the statistics that a layer starts at (0 and 1), and repaired. The oracle
runs the same model in Keras, eagerly, in float64, with every batch-norm layer normalising by the moments of all the
data; layers at several places are iterated until they settle. What is written is read back by Keras. A model that is
not repaired must be left with a reason.

The bar is 1e-5. Deep networks of random weights amplify rounding: where the oracle itself, run in the model's own
float32, is further than half of that from float64, no program that computes in float32 can be nearer, and the bar is
twice that distance.

Run: ``python benchmarks/trial_keras.py [NAME ...] [--batches 1,7,64]`` (Python with ckpt-doctor and TensorFlow).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import ckpt_doctor
from ckpt_doctor.errors import CkptDoctorError

if __package__:
    from benchmarks.trial_models import CASES, Case
else:
    from trial_models import CASES, Case

BAR = 1e-5
# An answer of half-precision arithmetic depends on the order of its roundings, which two programs need not share.
HALF_BAR = 2e-2
MOST_SWEEPS = 200


def batch_norms(model):
    """Return the batch-norm layers of a model in the order in which Keras walks it, wrapped ones included."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def randomise(model, seed):
    """Give every weight of a model a random value of sensible size; statistics stay at 0 and 1."""
    random = np.random.default_rng(seed)
    statistics = {
        id(variable)
        for layer in batch_norms(model)
        for variable in (layer.moving_mean, layer.moving_variance)
        if variable is not None
    }
    for variable in model.weights:
        if id(variable) in statistics or not variable.trainable:
            continue
        shape = variable.shape
        if variable.name in ("gamma", "scale"):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = random.normal(0, 0.2, shape)
        else:
            value = random.normal(0, np.sqrt(1.5 / np.prod(shape[:-1])), shape)
        variable.assign(value.astype(variable.dtype))


def in_double_precision(model, case, data):
    """Return the same model computing in float64; a model of another policy than float32 is returned as it is."""
    if any(layer.dtype_policy.compute_dtype in ("float16", "bfloat16") for layer in model._flatten_layers()):
        return model
    twin = case.twin() if case.twin is not None else model
    config = keras.saving.serialize_keras_object(twin)
    config = json.loads(json.dumps(config).replace('"float32"', '"float64"'))
    double = keras.saving.deserialize_keras_object(config, safe_mode=False)
    if len(double.weights) < len(model.weights):
        double(data)
    double.set_weights([np.asarray(value) for value in model.get_weights()])
    return double


@contextlib.contextmanager
def normalising(function):
    """Let every batch-norm layer compute `function(layer, inputs, mask)` meanwhile."""
    kind = keras.layers.BatchNormalization
    original = kind.call
    kind.call = lambda self, inputs, training=None, mask=None: function(self, inputs, mask)
    try:
        yield
    finally:
        kind.call = original


def normalised(layer, x, mean, variance):
    """Return what Keras computes from statistics, in x's own precision, at least float32."""
    dtype = np.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype.as_numpy_dtype
    shape = [1] * len(x.shape)
    shape[layer.axis] = -1
    factor = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        factor = factor * np.asarray(layer.gamma).astype(np.float64)
    summand = -mean * factor
    if layer.beta is not None:
        summand = summand + np.asarray(layer.beta).astype(np.float64)
    y = np.asarray(x).astype(dtype) * factor.reshape(shape).astype(dtype) + summand.reshape(shape).astype(dtype)
    return tf.cast(tf.constant(y), layer.compute_dtype)


def rows(layer, x, mask):
    """Return what counts of a layer's input: float64 of shape (values, channels)."""
    values = np.moveaxis(np.asarray(x).astype(np.float64), layer.axis, -1)
    return values[np.asarray(mask)] if mask is not None else values.reshape(-1, values.shape[-1])


def oracle(model, data, kept):
    """Return mean and variance of every batch-norm layer, with all the data as one batch, in float64.

    Layers whose number is in `kept` normalise with 0 and 1, as they are stored.
    """
    layers = batch_norms(model)
    stored_ids = {id(layers[number]) for number in kept}
    seen: dict[int, list[np.ndarray]] = {}

    def as_stored(layer, x):
        factor = (1 if layer.gamma is None else layer.gamma) / (1 + layer.epsilon) ** 0.5
        shape = [1] * len(x.shape)
        shape[layer.axis] = -1
        beta = 0 if layer.beta is None else tf.reshape(layer.beta, shape)
        return x * tf.reshape(tf.cast(factor, x.dtype), shape) + tf.cast(beta, x.dtype)

    def own(layer, x, mask):
        if id(layer) in stored_ids:
            return as_stored(layer, x)
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
                return as_stored(layer, x)
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
        else tuple(np.asarray(value).astype(np.float64) for value in (layer.moving_mean, layer.moving_variance))
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


class Outcome(NamedTuple):
    """A line of the table."""

    verdict: str
    layers: int
    error: float
    seconds: float
    remarks: str


def try_model(name: str, case: Case, folder: Path, batches) -> Outcome:
    """Save, repair and judge one model, once for each batch size."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = case.build()
    data = case.data(np.random.default_rng(1))
    if not model.built or not model.weights:
        model(data)
    randomise(model, 2)
    source = folder / f"{name}{case.suffix}"
    model.save(source)
    arrays = folder / f"{name}.npz"
    named = data if isinstance(data, dict) else dict(zip(case.names(model), tf.nest.flatten(data), strict=True))
    np.savez(arrays, **named)
    truth = None
    bar = HALF_BAR if case.half else BAR
    largest, layers, remarks = 0.0, 0, ""
    started = time.monotonic()
    for number, batch_size in enumerate(batches):
        output = folder / f"{name}-{number}{case.suffix}"
        try:
            result = ckpt_doctor.fix(
                source,
                data=str(arrays),
                output=output,
                layers=["*"],
                batch_size=batch_size,
                seed=number,
                **case.options,
            )
        except CkptDoctorError as refusal:
            verdict = "refused" if not case.repaired and case.reason in str(refusal) else "WRONG"
            return Outcome(verdict, 0, 0.0, time.monotonic() - started, str(refusal))
        written = keras.models.load_model(output, compile=False, safe_mode=False)
        if not case.repaired:
            return Outcome("WRONG", len(result.layers), 0.0, time.monotonic() - started, "was to be refused")
        if truth is None:
            spent = time.monotonic()
            kept = [number for number, layer in enumerate(batch_norms(written)) if is_untouched(layer)]
            truth = oracle(in_double_precision(model, case, in_double(data)), in_double(data), kept)
            if case.twin is None:
                single = oracle(model, data, kept)
                bar = max(bar, 2 * worst(model, single, truth)[0])
            started += time.monotonic() - spent
        error, layers = worst(written, stored(written), truth)
        largest = max(largest, error)
        reasons = {left.reason for left in result.left}
        remarks = "; ".join(sorted(reasons))
        total = len(batch_norms(model))
        if layers != len(result.layers) or layers + len(result.left) != total or len(result.left) != case.left:
            counts = f"{layers} repaired and {len(result.left)} left of {total}"
            return Outcome("WRONG", layers, largest, time.monotonic() - started, f"{counts}: {remarks}")
        if case.left and case.reason not in remarks:
            return Outcome("WRONG", layers, largest, time.monotonic() - started, remarks)
    verdict = "repaired" if largest <= bar else "WRONG"
    if bar not in (BAR, HALF_BAR):
        remarks = f"float32 itself is off by {bar / 2:.1e}; {remarks}"
    return Outcome(verdict, layers, largest, time.monotonic() - started, remarks)


def main(argv=None) -> int:
    """Try the models and print a table; return 1 where one is neither repaired nor refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--batches", default="1,7,64")
    arguments = parser.parse_args(argv)
    batches = [int(size) for size in arguments.batches.split(",")]
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown:
        parser.error(f"there is no model {unknown[0]}; there are {', '.join(CASES)}")
    wrong = 0
    print(f"{'model':<28}{'verdict':<10}{'layers':>7}{'worst error':>13}{'seconds':>9}  remarks")
    for name in arguments.names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                verdict, layers, error, seconds, remarks = try_model(
                    name, CASES[name], Path(folder), CASES[name].batches or batches
                )
            # One model that fails in a way that nobody thought of must not hide the others.
            except Exception as error_:
                verdict, layers, error, seconds, remarks = "CRASH", 0, 0.0, 0.0, f"{type(error_).__name__}: {error_}"
                if os.environ.get("TRACE"):
                    raise
        wrong += verdict in ("WRONG", "CRASH")
        first = remarks.splitlines()[0] if remarks else ""
        print(f"{name:<28}{verdict:<10}{layers:>7}{error:>13.1e}{seconds:>9.1f}  {first}")
        sys.stdout.flush()
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
