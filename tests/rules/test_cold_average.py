"""How severe a cold average is, and how it is told."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.rules._examples import described, example
from ckpt_doctor.rules.cold_average import RULE
from ckpt_doctor.rules.interface import Subject


def found(layers, steps):
    return list(RULE.check(RULE, Subject(Inventory(tuple(layers), steps=steps))))


def pair(steps, *, counted=True, **options):
    """Return two layers whose least variance is what is left after so many steps at a decay of 0.99."""
    facts = replace(described(), counted=counted)
    least = 0.99**steps
    return [
        replace(
            example(name, facts=facts, channels=4, moving_variance=[1.2, least + more, 2.0]), momentum=0.99, **options
        )
        for name, more in (("a", 0.01), ("b", 0.02))
    ]


@pytest.mark.parametrize(
    ("steps", "counted", "severity"),
    [
        (68, True, "error"),  # 0.99^68 is 0.5049, 0.99^69 is 0.4998.
        (69, True, "warning"),
        (250, True, "warning"),
        (10, False, "warning"),
    ],
)
def test_more_than_half_of_the_start_is_an_error_where_it_is_proven(steps, counted, severity):
    findings = found(pair(steps, counted=counted), steps)
    assert {one.severity for one in findings} == {severity}
    assert {one.certainty for one in findings} == {"proven" if counted else "likely"}


def test_a_corrected_mean_is_not_named():
    layers = [
        replace(
            layer,
            companions={"moving_mean/local_step": f"{layer.name}/moving_mean/local_step"},
            companion_values={"moving_mean/local_step": np.array(20.0)},
        )
        for layer in pair(20)
    ]
    first, _ = found(layers, None)
    assert first.variables == ("a/moving_variance",)
    assert "the moving_variance of its 4 channels still holds 82 % of its initial value 1 (20 updates" in first.message


def test_a_bound_is_called_one():
    layers = [replace(layer, momentum=None, facts=None, evidence="names") for layer in pair(20)]
    first, _ = found(layers, None)
    assert (first.severity, first.certainty) == ("warning", "unproven")
    assert "up to 83 % of their initial values" in first.message
