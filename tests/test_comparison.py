"""Two checkpoints compared: how variables are paired, and what counts as a difference."""

import numpy as np
import pytest

from ckpt_doctor import comparison
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.comparison import diff
from ckpt_doctor.errors import BadRequest, UnreadableCheckpoint
from ckpt_doctor.listing import value_statistics


def variable(name, value, label=None):
    value = np.asarray(value)
    return Variable(name, value.shape, str(value.dtype), value.nbytes, lambda: value, label)


@pytest.fixture
def compare(monkeypatch):
    def compare(left, right, tolerance=0.0):
        checkpoints = {
            name: Checkpoint(name, "tensor-bundle", tuple(variables), (), 0)
            for name, variables in (("a", left), ("b", right))
        }
        monkeypatch.setattr(comparison, "open_checkpoint", checkpoints.__getitem__)
        result = diff("a", "b", tolerance=tolerance)
        return [(one.name, one.kind) for one in result.differences]

    return compare


W = np.float32([1, 2, np.nan])


def test_equal_is_equal_nan_included(compare):
    assert compare([variable("w", W)], [variable("w", W.copy())]) == []


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (np.float32([1, 2, 3]), "values"),
        (np.float32([1, 2]), "shape"),
        (np.float64([1, 2, np.nan]), "dtype"),
    ],
)
def test_what_differs(compare, other, kind):
    assert compare([variable("w", W)], [variable("w", other)]) == [("w", kind)]


def test_missing_and_added(compare):
    assert compare([variable("a", W)], [variable("b", W)]) == [("a", "missing"), ("b", "added")]


def test_a_tolerance_is_about_values(compare):
    left, right = [variable("w", [1.0, 2.0])], [variable("w", [1.0, 2.01])]
    assert compare(left, right, 0.1) == []
    assert compare(left, right, 0.001) == [("w", "values")]
    assert compare([variable("w", W)], [variable("w", W.astype(np.float64))], 1e-9) == []
    assert compare([variable("w", [1.0, np.inf])], [variable("w", [1.0, np.inf])], 0.1) == []
    assert compare([variable("w", [1.0, np.inf])], [variable("w", [1.0, 5.0])], 0.1) == [("w", "values")]
    with pytest.raises(BadRequest, match="must be 0 or more"):
        compare(left, right, float("nan"))


def test_integers_beyond_float64_are_compared_exactly(compare):
    assert compare([variable("n", [2**53])], [variable("n", [2**53 + 1])]) == [("n", "values")]


def test_strings(compare):
    left = variable("s", np.array([b"x", b"y"], dtype=object))
    assert compare([left], [variable("s", np.array([b"x", b"y"], dtype=object))]) == []
    assert compare([left], [variable("s", np.array([b"x", b"z"], dtype=object))]) == [("s", "values")]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (variable("bn/gamma", W), variable("bn/bn/gamma:0", W)),
        (variable("dense/kernel", W), variable("model_weights/dense/dense/kernel:0", W)),
        (variable("bn/gamma", W), variable("layer-1/gamma/.ATTRIBUTES/VARIABLE_VALUE", W, "bn/gamma")),
        (variable("bn/moving_mean", W), variable("layers/batch_normalization/vars/2", W, "bn/moving_mean")),
    ],
)
def test_a_variable_is_found_under_the_name_of_another_format(compare, left, right):
    assert compare([left], [right]) == []


def test_what_is_ambiguous_is_not_paired(compare):
    right = [variable("a/w:0", W), variable("a/w:1", W)]
    assert compare([variable("a/w", W)], right) == [("a/w", "missing"), ("a/w:0", "added"), ("a/w:1", "added")]


def test_what_cannot_be_read_differs(compare):
    def fail():
        raise UnreadableCheckpoint("b", "tensor-bundle", ())

    broken = Variable("w", (3,), "float32", 12, fail)
    assert compare([variable("w", W)], [broken]) == [("w", "unreadable")]


def test_value_statistics_are_float64_and_of_the_finite_values():
    found = value_statistics(np.float16([60000, 60000, 0, np.inf, np.nan]))
    assert (found.min, found.max, found.nonfinite, found.zeros) == (0, 60000, 2, 1)
    assert found.mean == pytest.approx(40000, rel=1e-3)
    nothing = value_statistics(np.float32([]))
    assert (nothing.min, nothing.std, nothing.nonfinite) == (None, None, 0)
    assert value_statistics(np.array([b"x"], dtype=object)) is None
    assert value_statistics(np.complex64([3 + 4j])).max == 5
    assert value_statistics(np.array([True, False])).mean == 0.5
