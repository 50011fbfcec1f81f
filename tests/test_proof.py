"""When a repair counts as proven."""

import numpy as np
import pytest

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.proof import proven
from ckpt_doctor.repair_result import RepairedLayer


@pytest.mark.parametrize(
    ("method", "off", "good"),
    [
        ("layerwise", 1e-6, True),
        ("layerwise", 0.05, False),  # Far beyond rounding, though BN401 would not mind.
        ("training", 0.05, True),
        ("training", 0.5, False),
    ],
)
def test_layerwise_leaves_no_more_than_rounding(method, off, good):
    values = {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)}
    layer = BatchNormLayer("bn", {role: role for role in values}, values=values, channels=3, epsilon=1e-3)
    moments = np.full((2, 3), off), np.ones((2, 3))
    seen = Observation(10, moments[0][0], moments[1][0], *moments)
    entries, within = proven([RepairedLayer("bn", method, None, None)], Inventory((layer,)), {"bn": seen})
    assert within is good
    assert entries[0].residual == pytest.approx(off, rel=1e-2)
