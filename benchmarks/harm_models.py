"""The Keras models of `harm.py`: architectures, classes of the users' own, optimizers, formats.

`HARM_KERAS=tf_keras` makes them of Keras 2; without it they are of Keras 3.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import tensorflow as tf

# Small nets take longer to optimise as a graph than to train without.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

keras: Any = importlib.import_module(os.environ.get("HARM_KERAS", "keras"))
KERAS_3 = keras.__version__.startswith("3")
FRAMEWORK = "keras3" if KERAS_3 else "tf_keras"
L = keras.layers
registered = keras.saving.register_keras_serializable("harm")


@registered
class Fixed(L.Wrapper):
    """A wrapper that runs its layer in inference mode."""

    def call(self, x):
        return self.layer(x, training=False)


@registered
class FixedBlock(L.Layer):
    """A layer of one's own that calls its batch norm in inference mode."""

    def __init__(self, momentum=0.99, scale=True, **options):
        super().__init__(**options)
        self.momentum, self.scale = momentum, scale
        self.norm = L.BatchNormalization(
            momentum=momentum, scale=scale, name=self.name.replace("block", "bn"), dtype=options.get("dtype")
        )

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x):
        return self.norm(x, training=False)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "scale": self.scale}


@registered
class Rematerialised(L.Layer):
    """Computes its batch norm twice in a step of training, once more for the gradient."""

    def __init__(self, momentum=0.99, scale=True, **options):
        super().__init__(**options)
        self.momentum, self.scale = momentum, scale
        self.norm = L.BatchNormalization(
            momentum=momentum, scale=scale, name=self.name.replace("remat", "bn"), dtype=options.get("dtype")
        )

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=None):
        return keras.remat(lambda value: self.norm(value, training=training))(x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "scale": self.scale}


@registered
class Switched(L.Layer):
    """Asks a variable, which nobody ever set, whether it is trained."""

    def __init__(self, momentum=0.99, scale=True, **options):
        super().__init__(**options)
        self.momentum, self.scale = momentum, scale
        self.norm = L.BatchNormalization(
            momentum=momentum, scale=scale, name=self.name.replace("switch", "bn"), dtype=options.get("dtype")
        )

    def build(self, shape):
        self.norm.build(shape)
        self.flag = self.add_weight(name="is_training", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, x):
        return tf.cond(
            tf.convert_to_tensor(self.flag) > 0.5,
            lambda: self.norm(x, training=True),
            lambda: self.norm(x, training=False),
        )

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "scale": self.scale}


@registered
class Forgetful(L.BatchNormalization):
    """Normalises with the moments of the batch, and forgets them."""

    def call(self, inputs, training=None, mask=None):
        if not training:
            # By name: what traces the call in Keras 2 does not know `super()`.
            return L.BatchNormalization.call(self, inputs, training=False)
        x = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
        gamma = None if self.gamma is None else tf.cast(tf.convert_to_tensor(self.gamma), tf.float32)
        beta = tf.cast(tf.convert_to_tensor(self.beta), tf.float32)
        return tf.cast(tf.nn.batch_normalization(x, mean, variance, beta, gamma, self.epsilon), inputs.dtype)


def _gradients(model, x, y, training):
    """Return the gradients of one batch, as in every hand-written loop."""
    with tf.GradientTape() as tape:
        logits = model(x) if training is None else model(x, training=training)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=tf.cast(logits, tf.float32))
        )
        if model.losses:
            loss += tf.add_n([tf.cast(term, tf.float32) for term in model.losses])
    return loss, tape.gradient(loss, model.trainable_variables)


def apply(model, gradients):
    """Let the optimizer of a model take a step."""
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def stateless_gradients(model, x, y, training):
    """Return the gradients of one batch by `stateless_call`, whose new statistics are thrown away."""
    trainable = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    others = [tf.convert_to_tensor(variable.value) for variable in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(trainable)
        logits, _ = model.stateless_call(trainable, others, x, training=training)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=tf.cast(logits, tf.float32))
        )
    return loss, tape.gradient(loss, trainable)


@registered
class InferenceStep(keras.Model):
    """Overrides `train_step` and forgets `training=True`."""

    def train_step(self, data):
        x, y = data
        loss, gradients = _gradients(self, x, y, None)
        apply(self, gradients)
        return {"loss": loss}


@registered
class DroppingStep(keras.Model):
    """Overrides `train_step` and loses what the layers measured."""

    def train_step(self, data):
        x, y = data
        if KERAS_3:
            loss, gradients = stateless_gradients(self, x, y, True)
            apply(self, gradients)
            return {"loss": loss}
        kept = [(norm, tf.identity(norm.moving_mean), tf.identity(norm.moving_variance)) for norm in norms(self)]
        loss, gradients = _gradients(self, x, y, True)
        apply(self, gradients)
        for norm, mean, variance in kept:
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
        return {"loss": loss}


@registered
class OwnFit(keras.Model):
    """Overrides `fit` with a loop that never says `training=True`."""

    def fit(self, dataset, steps_per_epoch, **_):
        loop(self, dataset, steps_per_epoch, training=None)


def loop(model, dataset, steps, training, stateless=False):
    """Train a model in a hand-written loop.

    Args:
        model: A compiled model.
        dataset: An endless `tf.data.Dataset` of inputs and labels.
        steps: Number of steps.
        training: What `training` is in the call; None where it is not given.
        stateless: Whether by `stateless_call`, which throws new statistics away.
    """
    if not getattr(model.optimizer, "built", True) or KERAS_3:
        model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        gradients = (stateless_gradients if stateless else _gradients)(model, x, y, training)[1]
        apply(model, gradients)

    for x, y in dataset.take(steps):
        step(x, y)


def norms(model) -> list:
    """Return the batch-norm layers of a model in the order of their numbers."""
    found = {id(layer): layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)}
    return sorted(found.values(), key=lambda layer: layer.name)


class Builder:
    """Builds the model of a recipe.

    Args:
        recipe: See `harm_recipes`.
    """

    # The class of the model and the kind of its layers, of the ways that do not use Keras' own.
    MODELS = {  # noqa: RUF012 - a table
        "fit_override": OwnFit,
        "train_step_override": InferenceStep,
        "train_step_without_updates": DroppingStep,
    }

    def __init__(self, recipe: dict) -> None:
        self.recipe = recipe
        self.way = recipe["way"]
        self.bias = recipe["has_bias"]
        regulariser = keras.regularizers.L2(1e-3) if recipe["optimizer"].endswith("_l2") else None
        self.kernel = {"use_bias": self.bias, "kernel_regularizer": regulariser}
        self.count = 0

    def __call__(self) -> Any:
        """Return the model, not compiled."""
        self.count = 0
        keras.utils.set_random_seed(self.recipe["seed"])
        keras.mixed_precision.set_global_policy(self.recipe["precision"])
        try:
            with_data = {"flat": (20,), "image": (8, 8, 3), "sequence": (6, 10)}[self.recipe["input"]]
            x = keras.Input(with_data, name="x")
            features = getattr(self, self.recipe["architecture"])(x)
            logits = L.Dense(8, name="logits", dtype="float32")(features)
            return self.MODELS.get(self.way, keras.Model)(x, logits)
        finally:
            keras.mixed_precision.set_global_policy("float32")

    def new_norm(self) -> Any:
        """Return the next batch-norm layer."""
        number = self.count
        self.count += 1
        momentum = 1.0 if self.way.startswith("momentum_one") else self.recipe["momentum"]
        if self.way == "half_stored_half_never" and number:
            momentum = 1.0
        options = {"momentum": momentum, "scale": self.recipe["scale"]}
        if self.way == "class_without_updates":
            return Forgetful(name=f"bn{number}", **options)
        if self.way == "block_class":
            return FixedBlock(name=f"block{number}", **options)
        if self.way == "rematerialised":
            return Rematerialised(name=f"remat{number}", **options)
        if self.way == "flag_variable":
            return Switched(name=f"switch{number}", **options)
        layer = L.BatchNormalization(name=f"bn{number}", **options)
        if self.way.startswith("frozen_") and self.way != "frozen_before_the_save":
            layer.trainable = False
        if self.way in ("first_layer_on_0_1", "half_stored_half_never") and number == 0:
            layer.trainable = False
        if self.way == "wrapper_class":
            return Fixed(layer, name=f"fixed{number}")
        return layer

    def norm(self, x) -> Any:
        """Normalise and rectify a tensor."""
        return L.ReLU()(self.linear_norm(x))

    def linear_norm(self, x) -> Any:
        """Normalise a tensor."""
        layer = self.new_norm()
        return layer(x, training=False) if self.way.startswith("call_false") else layer(x)

    def dense(self, x) -> Any:
        """Three dense layers."""
        for number in range(3):
            x = self.norm(L.Dense(24, name=f"linear{number}", **self.kernel)(x))
        return x

    def convolution(self, x) -> Any:
        """Three convolutions."""
        for number, (width, stride) in enumerate(((8, 1), (12, 2), (12, 1))):
            convolution = L.Conv2D(width, 3, strides=stride, padding="same", name=f"linear{number}", **self.kernel)
            x = self.norm(convolution(x))
        return L.Flatten()(x)

    def depthwise(self, x) -> Any:
        """A residual block of a depthwise and a pointwise convolution."""
        x = self.norm(L.Conv2D(12, 3, padding="same", name="linear0", **self.kernel)(x))
        regulariser = self.kernel["kernel_regularizer"]
        depthwise = L.DepthwiseConv2D(
            3, padding="same", name="linear1", use_bias=self.bias, depthwise_regularizer=regulariser
        )
        branch = self.norm(depthwise(x))
        branch = self.linear_norm(L.Conv2D(12, 1, name="linear2", **self.kernel)(branch))
        return L.Flatten()(L.AveragePooling2D(2)(L.ReLU()(L.Add()([x, branch]))))

    def transposed(self, x) -> Any:
        """A convolution down and a transposed one up."""
        x = self.norm(L.Conv2D(12, 3, strides=2, padding="same", name="linear0", **self.kernel)(x))
        up = L.Conv2DTranspose(8, 3, strides=2, padding="same", name="linear1", **self.kernel)
        return L.Flatten()(L.AveragePooling2D(2)(self.norm(up(x))))

    def shared(self, x) -> Any:
        """A dense layer and a batch norm that are called three times in a step."""
        dense, norm = L.Dense(16, name="linear0", **self.kernel), self.new_norm()
        # Flat slices, so that every format can keep them.
        flat = L.Flatten()(x)
        selected = [L.Reshape((10,))(L.Cropping1D((10 * k, 50 - 10 * k))(L.Reshape((60, 1))(flat))) for k in range(3)]
        joined = L.Concatenate()([L.ReLU()(norm(dense(one))) for one in selected])
        return self.norm(L.Dense(24, name="linear1", **self.kernel)(joined))

    def distributed(self, x) -> Any:
        """A batch norm under `TimeDistributed`."""
        x = L.TimeDistributed(L.Dense(12, name="linear0", **self.kernel))(x)
        x = L.Flatten()(L.ReLU()(L.TimeDistributed(self.new_norm())(x)))
        return self.norm(L.Dense(24, name="linear1", **self.kernel)(x))


def optimizer(recipe: dict, rate: float = 1.0) -> Any:
    """Return the optimizer of a recipe.

    Args:
        recipe: See `harm_recipes`.
        rate: Multiplies the learning rate.
    """
    of = keras.optimizers
    name = recipe["optimizer"]
    options = {}
    if recipe["way"] == "accumulated_gradients":
        options = {"gradient_accumulation_steps": 4}
    if recipe["way"] == "ema_of_weights":
        options = {"use_ema": True, "ema_momentum": 0.97}
    # Inputs are not standardised: without a bound on the gradient plain descent diverges on stored statistics.
    clipped = {"global_clipnorm": 1.0}
    made: dict[str, Callable[[], Any]] = {
        "adam": lambda: of.Adam(3e-3 * rate, **options),
        "adam_l2": lambda: of.Adam(3e-3 * rate, **options),
        "adamw": lambda: of.AdamW(3e-3 * rate, weight_decay=0.02, **options),
        "rmsprop": lambda: of.RMSprop(2e-3 * rate, **options),
        "sgd": lambda: of.SGD(0.1 * rate, **clipped, **options),
        "momentum": lambda: of.SGD(0.03 * rate, momentum=0.9, **clipped, **options),
        "momentum_l2": lambda: of.SGD(0.03 * rate, momentum=0.9, nesterov=True, **clipped, **options),
        "lion": lambda: of.Lion(1e-3 * rate, **options),
        "adafactor": lambda: of.Adafactor(2e-2 * rate, **options),
        "lamb": lambda: of.Lamb(1e-2 * rate, **options),
        "nadam": lambda: of.Nadam(3e-3 * rate, **options),
        "adagrad": lambda: of.Adagrad(5e-2 * rate, **options),
    }
    if name == "legacy_adam":
        return of.legacy.Adam(3e-3 * rate) if not options else of.Adam(3e-3 * rate, **options)
    return made[name]()


def compile_model(model: Any, recipe: dict, rate: float = 1.0) -> None:
    """Compile a model with a new optimizer."""
    options = {"jit_compile": False} if KERAS_3 else {}
    model.compile(
        optimizer(recipe, rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options
    )  # fmt: skip


def save(model: Any, format_name: str, folder: Path) -> Path:
    """Save a model; return the path that a user would give to `ckpt-doctor`."""
    if format_name in (".keras", ".h5"):
        model.save(path := folder / f"model{format_name}")
    elif format_name == ".weights.h5":
        model.save_weights(path := folder / "model.weights.h5")
    elif format_name == "weights.h5":
        # Not `.weights.h5`: the format of Keras 1 and 2.
        model.save_weights(path := folder / "model_weights.h5")
    elif format_name == "tf_weights":
        path = folder / "tf_weights" / "model"
        model.save_weights(path, save_format="tf")
    elif format_name == "checkpoint":
        (folder / "checkpoint").mkdir()
        path = Path(_tracked(model).write(str(folder / "checkpoint" / "model")))
    elif format_name == "saved_model":
        path = folder / "saved_model"
        if KERAS_3:
            tf.saved_model.save(model, str(path))
        else:
            model.save(path, save_format="tf")
    else:
        assert format_name == "export"
        model.export(str(path := folder / "export"))
    return path


def _tracked(model: Any) -> Any:
    if getattr(model, "optimizer", None) is None:
        return tf.train.Checkpoint(model=model)
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def restore(format_name: str, path: Path, build: Callable[[], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Load a file as its users do, and return what it answers at inference.

    Args:
        format_name: One of `harm_recipes.FORMATS`.
        path: What `save` returned, or what a repair wrote.
        build: Builds the model again, for files of weights.
    """
    if format_name in ("saved_model", "export"):
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]

        def answer(x):
            return next(iter(serve(**{name: tf.constant(x) for name in serve.structured_input_signature[1]}).values()))

        # The signature lives as long as what was loaded.
        answer.loaded = loaded
    else:
        if format_name in (".keras", ".h5"):
            # HDF5 files know classes by their bare names.
            own = {kind.__name__: kind for kind in Builder.MODELS.values()}
            model = keras.models.load_model(path, compile=False, safe_mode=False, custom_objects=own)
        else:
            model = build()
            if format_name == "checkpoint":
                tf.train.Checkpoint(model=model).read(str(path)).expect_partial()
            else:
                status = model.load_weights(path)
                if status is not None:
                    status.expect_partial()

        def answer(x):
            return model(tf.constant(x), training=False)

    return lambda x: np.asarray(tf.cast(answer(x), tf.float32))
