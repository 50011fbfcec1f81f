"""How good the demo's model is in inference mode."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from ckpt_doctor.analysis import inventory_of
from ckpt_doctor.capture.data import read_unmatched
from ckpt_doctor.capture.estimation import load_model, read_data, stored_statistics
from ckpt_doctor.capture.prediction import predict
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.options import DataOptions

_OUTPUT = "logits:0"


def accuracy(checkpoint: str, test: str) -> float:
    """Return the share of test images that a checkpoint of the demo's model classifies rightly.

    Statistics that are missing count as 0 and 1, which is what a loader that skips them leaves.

    Args:
        checkpoint: A prefix.
        test: An `.npz` with `images` and `labels`.
    """
    opened = open_checkpoint(checkpoint)
    inventory = inventory_of(opened)
    request = DataOptions(data=(f"{test}[images]",), batch_size=100, seed=None)
    loaded = load_model(opened, inventory, request, outputs=[_OUTPUT])
    with ExitStack() as kept:
        samples = read_data(loaded, request, kept)
        (logits,) = predict(loaded.program, stored_statistics(inventory.layers), samples, [_OUTPUT])
    labels = read_unmatched("--data", DataOptions(data=(f"{test}[labels]",)), tuple)["labels"]
    return float(np.mean(logits.argmax(axis=1) == labels))
