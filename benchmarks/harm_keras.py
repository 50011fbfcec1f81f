"""Trains the Keras nets of `harm.py`, each in its way, and saves them.

A function of `WAYS` gets a `Net` and returns the model as its user would save it.

Run by `harm.py` only: ``HARM_KERAS=keras python harm_keras.py FOLDER < RECIPES``, one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from benchmarks.harm_models import FRAMEWORK, KERAS_3, Builder, compile_model, keras, loop, norms, save, tf
    from benchmarks.harm_recipes import WAYS as TABLE
else:
    from harm_models import FRAMEWORK, KERAS_3, Builder, compile_model, keras, loop, norms, save, tf
    from harm_recipes import WAYS as TABLE

# A low rate, as for fine-tuning.
LOW = 0.1


class Net:
    """One recipe being trained.

    Args:
        recipe: See `harm_recipes`.
        data: Folder of the data.
        folder: Where files of this net go.
    """

    def __init__(self, recipe: dict, data: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.build = Builder(recipe)
        self.steps = recipe["steps"]
        train, test = (np.load(data / f"{recipe['input']}-{part}.npz") for part in ("train", "test"))
        self.x, self.y = train["x"], train["y"]
        self.test_x, self.test_y = test["x"], test["y"]

    @cached_property
    def dataset(self) -> Any:
        """An endless stream of batches."""
        examples = tf.data.Dataset.from_tensor_slices((self.x, self.y)).cache()
        shuffled = examples.shuffle(len(self.x), seed=self.recipe["seed"]).repeat()
        return shuffled.batch(self.recipe["batch_size"], drop_remainder=True).prefetch(4)

    def compiled(self, model: Any = None, rate: float = 1.0) -> Any:
        """Return a model with a new optimizer, by default a new one."""
        model = self.build() if model is None else model
        compile_model(model, self.recipe, rate)
        return model

    def fit(self, model: Any, steps: int | None = None) -> Any:
        """Train a compiled model by `fit`, and return it."""
        model.fit(self.dataset, steps_per_epoch=steps or self.steps, epochs=1, verbose=0)
        return model

    def loop(self, model: Any, training: bool | None, steps: int | None = None, **options: Any) -> Any:
        """Train a compiled model in a loop of one's own, and return it."""
        loop(model, self.dataset, steps or self.steps, training, **options)
        return model

    def trained(self) -> Any:
        """Return a new model, trained by `fit`."""
        return self.fit(self.compiled())

    def loaded(self, model: Any, **options: Any) -> Any:
        """Save a model, and return what Keras loads."""
        path = self.folder / "before.keras"
        model.save(path)
        loaded = keras.models.load_model(path, safe_mode=False, **options)
        path.unlink()
        return loaded

    def accuracy(self, model: Any, training: bool) -> float:
        """Return the share of test inputs whose class a model names, in either mode; the model stays what it is."""
        kept = model.get_weights()
        size = 500
        answers = [
            np.asarray(tf.cast(model(self.test_x[start : start + size], training=training), tf.float32))
            for start in range(0, len(self.test_x), size)
        ]
        model.set_weights(kept)
        return float(np.mean(np.concatenate(answers).argmax(-1) == self.test_y))


WAYS: dict[str, Callable[[Net], Any]] = {}


def way(function: Callable[[Net], Any]) -> Callable[[Net], Any]:
    """Add a way under the name of its function."""
    WAYS[function.__name__] = function
    return function


def reset(model: Any, *, means: bool = True) -> Any:
    """Set statistics to what they start at, and return the model."""
    for norm in norms(model):
        if means:
            norm.moving_mean.assign(np.zeros(norm.moving_mean.shape))
        norm.moving_variance.assign(np.ones(norm.moving_variance.shape))
    return model


def frozen(model: Any, first_only: bool = False) -> Any:
    """Freeze the batch norms of a model, or only the first, and return it."""
    for norm in norms(model)[: 1 if first_only else None]:
        norm.trainable = False
    return model


def unfrozen(model: Any) -> Any:
    """Thaw the batch norms of a model, and return it."""
    for norm in norms(model):
        norm.trainable = True
    return model


def copied(net: Net, model: Any) -> Any:
    """Return a new model that got the trainable weights of another, and no statistics."""
    new = net.build()
    for variable, value in zip(new.trainable_variables, model.trainable_variables, strict=True):
        variable.assign(value)
    return new


def _plain(net: Net) -> Any:
    return net.trained()


# The recipe or the builder makes these what they are; `fit` trains them.
WAYS |= dict.fromkeys(
    "plain long_momentum shared time_distributed rematerialised accumulated_gradients call_false_under_fit "
    "first_layer_on_0_1 ema_of_weights frozen_from_the_start wrapper_class block_class fit_override "
    "train_step_override flag_variable momentum_one class_without_updates train_step_without_updates "
    "half_stored_half_never cold cold_long cold_a_little".split(),
    _plain,
)


@way
def own_loop(net):
    return net.loop(net.compiled(), True)


@way
def recompiled(net):
    return net.compiled(net.trained())


@way
def recompiled_and_trained(net):
    return net.fit(net.compiled(net.trained(), LOW), 40)


@way
def warm_started(net):
    new = net.build()
    new.set_weights(net.trained().get_weights())
    return net.fit(net.compiled(new, LOW), 60)


@way
def fine_tuned_frozen(net):
    return net.fit(net.compiled(frozen(net.trained()), LOW), 60)


@way
def fine_tuned_in_part(net):
    return net.fit(net.compiled(frozen(net.trained(), first_only=True), LOW), 60)


@way
def fine_tuned_in_inference_mode(net):
    return net.loop(net.compiled(net.trained(), LOW), False, 60)


@way
def frozen_before_the_save(net):
    return frozen(net.trained())


@way
def loaded_and_saved(net):
    return net.loaded(net.trained())


@way
def loaded_without_optimizer(net):
    return net.loaded(net.trained(), compile=False)


@way
def statistics_measured_first(net):
    """Statistics that were measured on the data before the first step, and held."""
    model = net.build()
    for norm in norms(model):
        norm.momentum = 0.0
    model(net.x, training=True)
    for norm in norms(model):
        norm.momentum = net.recipe["momentum"]
    return net.fit(net.compiled(frozen(model)))


def _snapshots(net: Net, model: Any) -> Any:
    """Set a model to the mean of five snapshots of its last steps, statistics included."""
    taken = []
    for _ in range(5):
        net.fit(model, 30)
        taken.append(model.get_weights())
    model.set_weights([np.mean(values, axis=0) for values in zip(*taken, strict=True)])
    return model


@way
def swa(net):
    return _snapshots(net, net.trained())


@way
def swa_measured_anew(net):
    model = _snapshots(net, net.trained())
    # As `update_bn` of PyTorch: a pass over the data in training mode.
    for _ in range(3):
        for start in range(0, len(net.x), 64):
            model(net.x[start : start + 64], training=True)
    return model


@way
def loop_without_training(net):
    return net.loop(net.compiled(), None)


@way
def loop_false(net):
    return net.loop(net.compiled(), False)


@way
def loop_false_recompiled(net):
    return net.compiled(net.loop(net.compiled(), False))


@way
def call_false(net):
    # Keras 3's `fit` overrides `training=False` of a call, and a loop of one's own does not.
    return net.loop(net.compiled(), None) if KERAS_3 else net.trained()


@way
def frozen_then_unfrozen(net):
    return unfrozen(net.trained())


@way
def frozen_loaded_unfrozen_saved(net):
    return unfrozen(net.loaded(net.trained()))


@way
def stateless_false(net):
    return net.loop(net.compiled(), False, stateless=True)


@way
def learning_phase_0(net):
    keras.backend.set_learning_phase(0)
    try:
        return net.trained()
    finally:
        keras.backend.clear_session()


@way
def momentum_one_recompiled(net):
    return net.compiled(net.trained())


@way
def momentum_one_loaded_and_saved(net):
    return net.loaded(net.trained())


@way
def statistics_put_back(net):
    """An own loop that sets everything that is not trained to what it was, as a restored state does."""
    model = net.compiled()
    for _ in range(4):
        kept = [np.asarray(variable) for variable in model.non_trainable_variables]
        net.loop(model, True, net.steps // 4)
        for variable, value in zip(model.non_trainable_variables, kept, strict=True):
            variable.assign(value)
    return model


@way
def stateless_dropped(net):
    return net.loop(net.compiled(), True, stateless=True)


@way
def statistics_reset(net):
    return reset(net.trained())


@way
def variances_reset(net):
    return reset(net.trained(), means=False)


@way
def weights_copied(net):
    return copied(net, net.trained())


@way
def weights_copied_compiled(net):
    return net.compiled(copied(net, net.trained()))


@way
def ema_of_trainable_copied(net):
    """The mean of the trainable weights of the last steps in a new model."""
    model = net.trained()
    averages = [np.asarray(variable) for variable in model.trainable_variables]
    for _ in range(20):
        net.fit(model, 5)
        averages = [
            0.8 * average + 0.2 * np.asarray(variable)
            for average, variable in zip(averages, model.trainable_variables, strict=True)
        ]
    new = net.build()
    for variable, value in zip(new.trainable_variables, averages, strict=True):
        variable.assign(value)
    return net.compiled(new)


@way
def cold_recompiled(net):
    return net.compiled(net.trained())


def layers_of(recipe: dict, model: Any) -> list[dict]:
    """Return what is true of each layer of a trained model."""
    described = []
    for number, norm in enumerate(norms(model)):
        stored = recipe["batch_layers"] is not None and number == 0
        trained_on = recipe["trained_on"]
        truth = recipe["truth"]
        if recipe["batch_layers"] is not None:
            trained_on = "stored" if stored else "batch"
        elif trained_on == "mixed" and recipe["way"] == "fine_tuned_in_part" and number:
            trained_on = "batch"
        if stored:
            truth = "healthy"
        described.append(
            {
                "name": f"bn{number}",
                "kernel_bias": recipe["has_bias"],
                "trained_on": trained_on,
                "truth": truth,
                "gamma": None if norm.gamma is None else np.asarray(norm.gamma, float).tolist(),
                "beta": np.asarray(norm.beta, float).tolist(),
                "moving_mean": np.asarray(norm.moving_mean, float).tolist(),
                "moving_variance": np.asarray(norm.moving_variance, float).tolist(),
            }
        )
    return described


def initial_share(recipe: dict) -> float:
    """Return what is left of the initial values of the averages, by arithmetic."""
    if recipe["group"] != "cold":
        return 0.0
    return recipe["momentum"] ** recipe["steps"]


def train(recipe: dict, data: Path, folder: Path) -> list[dict]:
    """Train and save one net; return a label for each file."""
    started = time.monotonic()
    keras.backend.clear_session()
    net = Net(recipe, data, folder)
    model = WAYS[recipe["way"]](net)
    accuracy, training_accuracy = net.accuracy(model, False), net.accuracy(model, True)
    finite = all(np.all(np.isfinite(value)) for value in model.get_weights())
    layers = layers_of(recipe, model)
    (folder / "model.json").write_text(model.to_json(), "utf-8")
    slots = getattr(model, "optimizer", None) is not None and recipe["way"] not in _FRESH
    labels = []
    for format_name in recipe["formats"]:
        label = {key: value for key, value in recipe.items() if key not in ("formats", "library", "batch_layers")}
        label |= {
            "format": format_name,
            "truth": recipe["truth"] if finite else "unknown",
            "finite": finite,
            "has_slots": slots and format_name in (".keras", ".h5", "checkpoint"),
            "initial_share": initial_share(recipe),
            "statistics": "stored",
            "layers": layers,
            "accuracy": accuracy,
            "training_accuracy": training_accuracy,
            "metric": "share of right classes",
            "data": f"data/{recipe['input']}-calibration.npz",
            "test": f"data/{recipe['input']}-test.npz",
            "model": f"{folder.name}/model.json" if format_name in _WEIGHTS else None,
            "seconds": round(time.monotonic() - started, 2),
        }
        try:
            label["file"] = f"{folder.name}/{save(model, format_name, folder).relative_to(folder)}"
            label["unsaved"] = None
        # What Keras itself cannot save is no file to judge; the table counts them.
        except Exception as error:
            label["file"], label["unsaved"] = None, f"{type(error).__name__}: {error}"[:300]
        labels.append(label)
    return labels


# What holds weights without a model.
_WEIGHTS = (".weights.h5", "weights.h5", "checkpoint", "tf_weights")
# The optimizer in these has made no step on these weights.
_FRESH = (
    "recompiled", "loop_false_recompiled", "momentum_one_recompiled", "weights_copied_compiled", "cold_recompiled",
    "ema_of_trainable_copied",
)  # fmt: skip


def main() -> None:
    """Train the recipes that stand on stdin; print a line for each."""
    root = Path(sys.argv[1])
    missing = {entry.name for entry in TABLE if FRAMEWORK in entry.frameworks} - set(WAYS)
    assert not missing, missing
    for line in sys.stdin:
        recipe = json.loads(line)
        folder = root / "nets" / recipe["net"]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            labels = train(recipe, root / "data", folder)
        # One net that fails must not keep the others from being trained; the main process counts it.
        except Exception:
            (folder / "failed.txt").write_text(traceback.format_exc(), "utf-8")
            print(recipe["net"], "FAILED", traceback.format_exc().splitlines()[-1][:200], flush=True)
            continue
        for label in labels:
            if label["file"] is not None:
                label["file"] = f"nets/{label['file']}"
            if label["model"] is not None:
                label["model"] = f"nets/{label['model']}"
        part = folder / "labels.json.part"
        part.write_text(json.dumps(labels), "utf-8")
        part.rename(folder / "labels.json")
        first = labels[0]
        print(
            f"{recipe['net']:48} {first['accuracy']:.3f} {first['training_accuracy']:.3f} "
            + f"{labels[-1]['seconds']:.1f} s "
            + " ".join(label["unsaved"] or "" for label in labels),
            flush=True,
        )


if __name__ == "__main__":
    main()
