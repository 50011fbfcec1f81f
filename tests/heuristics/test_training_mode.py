"""How a layer ran in training, by gradients: held against gradients that are worked out here, in float64.

The layers are `y = gamma * (x @ kernel + bias - mean) / sqrt(variance + epsilon) + beta` under a loss that is linear in
y, so every gradient has a closed form; behind batch moments it is Ioffe and Szegedy's (Batch Normalization, 2015).
"""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import GradientTrace
from ckpt_doctor.heuristics.training_mode import by_bias, by_scale

CHANNELS, INPUTS, ROWS, EPSILON = 12, 5, 64, 1e-3


class Layer:
    """A linear layer before a batch norm, and its gradients on one batch."""

    def __init__(self, seed, *, batch, variance=1.0, mean=0.0):
        random = np.random.default_rng(seed)
        self.gamma = random.uniform(0.5, 1.5, CHANNELS)
        self.kernel = random.normal(0, 0.5, (INPUTS, CHANNELS))
        self.bias = random.normal(0, 0.1, CHANNELS)
        x = random.normal(1, 2, (ROWS, INPUTS))
        # The loss's gradient for y, coherent enough to have a sum.
        upstream = random.normal(0.3, 1, (ROWS, CHANNELS)) * random.normal(0, 1, CHANNELS)
        z = x @ self.kernel + self.bias
        if batch:
            mean, variance = z.mean(0), z.var(0)
        root = np.sqrt(variance + EPSILON)
        normal = (z - mean) / root
        self.d_beta = upstream.sum(0)
        self.d_gamma = (upstream * normal).sum(0)
        d_z = self.gamma / root * upstream
        if batch:
            d_z = self.gamma / root * (upstream - upstream.mean(0) - normal * (upstream * normal).mean(0))
        self.d_bias = d_z.sum(0)
        self.d_kernel = x.T @ d_z

    def traces(self, *, second=True, bias=True):
        """Return what an optimizer that keeps both moments holds after this step."""

        def trace(value, gradient):
            return GradientTrace(value, gradient, np.abs(gradient) if second else None)

        found = {
            "gamma": trace(self.gamma, self.d_gamma),
            "beta": trace(self.d_beta * -0.01, self.d_beta),
            "kernel": trace(self.kernel, self.d_kernel),
        }
        return found | ({"bias": trace(self.d_bias * -0.01, self.d_bias)} if bias else {})


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_slots_of_a_bias_tell_how_its_batch_norm_ran(seed, second):
    told = by_bias("bn", Layer(seed, batch=True).traces(second=second), EPSILON)
    assert (told.ran_on, told.by, told.of) == ("batch", "slots", "bn")
    assert told.proves("bn")
    assert not told.proves("another")
    told = by_bias("bn", Layer(seed, batch=False).traces(second=second), EPSILON)
    assert (told.ran_on, told.by, told.from_the_start) == ("stored", "slots", True)


def test_the_slots_tell_which_variance_was_stored():
    """`d bias = gamma / sqrt(variance + epsilon) * d beta`."""
    other = Layer(0, batch=False, variance=9.0).traces()
    other["bias"] = replace(other["bias"], value=np.zeros(CHANNELS))
    told = by_bias("bn", other, EPSILON)
    assert (told.ran_on, told.from_the_start) == ("stored", False)


def test_a_beta_without_a_gradient_of_its_own_tells_nothing():
    """Behind it only linear layers, and then another batch norm: rounding is left of both, here 1e-7 of gamma's."""
    random = np.random.default_rng(2)
    traces = Layer(0, batch=True).traces()
    rounding = [1e-7 * random.normal(size=CHANNELS) for _ in range(2)]
    for role, left in zip(("bias", "beta"), rounding, strict=True):
        traces[role] = GradientTrace(np.zeros(CHANNELS), left, np.abs(left))
    assert by_bias("bn", traces, EPSILON) is None
    assert by_bias("bn", {role: one for role, one in traces.items() if role != "gamma"}, EPSILON) is None
    # Without gamma, the kernel in front is what they are held against.
    kernel = {role: one for role, one in Layer(0, batch=False).traces().items() if role != "gamma"}
    assert by_bias("bn", kernel, EPSILON).ran_on == "stored"


def test_a_bias_that_was_not_trained_tells_nothing():
    traces = Layer(0, batch=True).traces()
    assert by_bias("bn", traces | {"bias": GradientTrace(0.01 * NOISE)}, EPSILON) is None


def without_slots(traces):
    return {role: GradientTrace(trace.value) for role, trace in traces.items()}


@pytest.mark.parametrize("seed", range(5))
def test_without_slots_the_values_tell(seed):
    batch, stored = (without_slots(Layer(seed, batch=batch).traces()) for batch in (True, False))
    # What rounding leaves: the gradient is not exactly zero in float32.
    rounding = np.random.default_rng(seed).normal(0, 1e-8, CHANNELS)
    told = by_bias("bn", batch | {"bias": GradientTrace(rounding)}, EPSILON)
    assert (told.ran_on, told.by) == ("batch", "weights")
    assert not told.proves("bn")
    # An optimizer that divides by the root of the second moment moves bias and beta by the same steps.
    same = GradientTrace(np.asarray(stored["beta"].value) * 1.01)
    told = by_bias("bn", stored | {"bias": same}, EPSILON)
    assert (told.ran_on, told.by, told.from_the_start) == ("stored", "weights", True)


BETA = np.linspace(-1, 1, CHANNELS)
NOISE = np.random.default_rng(1).permutation(BETA)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (np.full(CHANNELS, 0.1), None),  # Exactly a constant: perhaps never trained.
        (0.02 * BETA, "batch"),  # Rounding, whichever way it points.
        (0.2 * NOISE, "batch"),
        (0.2 * BETA, None),  # Small, and yet it moved with beta.
        (0.32 * NOISE, None),
        (1.0 * NOISE, None),  # A start at random.
        (0.5 * BETA, "stored"),
        (0.33 * BETA, None),
        (-1.0 * BETA, None),
    ],
)
def test_spread_and_correlation_must_agree(bias, expected):
    told = by_bias("bn", {"bias": GradientTrace(bias), "beta": GradientTrace(BETA)}, EPSILON)
    assert (told and told.ran_on) == expected


def test_levels_tell_nothing():
    """A bias that starts at 0.1 stays there."""
    told = by_bias("bn", {"bias": GradientTrace(0.1 + 1e-8 * NOISE), "beta": GradientTrace(BETA)}, EPSILON)
    assert told.ran_on == "batch"


def test_behind_a_negative_gamma_they_move_against_each_other():
    sign = np.where(np.arange(CHANNELS) % 2, 1.0, -1.0)
    traces = {"bias": GradientTrace(BETA * sign), "beta": GradientTrace(BETA), "gamma": GradientTrace(sign)}
    assert by_bias("bn", traces, EPSILON).ran_on == "stored"
    traces["gamma"] = GradientTrace(np.ones(CHANNELS))
    assert by_bias("bn", traces, EPSILON) is None


def test_few_channels_correlate_by_chance():
    few = {"bias": GradientTrace(BETA[:3]), "beta": GradientTrace(BETA[:3])}
    assert by_bias("bn", few, EPSILON) is None
    few = {"bias": GradientTrace(0.2 * NOISE[:4]), "beta": GradientTrace(BETA[:4])}
    assert by_bias("bn", few, EPSILON) is None
    # By chance: of 2,000 pairs of independent vectors none may pass for one that moved together.
    random = np.random.default_rng(0)
    for channels in (4, 6, 8, 12):
        for _ in range(500):
            bias, beta = (GradientTrace(random.normal(size=channels)) for _ in range(2))
            told = by_bias("bn", {"bias": bias, "beta": beta}, EPSILON)
            assert told is None or told.ran_on != "stored"


def test_a_gamma_of_zero_lets_no_gradient_through():
    traces = Layer(0, batch=False).traces()
    traces["gamma"] = replace(traces["gamma"], value=np.zeros(CHANNELS))
    traces["bias"] = GradientTrace(np.zeros(CHANNELS), np.full(CHANNELS, 1e-9), np.full(CHANNELS, 1e-9))
    assert by_bias("bn", traces, EPSILON) is None


def test_slots_that_are_exactly_zero_had_another_reason():
    """Rounding leaves something in every channel; a gradient that was stopped leaves nothing."""
    traces = Layer(0, batch=True).traces()
    traces["bias"] = GradientTrace(np.zeros(CHANNELS), np.zeros(CHANNELS), np.zeros(CHANNELS))
    assert by_bias("bn", traces, EPSILON) is None


def test_slots_and_values_that_contradict_each_other_tell_nothing():
    """Long training on batch moments, and then some in inference mode."""
    traces = Layer(0, batch=False).traces()
    traces["bias"] = replace(traces["bias"], value=0.01 * NOISE)
    assert by_bias("bn", traces, EPSILON) is None


@pytest.mark.parametrize("ratio", [2e-3, 1e-2, 4e-2])
def test_between_the_limits_nothing_is_told(ratio):
    traces = {
        "bias": GradientTrace(np.zeros(CHANNELS), size=np.full(CHANNELS, ratio)),
        "beta": GradientTrace(BETA, size=np.ones(CHANNELS)),
        "gamma": GradientTrace(np.ones(CHANNELS), size=np.ones(CHANNELS)),
    }
    assert by_bias("bn", traces, EPSILON) is None


def test_what_is_missing_tells_nothing():
    traces = Layer(0, batch=True).traces()
    for role in ("bias", "beta"):
        assert by_bias("bn", {key: trace for key, trace in traces.items() if key != role}, EPSILON) is None
    short = traces | {"bias": GradientTrace(np.zeros(CHANNELS - 1))}
    assert by_bias("bn", short, EPSILON) is None


def scaled(layer, *, l2=0.0, bias=False):
    traces = layer.traces(bias=bias)
    kernel = traces["kernel"]
    traces["kernel"] = replace(kernel, first=kernel.first + 2 * l2 * kernel.value)
    if bias:
        traces["bias"] = GradientTrace(layer.bias, layer.d_bias)
    return traces


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_of_a_kernel_tells_without_a_bias(seed):
    """Behind batch moments `<kernel, d kernel>` is zero, but for epsilon; behind stored 0 and 1 it is gamma's."""
    batch, stored = Layer(seed, batch=True), Layer(seed, batch=False)
    told = by_scale({"bn": (scaled(batch), (-1,), 0.0)})
    assert (told.ran_on, told.by) == ("batch", "scale")
    # The bias of this layer is part of what gamma scales.
    told = by_scale({"bn": (scaled(stored, bias=True), (-1,), 0.0)})
    assert (told.ran_on, told.by, told.from_the_start) == ("stored", "scale", False)
    assert "slope of 1.00" in told.shown


def test_a_penalty_on_the_kernel_is_taken_out():
    stored = scaled(Layer(0, batch=False), l2=30.0, bias=True)
    assert by_scale({"bn": (stored, (-1,), 0.0)}) is None
    assert by_scale({"bn": (stored, (-1,), 30.0)}).ran_on == "stored"


def test_stored_means_other_than_zero_are_not_taken_for_zero():
    told = by_scale({"bn": (scaled(Layer(0, batch=False, mean=3.0, variance=4.0), bias=True), (-1,), 0.0)})
    assert told is None


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 3, 2, 12), (-1,)), ((3, 3, 4, 3), (-2, -1)), ((3, 3, 12, 2), (-2,)), ((5, 12), (-1,))]
)
def test_the_channels_of_a_kernel_are_where_its_kind_of_layer_has_them(shape, axes):
    random = np.random.default_rng(3)
    kernel, gamma = random.normal(size=shape), random.uniform(0.5, 1.5, CHANNELS)
    d_kernel = random.normal(size=shape)
    product = (kernel * d_kernel).sum(axis=tuple(i for i in range(len(shape)) if i - len(shape) not in axes))
    traces = {"kernel": GradientTrace(kernel, d_kernel), "gamma": GradientTrace(gamma, product.reshape(-1) / gamma)}
    assert "slope of 1.00" in by_scale({"bn": (traces, axes, 0.0)}).shown
    assert by_scale({"bn": (traces, (), 0.0)}) is None


def test_few_channels_tell_nothing_alone_and_something_together():
    random = np.random.default_rng(4)

    def few():
        kernel, d_kernel = random.normal(size=(2, 5, 4))
        return {
            "kernel": GradientTrace(kernel, d_kernel),
            "gamma": GradientTrace(np.ones(4), (kernel * d_kernel).sum(0)),
        }

    assert by_scale({"a": (few(), (-1,), 0.0)}) is None
    assert by_scale({"a": (few(), (-1,), 0.0), "b": (few(), (-1,), 0.0)}).ran_on == "stored"
    lacking = {"kernel": GradientTrace(np.ones((5, 4)))}
    assert by_scale({"a": (few(), (-1,), 0.0), "b": (lacking, (-1,), 0.0)}) is None
