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
    def compare(left, right, tolerance=0.0, formats=("tensor-bundle", "tensor-bundle")):
        checkpoints = {
            name: Checkpoint(name, form, tuple(variables), (), 0)
            for name, form, variables in zip("ab", formats, (left, right), strict=True)
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
    ],
)
def test_a_variable_is_found_under_the_name_of_another_format(compare, left, right):
    assert compare([left], [right]) == []


V = np.float32([4, 5, 6])
POSITIONAL = [
    variable("layers/layer_normalization/vars/0", W, "ln"),
    variable("layers/layer_normalization/vars/1", V, "ln"),
    variable("optimizer/vars/0", [7], "adam"),
    variable("optimizer/vars/1", V, "adam"),
]


def test_positions_are_held_against_the_order_of_an_hdf5_file(compare):
    named = [
        variable("model_weights/inner/inner/ln/gamma", W, "inner/ln/gamma"),
        variable("model_weights/inner/inner/ln/beta", V, "inner/ln/beta"),
        variable("optimizer_weights/adam/iteration", [7], "adam/iteration"),
        variable("optimizer_weights/adam/ln_gamma_momentum", V, "adam/ln_gamma_momentum"),
    ]
    assert compare(POSITIONAL, named, formats=("keras-v3", "keras-hdf5")) == []


def test_positions_are_held_against_names_where_a_bundle_sorts_them(compare):
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    named = [
        variable(f"model/_operations/1/beta{end}", V, "inner/ln/beta"),
        variable(f"model/_operations/1/gamma{end}", W, "inner/ln/gamma"),
        variable(f"optimizer/_iterations{end}", [7], "adam/iteration"),
        variable(f"optimizer/_variables/1{end}", V, "adam/ln_gamma_momentum"),
    ]
    assert compare(POSITIONAL, named, formats=("keras-v3", "tensor-bundle")) == []
    stranger = variable(f"model/_operations/1/delta{end}", V, "inner/ln/delta")
    differences = compare(POSITIONAL, [*named, stranger], formats=("keras-v3", "tensor-bundle"))
    assert ("layers/layer_normalization/vars/0", "missing") in differences  # An order that is not known is not guessed.


def test_the_second_copies_of_an_export_are_not_compared(compare):
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    twins = [variable(f"variables/0{end}", W, "d/kernel"), variable(f"_all_variables/3{end}", W, "d/kernel")]
    assert compare([variable("d/kernel", W)], twins) == []


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


@pytest.mark.tensorflow
def test_an_export_is_equal_to_the_keras_file_that_it_comes_from(tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "export", verbose=False)
    found = diff(tmp_path / "model.keras", tmp_path / "export")
    assert found.equal
    assert found.compared == 6
