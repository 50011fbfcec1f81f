"""One statistic at its start in every layer, the other moved."""

from dataclasses import replace

import numpy as np
import pytest

from ckpt_doctor.heuristics.one_statistic import one_at_its_start
from ckpt_doctor.rules._examples import described, example

VARIANCE = {"moving_variance": 1}
MEAN = {"moving_mean": 0}


def test_the_same_vector_in_every_layer_was_forgotten():
    assert one_at_its_start([example("a", **VARIANCE), example("b", **VARIANCE)]) == dict.fromkeys(
        "ab", "moving_variance"
    )
    assert one_at_its_start([example("a", **MEAN)]) == {"a": "moving_mean"}


def test_a_layer_that_was_not_updated_at_all_is_another_defect_and_no_contradiction():
    assert one_at_its_start([example("a", **VARIANCE), example("b", **VARIANCE, **MEAN)]) == {"a": "moving_variance"}
    assert one_at_its_start([example("b", **VARIANCE, **MEAN)]) == {}


@pytest.mark.parametrize(
    "layer",
    [
        example(),
        example(moving_variance=[1, 1, 1.0000001]),
        example(**MEAN, moving_variance=0.4),  # Nothing comes in: all variances are what is left of the 1.
        example(**MEAN, moving_variance=[0.4, np.nan, 1]),
        example(**VARIANCE, missing=["moving_mean"]),
        example(**MEAN, missing=["moving_variance"]),
        example(**VARIANCE, initial=None),
        example(**VARIANCE, initial="0/0"),
        example(**VARIANCE, dtype=np.float16),  # An average may stop at 1 by rounding.
        example(**VARIANCE, facts=described(trained=False)),
        replace(example(), values={"moving_mean": np.zeros(0), "moving_variance": np.zeros(0)}),
    ],
)
def test_everything_else_is_no_sign(layer):
    assert one_at_its_start([layer]) == {}
    assert one_at_its_start([example("other", **VARIANCE), layer]) == {}


def test_no_layers_hold_nothing():
    assert one_at_its_start([]) == {}
