"""The models of `trial_keras.py`: of keras.applications, and made to be awkward.

They are those of Keras 3, or with `TRIAL_KERAS=tf_keras` the same of Keras 2.
"""

# ruff: noqa: D101, D102, D103 - the models say themselves what they are

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

keras = importlib.import_module(os.environ.get("TRIAL_KERAS", "keras"))
L = keras.layers
# Keras 2 has no operations of its own.
ops = getattr(keras, "ops", None) or SimpleNamespace(
    concatenate=tf.concat,
    cond=tf.cond,
    mean=tf.reduce_mean,
    relu=tf.nn.relu,
    sqrt=tf.sqrt,
    tanh=tf.tanh,
    while_loop=tf.while_loop,
)


@dataclass(frozen=True)
class Case:
    """One model, its data, and what is to come of it.

    Attributes:
        build: Gives the model.
        data: Gives its inputs: an array, or a tuple or dict of arrays.
        repaired: Whether it is repaired; else it is refused.
        left: How many of its layers are left.
        reason: Words of the refusal, or of the reason why layers are left.
        options: Further arguments of `fix`.
        half: Whether it computes in half precision.
        way: How it is saved, of `trial_ways.py`.
        batches: Batch sizes instead of the usual ones.
        twin: Gives a model of the same weights for the oracle, where it cannot run the first.
        keys: What the arrays are called; the model's own names where it is empty.
        step: How far a step of training may move the statistics: by a hundredth of their distance from the batch's own,
            which dropout makes large.
    """

    build: Callable[[], Any]
    data: Callable[[np.random.Generator], Any]
    repaired: bool = True
    left: int = 0
    reason: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    half: bool = False
    way: str = ".keras"
    batches: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    step: float = 0.05
    twin: Callable[[], Any] | None = None

    def names(self, model: Any) -> list[str]:
        """Return what the arrays are called."""
        return list(self.keys or [tensor.name for tensor in model.inputs])


def images(size: int, count: int = 24, channels: int = 3):
    """Return a function that gives smooth random images of different brightness."""

    def data(random):
        coarse = random.normal(0, 1, (count, 4, 4, channels))
        big = np.kron(coarse, np.ones((1, -(-size // 4), -(-size // 4), 1)))[:, :size, :size]
        return (big + random.normal(0, 0.5, big.shape) + random.normal(0, 0.5, (count, 1, 1, 1))).astype(np.float32)

    return data


def numbers(*shape: int, count: int = 100):
    """Return a function that gives skewed random vectors."""
    return lambda random: (random.gamma(2.0, 1.0, (count, *shape)) - 1.5).astype(np.float32)


def application(name: str, size: int, count: int = 24, **options: Any) -> Case:
    """Return a model of keras.applications with few classes and no pretrained weights."""

    def build():
        kind = getattr(keras.applications, name)
        return kind(weights=None, input_shape=(size, size, 3), classes=5, **options)

    return Case(build, images(size, count), batches=(count, 7), step=0.5)


def functional(function: Callable[..., Any], *shapes: tuple[int | None, ...], **options: Any):
    """Return a function that builds a model of a function on its inputs."""

    def build():
        inputs = [keras.Input(shape, name=f"in{number}", **options) for number, shape in enumerate(shapes)]
        return keras.Model(inputs[0] if len(inputs) == 1 else inputs, function(*inputs))

    return build


def cnn(x, channels=6, dimensions=2, **options):
    """Return two convolutions with batch norm and a classifier on x."""
    convolution = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}[dimensions]
    pooling = {1: L.GlobalAveragePooling1D, 2: L.GlobalAveragePooling2D, 3: L.GlobalAveragePooling3D}[dimensions]
    for _ in range(2):
        x = L.ReLU()(L.BatchNormalization(**options)(convolution(channels, 3, padding="same")(x)))
    return L.Dense(3)(pooling()(x))


def shared_parallel(a, b):
    norm, dense = L.BatchNormalization(), L.Dense(6)
    a, b = norm(dense(a)), norm(L.Dense(6)(b))
    return L.Dense(2)(L.BatchNormalization()(L.Add()([L.ReLU()(a), b])))


def shared_in_sequence(x):
    norm = L.BatchNormalization()
    x = L.Dense(8)(x)
    for _ in range(3):
        x = L.Dense(8, activation="tanh")(norm(x))
    return L.Dense(2)(L.BatchNormalization()(x))


def shared_model(a, b):
    inner = keras.Sequential(
        [keras.Input((8,)), L.Dense(6), L.BatchNormalization(), L.ReLU(), L.Dense(4)], name="inner"
    )
    return L.Dense(2)(L.BatchNormalization()(L.Concatenate()([inner(a), inner(b)])))


def nested(depth: int):
    def build():
        inside = keras.Sequential([keras.Input((8,)), L.Dense(8), L.BatchNormalization(name="bn"), L.ReLU()], name="m0")
        for level in range(1, depth + 1):
            x = keras.Input((8,))
            y = L.BatchNormalization(name="bn")(L.Dense(8)(inside(x)))
            inside = keras.Model(x, y, name=f"m{level}")
        return inside

    return build


def sequential():
    return keras.Sequential([keras.Input((8,)), L.Dense(9), L.BatchNormalization(), L.ReLU(), L.Dense(3)])


def sequential_without_input():
    model = keras.Sequential([L.Dense(9), L.BatchNormalization(), L.ReLU(), L.Dense(3)])
    model.build((None, 8))
    return model


def distributed(x):
    x = L.TimeDistributed(L.Dense(5))(x)
    x = L.TimeDistributed(L.BatchNormalization())(x)
    return L.Dense(2)(L.BatchNormalization()(L.Flatten()(x)))


@keras.saving.register_keras_serializable("trial")
class CellWithNorm(L.Layer):
    def __init__(self, units=4, **options):
        super().__init__(**options)
        self.units, self.state_size = units, units
        self.dense, self.norm = (
            L.Dense(units, dtype=self.dtype_policy),
            L.BatchNormalization(dtype=self.dtype_policy),
        )

    def build(self, shape):
        self.dense.build((shape[0], shape[1] + self.units))
        self.norm.build((shape[0], self.units))
        self.built = True

    def call(self, inputs, states, training=None):
        out = ops.tanh(self.norm(self.dense(ops.concatenate([inputs, states[0]], axis=-1)), training=training))
        return out, [out]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("trial")
class LoopWithNorm(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = L.BatchNormalization(dtype=self.dtype_policy)

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=None):
        def body(step, value):
            return step + 1, self.norm(value, training=training) * 0.9

        return ops.while_loop(lambda step, value: step < 3, body, (0, x))[1]


@keras.saving.register_keras_serializable("trial")
class Block(L.Layer):
    """A custom layer with batch norm inside, as Keras' own examples write them."""

    def __init__(self, units=6, **options):
        super().__init__(**options)
        self.units = units
        self.dense = L.Dense(units, dtype=self.dtype_policy)
        self.bn = L.BatchNormalization(dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((*shape[:-1], self.units))
        self.built = True

    def call(self, x, training=None):
        return ops.relu(self.bn(self.dense(x), training=training))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("trial")
class ScaledNorm(L.BatchNormalization):
    """A subclass that does more than its base."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable("trial")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.last = (L.Dense(units, dtype=self.dtype_policy) for units in (6, 2))
        self.bn = L.BatchNormalization(dtype=self.dtype_policy)

    def call(self, x, training=None):
        return self.last(self.bn(self.first(x), training=training))


@keras.saving.register_keras_serializable("trial")
class SubclassedTwoInputs(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.last = (L.Dense(units, dtype=self.dtype_policy) for units in (6, 2))
        self.bn = L.BatchNormalization(dtype=self.dtype_policy)

    def call(self, given, training=None):
        return self.last(self.bn(self.first(given["a"]) + given["b"], training=training))


@keras.saving.register_keras_serializable("trial")
class OwnFormula(L.BatchNormalization):
    """A subclass that does not call its base."""

    def call(self, inputs, training=None, mask=None):
        return (inputs - self.moving_mean) / ops.sqrt(self.moving_variance + self.epsilon)


@keras.saving.register_keras_serializable("trial")
class Function(Block):
    """Its call is a function of TensorFlow of its own."""

    @tf.function
    def call(self, x, training=None):
        return super().call(x, training=training)


@keras.saving.register_keras_serializable("trial")
class Branches(Block):
    """Normalises in one branch of a condition."""

    def call(self, x, training=None):
        return ops.cond(ops.mean(x) > -100, lambda: self.bn(self.dense(x), training=training), lambda: self.dense(x))


@keras.saving.register_keras_serializable("trial")
class Unused(Block):
    """Computes more than it gives."""

    def __init__(self, **options):
        super().__init__(**options)
        self.other = L.BatchNormalization(dtype=self.dtype_policy)

    def build(self, shape):
        super().build(shape)
        self.other.build(shape)

    def call(self, x, training=None):
        self.other(x, training=training)
        return super().call(x, training=training)


def masked(x):
    x = L.Embedding(20, 6, mask_zero=True)(x)
    x = L.BatchNormalization()(x)
    x = L.BatchNormalization()(L.Dense(5)(x))
    return L.Dense(2)(L.GlobalAveragePooling1D()(x))


def words(random):
    lengths = random.integers(2, 12, 100)
    return np.where(np.arange(12) < lengths[:, None], random.integers(1, 20, (100, 12)), 0).astype(np.int32)


def noisy(x):
    x = L.GaussianNoise(0.5)(L.Conv2D(6, 3)(x))
    x = L.SpatialDropout2D(0.5)(L.BatchNormalization()(x))
    x = L.AlphaDropout(0.5)(L.Conv2D(6, 3, activation="selu")(x))
    x = L.Dropout(0.5)(L.GlobalAveragePooling2D()(L.BatchNormalization()(x)))
    return L.Dense(2)(L.BatchNormalization()(L.GaussianDropout(0.3)(x)))


def augmented(x):
    x = L.RandomRotation(0.2)(L.RandomFlip()(L.Rescaling(0.5)(x)))
    return cnn(x)


def with_lambda(x):
    return L.Dense(2)(L.BatchNormalization()(L.Lambda(lambda v: v * 2.0)(L.Dense(5)(x))))


def deep(count: int):
    def function(x):
        for _ in range(count):
            x = L.Add()([x, L.Dense(8, activation="tanh")(L.BatchNormalization()(x))])
        return L.Dense(2)(x)

    return function


def norms_in_a_row(x):
    x = L.BatchNormalization()(L.BatchNormalization()(x))
    return L.Dense(2)(L.BatchNormalization()(L.Dense(4)(x)))


def frozen(x):
    x = L.Dense(6)(x)
    norm = L.BatchNormalization(trainable=False)
    return L.Dense(2)(L.BatchNormalization()(L.ReLU()(norm(x))))


def dictionary():
    inputs = {"left": keras.Input((8,), name="left"), "right": keras.Input((6,), name="right")}
    x = L.Concatenate()([L.BatchNormalization()(inputs["left"]), L.Dense(4)(inputs["right"])])
    return keras.Model(inputs, {"a": L.Dense(2)(L.BatchNormalization()(x)), "b": L.Dense(1)(x)})


def dictionary_of_other_names():
    inputs = {"zeta": keras.Input((8,), name="first"), "alpha": keras.Input((6,), name="second")}
    x = L.Concatenate()([L.BatchNormalization()(inputs["zeta"]), L.BatchNormalization()(inputs["alpha"])])
    return keras.Model(inputs, L.Dense(2)(x))


def outputs(x):
    a = L.BatchNormalization()(L.Dense(4)(x))
    b = L.BatchNormalization()(L.Dense(5)(x))
    # The last batch norm is itself an output.
    return [a, L.Dense(1)(b), L.BatchNormalization()(L.Add()([L.Dense(4)(b), a]))]


def with_rnn(x):
    x = L.BatchNormalization()(L.Bidirectional(L.GRU(4, return_sequences=True))(x))
    x = L.BatchNormalization()(L.LSTM(5)(x))
    return L.Dense(2)(x)


def rnn_of_cells(x):
    x = L.RNN(CellWithNorm(), return_sequences=True)(L.BatchNormalization()(x))
    return L.Dense(2)(L.BatchNormalization()(L.Flatten()(x)))


def loop(x):
    return L.Dense(2)(L.BatchNormalization()(L.Dense(6)(LoopWithNorm()(L.Dense(6)(x)))))


def custom_blocks(x):
    return L.Dense(2)(L.BatchNormalization()(Block()(Block(7)(x))))


def separable(x):
    x = L.BatchNormalization()(L.SeparableConv2D(6, 3)(x))
    x = L.BatchNormalization()(L.DepthwiseConv2D(3)(x))
    x = L.BatchNormalization()(L.Conv2DTranspose(5, 3, strides=2)(x))
    x = L.BatchNormalization()(L.UpSampling2D()(L.MaxPooling2D()(x)))
    return L.Dense(2)(L.GlobalMaxPooling2D()(x))


def attention(x):
    y = L.MultiHeadAttention(2, 4)(x, x)
    x = L.LayerNormalization()(L.Add()([x, y]))
    return L.Dense(2)(L.BatchNormalization()(L.GlobalAveragePooling1D()(L.BatchNormalization()(x))))


def channels_first(x):
    for count in (4, 5):
        x = L.BatchNormalization(axis=1)(L.Conv2D(count, 3, data_format="channels_first")(x))
    return x


def channels_last(x):
    x = L.Permute((2, 3, 1))(x)
    for count in (4, 5):
        x = L.BatchNormalization()(L.Conv2D(count, 3)(x))
    return x


def policy(name: str):
    def build():
        before = keras.mixed_precision.global_policy()
        keras.mixed_precision.set_global_policy(name)
        try:
            return functional(cnn, (12, 12, 3))()
        finally:
            keras.mixed_precision.set_global_policy(before)

    return build


def of_fixed_batch():
    inputs = keras.Input((8,), batch_size=10)
    return keras.Model(inputs, L.Dense(2)(L.BatchNormalization()(L.Dense(5)(inputs))))


APPLICATIONS = {
    "ResNet50": application("ResNet50", 64),
    "ResNet50V2": application("ResNet50V2", 64),
    "ResNet101": application("ResNet101", 32, 12),
    "MobileNet": application("MobileNet", 64),
    "MobileNetV2": application("MobileNetV2", 64),
    "MobileNetV3Small": application("MobileNetV3Small", 64),
    "MobileNetV3Large": application("MobileNetV3Large", 64),
    "EfficientNetB0": application("EfficientNetB0", 64),
    "EfficientNetV2B0": application("EfficientNetV2B0", 64),
    "DenseNet121": application("DenseNet121", 64),
    "InceptionV3": application("InceptionV3", 96),
    "InceptionResNetV2": application("InceptionResNetV2", 80, 12),
    "Xception": application("Xception", 72),
    "NASNetMobile": application("NASNetMobile", 64, 12),
    "ConvNeXtTiny": Case(
        lambda: keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3), classes=5),
        images(32, 4),
        repaired=False,
        reason="no batch-norm layer",
    ),
}

MADE = {
    "shared side by side": Case(functional(shared_parallel, (8,), (7,)), lambda r: (numbers(8)(r), numbers(7)(r))),
    "shared in sequence": Case(functional(shared_in_sequence, (8,)), numbers(8)),
    "shared inner model": Case(functional(shared_model, (8,), (8,)), lambda r: (numbers(8)(r), 2 * numbers(8)(r))),
    "nested one deep": Case(nested(1), numbers(8)),
    "nested two deep": Case(nested(2), numbers(8)),
    "nested four deep": Case(nested(4), numbers(8)),
    "Sequential": Case(sequential, numbers(8)),
    "Sequential without Input": Case(sequential_without_input, numbers(8)),
    "TimeDistributed": Case(functional(distributed, (6, 5)), numbers(6, 5)),
    "TimeDistributed any length": Case(
        functional(lambda x: L.TimeDistributed(L.BatchNormalization())(L.BatchNormalization()(x)), (None, 5)),
        numbers(6, 5),
    ),
    "RNNs between": Case(functional(with_rnn, (6, 5)), numbers(6, 5)),
    "RNN cell with batch norm": Case(functional(rnn_of_cells, (6, 5)), numbers(6, 5), left=1, reason="loop"),
    "while_loop": Case(functional(loop, (8,)), numbers(8), left=1, reason="loop"),
    "several outputs": Case(functional(outputs, (8,)), numbers(8)),
    "dict inputs": Case(dictionary, lambda r: {"left": numbers(8)(r), "right": numbers(6)(r)}),
    "dict inputs, other names": Case(
        dictionary_of_other_names, lambda r: {"zeta": numbers(8)(r), "alpha": numbers(6)(r)}
    ),
    "masks": Case(functional(masked, (12,), dtype="int32"), words),
    "Conv1D": Case(functional(lambda x: cnn(x, dimensions=1), (16, 3)), numbers(16, 3)),
    "Conv3D": Case(functional(lambda x: cnn(x, dimensions=3), (6, 6, 6, 2)), numbers(6, 6, 6, 2, count=20)),
    "axis=1": Case(functional(lambda x: cnn(x, axis=1), (6, 8, 3)), numbers(6, 8, 3)),
    "axis=2": Case(functional(lambda x: cnn(x, axis=2), (6, 8, 3)), numbers(6, 8, 3)),
    "no scale, no center": Case(functional(lambda x: cnn(x, scale=False, center=False), (8, 8, 3)), numbers(8, 8, 3)),
    "no scale": Case(functional(lambda x: cnn(x, scale=False), (8, 8, 3)), numbers(8, 8, 3)),
    "no center": Case(functional(lambda x: cnn(x, center=False), (8, 8, 3)), numbers(8, 8, 3)),
    "renorm": Case(functional(lambda x: cnn(x, renorm=True), (8, 8, 3)), numbers(8, 8, 3)),
    "synchronized": Case(functional(lambda x: cnn(x, synchronized=True), (8, 8, 3)), numbers(8, 8, 3)),
    "noise and dropout": Case(functional(noisy, (10, 10, 3)), numbers(10, 10, 3), step=0.5),
    "augmentation": Case(
        functional(augmented, (10, 10, 3)),
        numbers(10, 10, 3),
        # Keras 2 does not rotate in double precision.
        twin=functional(lambda x: cnn(L.Rescaling(0.5)(x)), (10, 10, 3)),
    ),
    "Lambda": Case(functional(with_lambda, (8,)), numbers(8), repaired=False, reason="--allow-code"),
    "Lambda allowed": Case(functional(with_lambda, (8,)), numbers(8), options={"allow_code": True}),
    "custom layers": Case(functional(custom_blocks, (8,)), numbers(8)),
    "subclass of batch norm": Case(
        functional(lambda x: L.Dense(2)(L.BatchNormalization()(ScaledNorm()(L.Dense(5)(x)))), (8,)), numbers(8)
    ),
    "subclass, own formula": Case(
        functional(lambda x: L.Dense(2)(L.BatchNormalization()(OwnFormula()(L.Dense(5)(x)))), (8,)),
        numbers(8),
        left=1,
        reason="its own normalisation code",
    ),
    "custom layer, tf.function": Case(functional(lambda x: L.BatchNormalization()(Function()(x)), (8,)), numbers(8)),
    "custom layer, condition": Case(
        functional(lambda x: L.BatchNormalization()(Branches()(x)), (8,)), numbers(8), left=1, reason="branch"
    ),
    "custom layer, unused": Case(
        functional(lambda x: L.BatchNormalization()(Unused()(x)), (8,)), numbers(8), left=1, reason="does not run it"
    ),
    "wrapped in a wrapper": Case(
        functional(lambda x: L.BatchNormalization()(L.TimeDistributed(Block())(x)), (6, 8)),
        numbers(6, 8),
        # Keras 2 calls the layer once more at the first step of an array whose length it knows.
        twin=functional(lambda x: L.BatchNormalization()(Block()(x)), (6, 8)),
    ),
    "channels first": Case(
        functional(channels_first, (3, 12, 11)),
        numbers(3, 12, 11),
        twin=functional(channels_last, (3, 12, 11)),
    ),
    "Normalization before": Case(
        functional(lambda x: L.BatchNormalization()(L.Dense(4)(L.Normalization(mean=1.0, variance=4.0)(x))), (8,)),
        numbers(8),
    ),
    "words from a table": Case(
        functional(
            lambda x: L.BatchNormalization()(
                L.Embedding(9, 4)(L.IntegerLookup(vocabulary=[3, 1, 4, 5], output_mode="int")(x))
            ),
            (6,),
            dtype="int64",
        ),
        lambda r: r.integers(0, 6, (50, 6)),
    ),
    "subclassed Model": Case(Subclassed, numbers(8), keys=("x",)),
    "subclassed, dict inputs": Case(SubclassedTwoInputs, lambda r: {"a": numbers(8)(r), "b": numbers(6)(r)}),
    "fixed batch of 10": Case(of_fixed_batch, numbers(8), batches=(10,)),
    "200 layers": Case(functional(deep(200), (8,)), numbers(8), batches=(100, 7)),
    "batch norm on the input": Case(
        functional(lambda x: L.Dense(2)(L.BatchNormalization()(L.Dense(4)(L.BatchNormalization()(x)))), (8,)),
        numbers(8),
    ),
    "batch norm of batch norm": Case(functional(norms_in_a_row, (8,)), numbers(8)),
    "frozen at 0 and 1": Case(functional(frozen, (8,)), numbers(8), options={"force": True}),
    "one sample": Case(functional(cnn, (8, 8, 3)), numbers(8, 8, 3, count=1), batches=(1,)),
    "other convolutions": Case(functional(separable, (12, 12, 3)), numbers(12, 12, 3, count=40)),
    "attention": Case(functional(attention, (6, 8)), numbers(6, 8)),
    "any image size": Case(functional(cnn, (None, None, 3)), numbers(9, 11, 3)),
    "float64": Case(policy("float64"), numbers(12, 12, 3)),
    "mixed_float16": Case(policy("mixed_float16"), numbers(12, 12, 3), half=True),
    "mixed_bfloat16": Case(policy("mixed_bfloat16"), numbers(12, 12, 3), half=True),
    "float16": Case(policy("float16"), numbers(12, 12, 3), half=True),
    "bfloat16": Case(policy("bfloat16"), numbers(12, 12, 3), half=True),
    "legacy .h5": Case(functional(cnn, (8, 8, 3)), numbers(8, 8, 3), way=".h5"),
    "legacy .h5, nested": Case(nested(2), numbers(8), way=".h5"),
}


def operations(x):
    x = L.BatchNormalization()(tf.nn.relu(L.Dense(5)(x)) * 2.0 + 1.0)
    return L.Dense(2)(L.BatchNormalization()(x[:, 1:]))


def of_an_older_optimizer():
    model = sequential()
    model.compile(keras.optimizers.legacy.SGD(1e-5, momentum=0.9), "mse")
    return model


def nested_without_names():
    x = inputs = keras.Input((8,))
    for _ in range(3):
        inside = keras.Sequential([keras.Input((8,)), L.Dense(8), L.BatchNormalization(), L.Dense(8)])
        x = L.BatchNormalization()(inside(x))
    return keras.Model(inputs, x)


# What only Keras 2 can express.
KERAS_2 = {
    "synchronized, older class": Case(
        functional(lambda x: L.experimental.SyncBatchNormalization()(L.Dense(4)(x)), (8,)), numbers(8)
    ),
    "not fused": Case(functional(lambda x: cnn(x, fused=False), (8, 8, 3)), numbers(8, 8, 3)),
    "virtual batches": Case(functional(lambda x: cnn(x, virtual_batch_size=4), (8, 8, 3)), numbers(8, 8, 3)),
    "axes 1 and 2": Case(
        functional(lambda x: L.BatchNormalization()(L.BatchNormalization(axis=[1, 2])(x)), (6, 8)),
        numbers(6, 8),
        left=1,
        reason="several axes",
    ),
    "operations": Case(functional(operations, (8,)), numbers(8)),
    "older optimizer": Case(of_an_older_optimizer, numbers(8)),
    "nested without names": Case(nested_without_names, numbers(8)),
}

CASES = {**MADE, **(KERAS_2 if keras.__name__ == "tf_keras" else {}), **APPLICATIONS}
