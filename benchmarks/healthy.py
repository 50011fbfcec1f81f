"""How far `fix --layers '*'` moves the test accuracy of healthy models.

A network's test accuracy is known to a quarter of a point here (400 images), so many networks are asked, each trained
from its own seed: in the mean, does a repair that nobody needed cost anything? Half are trained at a constant learning
rate to the last step, which leaves the moving averages behind the weights; half have their rate fall to zero after 60 %
of the steps, which lets them settle.

Run: ``python benchmarks/healthy.py [--networks 12]`` (Python with ckpt-doctor and TensorFlow).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

import ckpt_doctor

DATA = Path(__file__).parent.parent / "fixtures" / "data"
STEPS, BATCH_SIZE = 400, 256


def trained(seed: int, *, settled: bool) -> keras.Model:
    """Return a network of four batch-norm layers, trained on the digits."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    images = keras.Input((8, 8, 1), name="x")
    net = images
    for number, width in enumerate((8, 12, 16)):
        net = layers.Conv2D(width, 3, strides=1 + (number == 1), padding="same", use_bias=False)(net)
        net = layers.ReLU()(layers.BatchNormalization(momentum=0.97)(net))
    net = layers.Dense(24, use_bias=False)(layers.Flatten()(net))
    net = layers.ReLU()(layers.BatchNormalization(momentum=0.97)(net))
    model = keras.Model(images, layers.Dense(10)(net))
    rate: object = 0.01
    if settled:
        rate = keras.optimizers.schedules.PolynomialDecay(0.01, int(0.6 * STEPS), 0.0)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = np.load(DATA / "calibration.npz")
    model.fit(
        data["x"],
        data["y"],
        batch_size=BATCH_SIZE,
        epochs=round(STEPS / np.ceil(len(data["x"]) / BATCH_SIZE)),
        verbose=0,
    )
    return model


def main() -> None:
    """Train, repair, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=12)
    options = parser.parse_args()
    test = np.load(DATA / "test.npz")
    print(
        f"{'trained':<16}{'method':<12}{'accuracy before':>16}{'after':>8}{'mean move':>11}{'± error':>9}{'|move|':>9}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for settled in (False, True):
            moves: dict[str, list[tuple[float, float]]] = {"training": [], "layerwise": []}
            for seed in range(options.networks):
                model = trained(seed, settled=settled)
                model.save(folder / "before.keras")
                before = accuracy(model, test)
                for method, seen in moves.items():
                    output = folder / f"{method}.keras"
                    ckpt_doctor.fix(
                        folder / "before.keras",
                        data=DATA / "calibration.npz",
                        output=output,
                        layers=["*"],
                        method=method,
                    )
                    seen.append((before, accuracy(keras.models.load_model(output), test)))
                    output.unlink()
            for method, seen in moves.items():
                was, now = np.transpose(seen)
                move = now - was
                print(
                    f"{'to its end' if settled else 'constant rate':<16}{method:<12}"
                    f"{was.mean():>16.2f}{now.mean():>8.2f}{move.mean():>+11.3f}"
                    f"{move.std(ddof=1) / np.sqrt(len(move)):>9.3f}{np.abs(move).mean():>9.3f}",
                    flush=True,
                )


def accuracy(model: keras.Model, test: np.lib.npyio.NpzFile) -> float:
    """Return the share of test images that the model names rightly at inference, in percent."""
    return float(100 * np.mean(model.predict(test["x"], verbose=0).argmax(axis=-1) == test["y"]))


if __name__ == "__main__":
    main()
