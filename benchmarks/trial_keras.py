"""Repairs Keras models of every shape, and holds each statistic against a float64 oracle independent of the engine.

Every model gets random weights and an optimizer that has done a step, is saved with the statistics that a layer starts
at (0 and 1), and repaired. What is written is read back by Keras: the statistics must be those of the oracle
(`trial_oracle.py`), all other values, the optimizer's among them, what they were, and a step of training must leave the
statistics about where they are. A model that is not repaired must be left with a reason. What Keras itself cannot save
in a way, or not load again, is "unsaved".

The bar is 1e-5. Deep networks of random weights amplify rounding: where a repair misses the bar, and the oracle itself,
run in the model's own float32, is further than half of it from float64, no program that computes in float32 can be
nearer, and the bar is twice that distance.

Run: ``python benchmarks/trial_keras.py [NAME ...] [--batches 1,7,64] [--ways all]`` (Python with ckpt-doctor and
TensorFlow); with ``TRIAL_KERAS=tf_keras`` for models of Keras 2.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import tensorflow as tf

import ckpt_doctor
from ckpt_doctor.errors import CkptDoctorError

if __package__:
    from benchmarks.trial_models import CASES, Case, keras
    from benchmarks.trial_oracle import anew, batch_norms, in_double, is_untouched, oracle, stored, worst
    from benchmarks.trial_ways import WAYS
else:
    from trial_models import CASES, Case, keras
    from trial_oracle import anew, batch_norms, in_double, is_untouched, oracle, stored, worst
    from trial_ways import WAYS

BAR = 1e-5
# An answer of half-precision arithmetic depends on the order of its roundings, which two programs need not share.
HALF_BAR = 2e-2


class Outcome(NamedTuple):
    """A line of the table."""

    verdict: str
    layers: int
    error: float
    seconds: float
    remarks: str


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
        if variable.name.rpartition("/")[2].partition(":")[0] in ("gamma", "scale"):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = random.normal(0, 0.2, shape)
        else:
            value = random.normal(0, np.sqrt(1.5 / np.prod(shape[:-1])), shape)
        variable.assign(value.astype(tf.as_dtype(variable.dtype).as_numpy_dtype))


def compile_for(model, data):
    """Give a model an optimizer and a loss for each output, where it has none, and return its outputs."""
    outputs = model(data, training=False)
    if getattr(model, "optimizer", None) is None:
        model.compile(
            keras.optimizers.Adam(1e-5), tf.nest.map_structure(lambda _: keras.losses.MeanSquaredError(), outputs)
        )
    return outputs


def advance(model, data):
    """Bring the optimizer to where a step of training brings it, which takes many times as long: to slots of its own.

    Their values are such that the next step of Adam moves each weight by about its rate, as it does after real ones.
    Those of a bias are but rounding, as training leaves them in front of a layer that takes out the mean of its batch:
    they tell that the layer was not trained on what it stores.
    """
    compile_for(model, data)
    if not hasattr(model.optimizer, "build"):  # Of Keras 2 before 2.11.
        train(model, data)
        return
    model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(3)
    for layer in batch_norms(model):
        for role in ("moving_stddev", "renorm_mean", "renorm_stddev"):
            if hasattr(layer, role):
                getattr(layer, role).assign(random.uniform(0.5, 1.5, getattr(layer, role).shape))
    for variable in variables_of_optimizer(model):
        if len(variable.shape):
            value = random.uniform(0.5, 1.5, variable.shape) * (1e-9 if "bias" in variable.name else 1)
            variable.assign(value.astype(tf.as_dtype(variable.dtype).as_numpy_dtype))
    model.optimizer.iterations.assign(1)


def variables_of_optimizer(model):
    """Return them, which are a property or a method."""
    variables = getattr(getattr(model, "optimizer", None), "variables", ())
    return variables() if callable(variables) else variables


def train(model, data):
    """Take one step of training on all the data, with outputs of 0 as the aim."""
    outputs = compile_for(model, data)
    # To trace and compile the step would take several times as long as the step does.
    model.run_eagerly = True
    aims = tf.nest.map_structure(lambda output: np.zeros(output.shape, np.float32), outputs)
    count = size = len(tf.nest.flatten(data)[0])
    if inputs := getattr(model, "inputs", None):
        size = inputs[0].shape[0] or size
    fed = list(data) if isinstance(data, tuple) else data
    # `fit` would build a pipeline for the same few batches, which takes longer than they do.
    for start in range(0, count, size):
        model.train_on_batch(
            *tf.nest.map_structure(lambda values, start=start: values[start : start + size], (fed, aims))
        )


def others(model):
    """Return the values that no repair may change."""
    own = {
        id(getattr(layer, role))
        for layer in batch_norms(model)
        for role in ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
        if hasattr(layer, role)
    }
    kept = [variable for variable in model.weights if id(variable) not in own]
    return [np.asarray(variable) for variable in (*kept, *variables_of_optimizer(model))]


def moved_by_training(model, data):
    """Train on, and return how far that moves the statistics, in standard deviations and variances."""
    before = stored(model)
    train(model, data)
    moved = [0.0]
    for layer, old, new in zip(batch_norms(model), before, stored(model), strict=True):
        if old is not None and new is not None:
            spread = old[1] + layer.epsilon
            moved += [(np.abs(new[0] - old[0]) / np.sqrt(spread)).max(), (np.abs(new[1] - old[1]) / spread).max()]
    return np.max(moved)


def try_model(name: str, case: Case, folder: Path, batches, way_name: str = "", truths=None) -> Outcome:
    """Save, repair and judge one model, once for each batch size.

    `truths` keeps what the oracle says of the model, for the next way in which it is saved.
    """
    truths = {} if truths is None else truths
    way = WAYS[way_name or case.way]
    keras.backend.clear_session()
    data = case.data(np.random.default_rng(1))

    def build():
        keras.utils.set_random_seed(0)
        model = case.build()
        if not model.built or not model.weights:
            model(data)
        return model

    def trained():
        model = build()
        advance(model, data)
        return model

    model = build()
    randomise(model, 2)
    advance(model, data)
    try:
        source = way.save(model, folder / "model")
        # What Keras itself loses is not missed: it makes new optimizers for the models of SavedModels.
        unchanged = others(way.restore(trained, source))
    except (NotImplementedError, TypeError, ValueError) as error:
        return Outcome("unsaved", 0, 0.0, 0.0, str(error))
    arrays = folder / "data.npz"
    named = data if isinstance(data, dict) else dict(zip(case.names(model), tf.nest.flatten(data), strict=True))
    np.savez(arrays, **named)
    options = dict(case.options)
    if way.by_model:
        sys.modules["trial_model"] = SimpleNamespace(build=build)
        options["model"] = "trial_model:build"
    # The code is the user's own with `--model`, and a SavedModel's graph runs without it.
    repaired = case.repaired or (case.reason == "--allow-code" and (way.by_model or source.is_dir()))
    bar = HALF_BAR if case.half else BAR
    largest, layers, remarks = 0.0, 0, ""
    started = time.monotonic()
    spent = 0.0

    def outcome(verdict, remarks):
        return Outcome(verdict, layers, largest, time.monotonic() - started - spent, remarks)

    for number, batch_size in enumerate(batches):
        output = folder / str(number) / source.name
        output.parent.mkdir()
        try:
            result = ckpt_doctor.fix(
                source, data=str(arrays), output=output, layers=["*"], batch_size=batch_size, seed=number, **options
            )
        except CkptDoctorError as refusal:
            return outcome("refused" if not repaired and case.reason in str(refusal) else "WRONG", str(refusal))
        if not repaired:
            return outcome("WRONG", "was to be refused")
        resting = time.monotonic()
        written = way.restore(trained, output)
        kept = tuple(number for number, layer in enumerate(batch_norms(written)) if is_untouched(layer))
        if kept not in truths:
            if case.half:
                truths[kept] = oracle(anew(model, case.build, data), data, kept)
            else:
                exact = in_double(data)
                truths[kept] = oracle(anew(model, case.twin or case.build, exact, "float64"), exact, kept)
        truth = truths[kept]
        error, layers = worst(written, stored(written), truth)
        largest = max(largest, error)
        reasons = {left.reason for left in result.left}
        remarks = "; ".join(sorted(reasons))
        total = len(batch_norms(model))
        if layers != len(result.layers) or layers + len(result.left) != total or len(result.left) != case.left:
            return outcome("WRONG", f"{layers} repaired and {len(result.left)} left of {total}: {remarks}")
        if case.left and case.reason not in remarks:
            return outcome("WRONG", remarks)
        for before, after in zip(unchanged, others(written), strict=True):
            if not np.array_equal(before, after, equal_nan=True):
                return outcome("WRONG", "another value is not what it was")
        if number == 0:  # How training goes on does not depend on the batches of the repair.
            moved = moved_by_training(written, data)
            if not moved <= case.step:
                return outcome("WRONG", f"a step of training moves the statistics by {moved:.2g}")
        spent += time.monotonic() - resting
    if largest > bar and not case.half:
        single = oracle(anew(model, case.twin or case.build, data), data, kept)
        bar = max(bar, 2 * worst(model, single, truth)[0])
    if bar not in (BAR, HALF_BAR):
        remarks = f"float32 itself is off by {bar / 2:.1e}; {remarks}"
    return outcome("repaired" if largest <= bar else "WRONG", remarks)


def main(argv=None) -> int:
    """Try the models and print a table; return 1 where one is neither repaired nor refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--batches", default="1,7,64")
    parser.add_argument("--ways", help=f"of {', '.join(WAYS)}; or all; default: each model's own")
    arguments = parser.parse_args(argv)
    batches = [int(size) for size in arguments.batches.split(",")]
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown:
        parser.error(f"there is no model {unknown[0]}; there are {', '.join(CASES)}")
    ways = list(WAYS) if arguments.ways == "all" else (arguments.ways or "").split(",")
    if set(ways) - {*WAYS, ""}:
        parser.error(f"the ways are {', '.join(WAYS)}")
    wrong = 0
    print(f"{'model':<28}{'way':<22}{'verdict':<10}{'layers':>7}{'worst error':>13}{'seconds':>9}  remarks")
    for name, way in itertools.product(arguments.names or CASES, ways):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = try_model(name, CASES[name], Path(folder), CASES[name].batches or batches, way)
            # One model that fails in a way that nobody thought of must not hide the others.
            except Exception as error:
                if os.environ.get("TRACE"):
                    raise
                outcome = Outcome("CRASH", 0, 0.0, 0.0, f"{type(error).__name__}: {error}")
        verdict, layers, error, seconds, remarks = outcome
        wrong += verdict in ("WRONG", "CRASH")
        first = remarks.splitlines()[0] if remarks else ""
        way = way or CASES[name].way
        print(f"{name:<28}{way:<22}{verdict:<10}{layers:>7}{error:>13.1e}{seconds:>9.1f}  {first}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
