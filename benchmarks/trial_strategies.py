"""Try `ckpt-doctor fix` on what Keras 3 and tf_keras save of models that a `MirroredStrategy` trained on two devices.

Every model is trained on two virtual CPUs, plain or with `synchronized=True`, with its updates or without (momentum 1
leaves the statistics at 0 and 1), and saved in every form: `tf.train.Checkpoint`, SavedModel, `export`, `.keras`,
`.h5`, `.weights.h5`, TensorFlow's weights. Each file is repaired, loaded back into a model on two devices or by
`tf.saved_model.load`, and held against a float64 oracle of its statistics; SavedModels must also give the right logits.

Run: `python benchmarks/trial_strategies.py` (Python with ckpt-doctor, TensorFlow, Keras and tf_keras).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import ckpt_doctor

DEVICES = ["/cpu:0", "/cpu:1"]
EPSILON = 1e-3
BAR = 1e-5
CLASSES, SAMPLES = 5, 160
BATCH_NORMS = ("bn1", "bn2", "bn3")


def make_data():
    """Return images whose channels differ in mean and spread, and labels."""
    random = np.random.default_rng(3)
    labels = random.integers(0, CLASSES, SAMPLES)
    centres = random.normal(0, 0.7, (CLASSES, 8, 8, 3))
    images = (centres[labels] + random.normal(0, 1, (SAMPLES, 8, 8, 3))) * [0.5, 1.2, 2.0] + [-1.0, 0.2, 1.5]
    return images.astype(np.float32), labels


class Trial:
    """A kind of model, and how it is made, saved and loaded with one of the two Keras.

    Attributes:
        keras: The Keras.
        tf: TensorFlow.
        synchronized: Whether the devices normalise together.
        updated: Whether the statistics are updated.
    """

    def __init__(self, keras, tf, *, synchronized: bool, updated: bool) -> None:
        self.keras, self.tf = keras, tf
        self.synchronized, self.updated = synchronized, updated
        self.strategy = tf.distribute.MirroredStrategy(DEVICES)

    def build(self):
        """Return a new model on both devices."""
        layers = self.keras.layers

        def norm(name):
            momentum = 0.9 if self.updated else 1.0
            return layers.BatchNormalization(
                momentum=momentum, epsilon=EPSILON, name=name, synchronized=self.synchronized
            )

        with self.strategy.scope():
            x = layers.Input((8, 8, 3), name="images")
            net = norm("bn1")(layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(x))
            net = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv2")(layers.ReLU()(net))
            net = layers.Flatten()(layers.ReLU()(norm("bn2")(net)))
            net = layers.ReLU()(norm("bn3")(layers.Dense(12, use_bias=False, name="fc1")(net)))
            model = self.keras.Model(x, layers.Dense(CLASSES, use_bias=False, name="out")(net))
            loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(self.keras.optimizers.Adam(0.01), loss)
        return model

    def train(self, images, labels):
        """Return a trained model."""
        self.keras.utils.set_random_seed(5)
        model = self.build()
        data = self.tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(SAMPLES, seed=1).repeat().batch(32)
        model.fit(data, epochs=1, steps_per_epoch=40, verbose=0)
        return model

    def save(self, model, folder: Path) -> dict[str, Path]:
        """Save a model in every form; return their paths."""
        checkpoint = self.tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        paths = {
            "Checkpoint": Path(checkpoint.save(str(folder / "checkpoint"))),
            "SavedModel": folder / "saved",
            "export": folder / "export",
            ".keras": folder / "model.keras",
            ".h5": folder / "model.h5",
            ".weights.h5": folder / "model.weights.h5",
        }
        self.tf.saved_model.save(model, str(paths["SavedModel"]))
        model.export(str(paths["export"]))
        model.save(paths[".keras"])
        model.save(paths[".h5"])
        model.save_weights(paths[".weights.h5"])
        if not self.keras.__version__.startswith("3"):
            paths["weights"] = folder / "weights"
            model.save_weights(paths["weights"], save_format="tf")
        return paths

    def load(self, form: str, path: Path, images):
        """Return the statistics of every layer in a file, and logits where a SavedModel gives them."""
        if form in ("SavedModel", "export"):
            loaded = self.tf.saved_model.load(str(path))
            signature = loaded.signatures["serving_default"]
            found = {variable.name.removesuffix(":0"): np.asarray(variable) for variable in signature.variables}
            ((name, _),) = signature.structured_input_signature[1].items()
            (logits,) = signature(**{name: self.tf.constant(images)}).values()
            pairs = {
                name: tuple(
                    next(value for key, value in found.items() if key.endswith(f"{name}/{role}"))
                    for role in ("moving_mean", "moving_variance")
                )
                for name in BATCH_NORMS
            }
            return pairs, np.asarray(logits)
        if form in (".keras", ".h5"):
            model = self.keras.models.load_model(path, compile=False)
        else:
            model = self.build()
            if form == "Checkpoint":
                self.tf.train.Checkpoint(model=model).restore(str(path)).expect_partial()
            else:
                model.load_weights(path)
        layers = {name: model.get_layer(name) for name in BATCH_NORMS}
        return {
            name: (_array(layer.moving_mean), _array(layer.moving_variance)) for name, layer in layers.items()
        }, None


def _array(variable):
    return np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable)


def oracle(tf, model, images):
    """Return mean and variance of every layer with all the data as one batch, and the logits, in float64."""
    values = {weight.path if hasattr(weight, "path") else weight.name[:-2]: _array(weight) for weight in model.weights}
    weights = {name: value.astype(np.float64) for name, value in values.items()}
    found = {}

    def normalised(x, name):
        wide = np.asarray(x).reshape(-1, x.shape[-1])
        mean, variance = found[name] = wide.mean(axis=0), wide.var(axis=0)
        return tf.nn.relu((x - mean) / np.sqrt(variance + EPSILON) * weights[f"{name}/gamma"] + weights[f"{name}/beta"])

    net = normalised(tf.nn.conv2d(images.astype(np.float64), weights["conv1/kernel"], 1, "SAME"), "bn1")
    net = normalised(tf.nn.conv2d(net, weights["conv2/kernel"], 2, "SAME"), "bn2")
    net = normalised(tf.matmul(tf.reshape(net, (len(images), -1)), weights["fc1/kernel"]), "bn3")
    return found, np.asarray(tf.matmul(net, weights["out/kernel"]))


def judge(trial: Trial, form: str, path: Path, paths, folder: Path, images, truth) -> tuple[str, float]:
    """Scan and repair one file; return what is wrong with that, and the worst error of a channel."""
    found, logits = truth
    rules = {
        finding.rule
        for result in ckpt_doctor.scan([path]).checkpoints
        for finding in result.findings
        if finding.severity != "note"
    }
    if rules != (set() if trial.updated else {"BN201"}):
        return f"scan found {sorted(rules)}", 0.0
    output = folder / f"repaired-{path.name}"
    described = form in ("SavedModel", "export", ".keras", ".h5")
    result = ckpt_doctor.fix(
        path, data=str(folder / "x.npy"), output=output, layers=["*"], model=None if described else str(paths[".keras"])
    )
    if not result.complete or len(result.layers) != len(BATCH_NORMS):
        return f"{len(result.layers)} layers; {result.left}", 0.0
    read, answered = trial.load(form, output, images)
    error = 0.0
    for name, (mean, variance) in found.items():
        spread = variance + EPSILON
        error = max(error, (np.abs(read[name][0] - mean) / np.sqrt(spread)).max())
        error = max(error, (np.abs(read[name][1] - variance) / spread).max())
    if answered is not None and np.abs(answered - logits).max() > 1e-3 * np.abs(logits).max():
        return "logits are off", error
    return ("" if error <= BAR else f"error {error:.2g}"), error


def try_kind(version: str, *, synchronized: bool, updated: bool) -> int:
    """Try one kind of model with one Keras; print a line for each form of file; return how many are wrong."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1" if version == "2" else "0"
    import tensorflow as tf

    if version == "2":
        import tf_keras as keras
    else:
        import keras
    tf.get_logger().setLevel("ERROR")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * len(DEVICES))
    images, labels = make_data()
    wrong = 0
    trial = Trial(keras, tf, synchronized=synchronized, updated=updated)
    kind = f"{'synchronized' if synchronized else 'plain'}, {'updated' if updated else 'at 0 and 1'}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", images)
        model = trial.train(images, labels)
        paths = trial.save(model, folder)
        truth = oracle(tf, model, images)
        for form, path in paths.items():
            started = time.monotonic()
            problem, error = judge(trial, form, path, paths, folder, images, truth)
            wrong += bool(problem)
            print(
                f"Keras {version}  {kind:26} {form:13} {time.monotonic() - started:5.1f} s  {error:7.1e}  "
                f"{'WRONG' if problem else 'ok'}  {problem}",
                flush=True,
            )
    return wrong


def main() -> int:
    """Try every kind with both Keras, each in a process of its own; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keras", choices=("2", "3"))
    parser.add_argument("--synchronized", action="store_true")
    parser.add_argument("--updated", action="store_true")
    chosen = parser.parse_args()
    if chosen.keras:
        return int(try_kind(chosen.keras, synchronized=chosen.synchronized, updated=chosen.updated) > 0)
    command = [sys.executable, __file__]
    kinds = itertools.product("32", ((), ("--synchronized",)), ((), ("--updated",)))
    runs = [subprocess.run([*command, "--keras", a, *b, *c], check=False).returncode for a, b, c in kinds]
    return max(runs)


if __name__ == "__main__":
    sys.exit(main())
