"""What a SavedModel answers, by the two ways in which TensorFlow loads one; each may read another copy of a value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def by_objects(folder: str | Path, x: np.ndarray, signature: str = "serving_default") -> np.ndarray:
    """Return what a signature of one input and one output answers after `tf.saved_model.load`."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder), tags=["serve"])
    (answer,) = loaded.signatures[signature](tf.constant(x)).values()
    return answer.numpy()


def by_session(
    folder: str | Path, x: np.ndarray, signature: str = "serving_default", tags: Sequence[str] = ("serve",)
) -> np.ndarray:
    """Return what it answers in a session, as in TensorFlow Serving."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = tf.compat.v1.saved_model.load(session, list(tags), str(folder)).signature_def[signature]
        (given,), (asked,) = found.inputs.values(), found.outputs.values()
        return session.run(asked.name, {given.name: x})
