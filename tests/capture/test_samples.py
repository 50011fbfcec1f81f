"""Batches that are cut into smaller ones."""

import numpy as np

from ckpt_doctor.capture.samples import from_arrays


def test_split_batches_hold_the_same_samples_in_the_same_order():
    samples = from_arrays({"x:0": np.arange(23)}, range(23), 8)
    assert samples.lengths == (8, 8, 7)
    pieces = samples.split(3)
    assert pieces.lengths == (3, 3, 2, 3, 3, 2, 3, 3, 1)
    assert np.concatenate([batch["x:0"] for batch in pieces]).tolist() == list(range(23))
    # Any batch can be asked for again, in any order.
    assert pieces.read(8)["x:0"].tolist() == [22]
    assert pieces.read(1)["x:0"].tolist() == [3, 4, 5]
