"""What a model answers in inference mode, with the statistics that lie in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.program import Program
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.checkpoint import Array


def predict(
    program: Program, stored: Mapping[str, tuple[Array, Array]], samples: Samples, outputs: Sequence[str]
) -> list[Array]:
    """Return the output tensors over all samples, in the order of the batches.

    Args:
        program: The model.
        stored: Layer to mean and variance.
        samples: The data.
        outputs: Names of the tensors.

    Returns:
        One array for each output, of shape `(samples, …)`.
    """
    with Engine(program, stored) as engine:
        return [np.concatenate(parts) for parts in zip(*engine.predict(samples, outputs), strict=True)]
