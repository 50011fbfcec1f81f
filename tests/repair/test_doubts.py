"""What is said of data that are too few or sorted."""

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair.proof import doubts
from ckpt_doctor.rules._examples import example


def seen(*batch_means):
    means = np.array(batch_means, np.float64)[:, None] * np.ones(3)
    return Observation(64, means.mean(axis=0), np.ones(3), means, np.ones_like(means))


FEW, ENOUGH = seen(0.5, -0.5), seen(0.1, -0.1, 0.12, -0.11, 0.09, -0.1, 0.1, -0.1)


@pytest.mark.parametrize(
    ("observed", "ends"),
    [
        ({}, []),
        ({"a": ENOUGH, "b": ENOUGH}, []),
        ({"b": FEW}, ["1,023 samples"]),
        ({"a": FEW, "b": FEW}, ["1,023 samples (and 1 more layers)"]),
        ({"a": FEW, "b": FEW, "c": FEW}, ["1,023 samples (and 2 more layers)"]),
    ],
)
def test_doubts_are_told_once_for_the_first_layer(observed, ends):
    inventory = Inventory(tuple(example(name) for name in "abc"))
    told = list(doubts(inventory, observed))
    assert len(told) == len(ends)
    for sentence, end in zip(told, ends, strict=True):
        assert sentence.startswith(f"BN402 too-little-data: layer {min(observed)}: with 64 samples")
        assert sentence.endswith(end)
