"""Which nets `harm.py` trains: the ways of training, the recipes made from them, and the data.

A recipe fixes everything about one net before anything is trained: its seed, architecture, optimizer, precision and the
formats that it is saved in follow from its place in the list, never from a result.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

KERAS = ("keras3", "tf_keras")
ALL = (*KERAS, "tf1")


class Way(NamedTuple):
    """One way of training a net.

    Attributes:
        name: Name of the function that trains in this way, in `harm_keras_ways` and `harm_tf1`.
        group: The row of the table: `healthy`, `stored`, `never`, `cold`, `missing` or `averaged`.
        frameworks: Where it is possible.
        truth: Whether the statistics are right (`healthy`), wrong (`sick`) or neither for certain (`unknown`).
        trained_on: What the layers normalised with while the weights were trained: `batch`, `stored`, or `mixed`.
        steps: Steps of training, or None for those of the recipe's kind.
        momentum: Of the moving averages, or None likewise.
        architecture: The one that the way asks for, or None.
        batch_layers: Numbers of the layers that are normalised by batch moments where the others are not; None for all
            or none, as `trained_on` says.
        fit: Whether Keras' own `fit` trains, so that Keras scales the loss in float16.
    """

    name: str
    group: str
    frameworks: tuple[str, ...]
    truth: str
    trained_on: str
    steps: int | None = None
    momentum: float | None = None
    architecture: str | None = None
    batch_layers: str | None = None
    fit: bool = True


WAYS = (
    # Trained on batch moments, with updates.
    Way("plain", "healthy", ALL, "healthy", "batch"),
    Way("long_momentum", "healthy", ALL, "healthy", "batch", steps=900, momentum=0.99),
    Way("own_loop", "healthy", KERAS, "healthy", "batch", fit=False),
    Way("recompiled", "healthy", KERAS, "healthy", "batch"),
    Way("recompiled_and_trained", "healthy", KERAS, "healthy", "batch", momentum=0.98),
    Way("warm_started", "healthy", ALL, "healthy", "batch", momentum=0.98),
    Way("fine_tuned_frozen", "healthy", KERAS, "healthy", "mixed"),
    Way("fine_tuned_in_part", "healthy", KERAS, "healthy", "mixed"),
    Way("fine_tuned_in_inference_mode", "healthy", ALL, "healthy", "mixed", fit=False),
    Way("frozen_before_the_save", "healthy", KERAS, "healthy", "batch"),
    Way("loaded_and_saved", "healthy", ALL, "healthy", "batch"),
    Way("loaded_without_optimizer", "healthy", KERAS, "healthy", "batch"),
    Way("call_false_under_fit", "healthy", ("keras3",), "healthy", "batch"),
    Way("shared", "healthy", ALL, "healthy", "batch", momentum=0.98, architecture="shared"),
    Way("time_distributed", "healthy", ("keras3",), "healthy", "batch", 100, 0.98, "distributed"),
    Way("time_distributed", "healthy", ("tf_keras",), "healthy", "batch", 300, 0.95, "distributed"),
    Way("rematerialised", "healthy", ("keras3",), "healthy", "batch", 120, 0.98),
    Way("accumulated_gradients", "healthy", ("keras3",), "healthy", "batch", 240, 0.98),
    Way("statistics_measured_first", "healthy", KERAS, "healthy", "stored"),
    Way("first_layer_on_0_1", "healthy", ALL, "healthy", "mixed", batch_layers="all but the first"),
    Way("zero_debiased_by_hand", "healthy", ("tf1",), "healthy", "batch", 60, 0.99),
    Way("zero_debiased_slim", "healthy", ("tf1",), "healthy", "batch", 900, 0.99),
    Way("renorm", "healthy", ("tf1",), "healthy", "batch"),
    # Averaged weights.
    Way("ema_of_weights", "averaged", KERAS, "unknown", "batch"),
    Way("ema_shadows", "averaged", ("tf1",), "healthy", "batch"),
    Way("swa", "averaged", KERAS, "unknown", "batch"),
    Way("swa_measured_anew", "averaged", KERAS, "healthy", "batch"),
    # Trained in inference mode: 0 and 1 are right.
    Way("loop_without_training", "stored", KERAS, "healthy", "stored", fit=False),
    Way("loop_false", "stored", KERAS, "healthy", "stored", fit=False),
    Way("loop_false_recompiled", "stored", KERAS, "healthy", "stored", fit=False),
    Way("call_false", "stored", ("tf_keras",), "healthy", "stored"),
    Way("call_false", "stored", ("keras3",), "healthy", "stored", fit=False),
    Way("frozen_from_the_start", "stored", KERAS, "healthy", "stored"),
    Way("frozen_then_unfrozen", "stored", KERAS, "healthy", "stored"),
    Way("frozen_loaded_unfrozen_saved", "stored", KERAS, "healthy", "stored"),
    Way("wrapper_class", "stored", KERAS, "healthy", "stored"),
    Way("block_class", "stored", KERAS, "healthy", "stored"),
    Way("fit_override", "stored", KERAS, "healthy", "stored", fit=False),
    Way("train_step_override", "stored", KERAS, "healthy", "stored", fit=False),
    Way("flag_variable", "stored", ALL, "healthy", "stored"),
    Way("stateless_false", "stored", ("keras3",), "healthy", "stored", fit=False),
    # `fit` of tf_keras 2.21 sets the phase itself, and the statistics move.
    Way("learning_phase_0", "healthy", ("tf_keras",), "healthy", "batch"),
    Way("placeholder_false", "stored", ("tf1",), "healthy", "stored"),
    Way("default_false", "stored", ("tf1",), "healthy", "stored"),
    Way("layers_without_training", "stored", ("tf1",), "healthy", "stored"),
    Way("slim_false", "stored", ("tf1",), "healthy", "stored"),
    Way("constant_false", "stored", ("tf1",), "healthy", "stored"),
    Way("by_hand_stored", "stored", ("tf1",), "healthy", "stored"),
    # Trained on batch moments, and the statistics never updated or lost.
    Way("momentum_one", "never", KERAS, "sick", "batch"),
    Way("momentum_one_recompiled", "never", KERAS, "sick", "batch"),
    Way("momentum_one_loaded_and_saved", "never", KERAS, "sick", "batch"),
    Way("class_without_updates", "never", KERAS, "sick", "batch"),
    Way("statistics_put_back", "never", KERAS, "sick", "batch", fit=False),
    Way("stateless_dropped", "never", ("keras3",), "sick", "batch", fit=False),
    Way("train_step_without_updates", "never", KERAS, "sick", "batch", fit=False),
    Way("statistics_reset", "never", ALL, "sick", "batch"),
    Way("variances_reset", "never", KERAS, "sick", "batch"),
    Way("weights_copied", "never", KERAS, "sick", "batch"),
    Way("weights_copied_compiled", "never", KERAS, "sick", "batch"),
    Way("ema_of_trainable_copied", "never", KERAS, "sick", "batch"),
    Way("no_update_ops", "never", ("tf1",), "sick", "batch"),
    Way("placeholder_without_update_ops", "never", ("tf1",), "sick", "batch"),
    Way("slim_without_update_ops", "never", ("tf1",), "sick", "batch"),
    Way("decay_one", "never", ("tf1",), "sick", "batch"),
    Way("by_hand_without_updates", "never", ("tf1",), "sick", "batch"),
    Way("trainable_restored_then_saved", "never", ("tf1",), "sick", "batch"),
    # One layer on 0 and 1 for good reason, the others never updated.
    Way("half_stored_half_never", "never", KERAS, "sick", "mixed", batch_layers="all but the first"),
    # What is saved lacks the statistics.
    Way("saver_of_trainable", "missing", ("tf1",), "sick", "batch"),
    Way("saver_of_trainable_stored", "missing", ("tf1",), "healthy", "stored"),
    # Too few updates.
    Way("cold", "cold", ALL, "sick", "batch", steps=60, momentum=0.99),
    Way("cold_long", "cold", ALL, "sick", "batch", steps=320, momentum=0.999),
    Way("cold_a_little", "cold", ALL, "sick", "batch", steps=200, momentum=0.99),
    Way("cold_recompiled", "cold", KERAS, "sick", "batch", steps=100, momentum=0.99),
    Way("cold_variance_slim", "cold", ("tf1",), "sick", "batch", steps=60, momentum=0.99),
)

ARCHITECTURES = ("dense", "convolution", "depthwise", "transposed")
OPTIMIZERS = {
    "keras3": ("adam", "adamw", "momentum", "rmsprop", "adam", "lion", "adafactor", "adam_l2", "lamb", "sgd",
               "momentum_l2", "nadam"),
    "tf_keras": ("adam", "adamw", "momentum", "rmsprop", "adam", "lion", "adafactor", "adam_l2", "legacy_adam", "sgd",
                 "momentum_l2", "adagrad"),
    "tf1": ("adam", "momentum", "adam", "rmsprop", "adam_l2", "sgd", "momentum_l2", "adagrad", "adamw"),
}  # fmt: skip
FORMATS = {
    "keras3": (".keras", "checkpoint", ".h5", "saved_model", ".weights.h5", "export"),
    "tf_keras": (".keras", "checkpoint", ".h5", "saved_model", "weights.h5", "export", "tf_weights"),
    "tf1": ("bundle", "bundle_bare", "v1", "bundle", "saved_model"),
}
PRECISIONS = ("float32",) * 5 + ("mixed_bfloat16",) + ("float32",) * 3 + ("mixed_float16",)
VARIANTS = {"keras3": 3, "tf_keras": 2, "tf1": 5}
# Batch-norm layers of each architecture, in the order of the model.
LAYERS = {"dense": 3, "convolution": 3, "depthwise": 3, "transposed": 2, "shared": 2, "distributed": 2}
INPUTS = dict.fromkeys(("convolution", "depthwise", "transposed"), "image") | dict.fromkeys(
    ("shared", "distributed"), "sequence"
)
CLASSES = 8
SEED = 20260


def recipes() -> list[dict]:
    """Return all recipes, in the order in which they are trained: every way once, then every way again."""
    made = []
    for framework in ALL:
        possible = [way for way in WAYS if framework in way.frameworks]
        for variant in range(VARIANTS[framework]):
            for place, way in enumerate(possible):
                made.append((variant, _recipe(framework, way, variant, place, len(made))))
    return [recipe for _, recipe in sorted(made, key=lambda entry: entry[0])]


def _recipe(framework: str, way: Way, variant: int, place: int, count: int) -> dict:
    """Return one recipe; each choice has a stride of its own, so that all combinations come up."""
    name = f"{framework}-{way.name}-{variant}"
    number = place + 5 * variant
    optimizers, formats = OPTIMIZERS[framework], FORMATS[framework]
    precision = "float32" if framework == "tf1" else PRECISIONS[(place + 3 * variant) % len(PRECISIONS)]
    if precision == "mixed_float16" and not way.fit:
        # A loop of one's own would have to scale the loss itself.
        precision = "mixed_bfloat16"
    if way.name == "rematerialised":
        # Keras 3 cannot rematerialise a layer that casts its inputs: its call then has a keyword.
        precision = "float32"
    architecture = way.architecture or ARCHITECTURES[number % len(ARCHITECTURES)]
    steps = way.steps or (300, 500, 200)[(place + variant) % 3]
    first = (2 * variant + place) % len(formats)
    return {
        "net": name,
        "framework": framework,
        "way": way.name,
        "group": way.group,
        "truth": way.truth,
        "trained_on": way.trained_on,
        "batch_layers": way.batch_layers,
        "architecture": architecture,
        "input": INPUTS.get(architecture, "flat"),
        "has_bias": (variant + place) % 2 == 0,
        # slim has no gamma unless it is asked for; Keras users drop it before a ReLU.
        "scale": (place + 2 * variant) % 7 != 3,
        # Half of the variants take Adam, as most do; the others go round.
        "optimizer": "adam" if variant == 0 else optimizers[(number + variant) % len(optimizers)],
        "precision": precision,
        "momentum": way.momentum or (0.9, 0.95)[(place + variant) % 2],
        "steps": steps,
        "batch_size": (32, 64)[(place // 2 + variant) % 2],
        "seed": zlib.crc32(f"{SEED} {name}".encode()) % 2**31,
        "library": ("layers", "slim", "by_hand")[number % 3],
        "formats": sorted({formats[first], formats[(first + 1) % len(formats)]}),
    }


def selected(only: list[str]) -> list[dict]:
    """Return the recipes of the ways, frameworks, groups or nets that are named, or all."""
    keys = ("way", "framework", "group", "net")
    return [recipe for recipe in recipes() if not only or any(recipe[key] in only for key in keys)]


def make_data(folder: Path) -> None:
    """Write the data of the three kinds of input: `KIND-train.npz`, `KIND-calibration.npz`, `KIND-test.npz`.

    Eight classes in six hidden dimensions, mixed into features whose means and spreads are far from 0 and 1, so that
    statistics of 0 and 1 are wrong for every net that was trained on batch moments. `calibration` holds the first
    1,024 inputs of the training data and no labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    centre = random.normal(size=(CLASSES, 6)) * 2.0
    for kind, shape in (("flat", (20,)), ("image", (8, 8, 3)), ("sequence", (6, 10))):
        features = shape[-1]
        per_step = 1 if kind == "sequence" else int(np.prod(shape[:-1]))
        mix = random.normal(size=(6, per_step * features))
        scale, shift = np.exp(random.normal(size=features) * 0.8), random.normal(size=features) * 3
        for part, size in (("train", 2048), ("test", 3000)):
            labels = random.integers(0, CLASSES, size)
            hidden = centre[labels] + random.normal(size=(size, 6))
            if kind == "sequence":
                hidden = hidden[:, None, :] + random.normal(size=(size, shape[0], 6))
            inputs = np.tanh(hidden @ mix / 2).reshape(size, *shape)
            inputs = inputs * scale + 0.3 * scale * random.normal(size=inputs.shape) + shift
            inputs = inputs.astype(np.float32)
            np.savez(folder / f"{kind}-{part}.npz", x=inputs, y=labels.astype(np.int64))
            if part == "train":
                np.savez(folder / f"{kind}-calibration.npz", x=inputs[:1024])
