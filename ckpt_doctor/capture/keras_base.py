"""The class that callbacks of the Keras in use derive from."""

from __future__ import annotations

import os
import sys
from typing import Any

from ckpt_doctor.capture.runtime import INSTALL
from ckpt_doctor.errors import MissingExtra


def callback_base() -> Any:
    """Return the `Callback` of Keras 3, or of Keras 2 (`tf_keras`) where a program uses that one.

    Raises:
        MissingExtra: Neither is installed.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    try:
        if legacy or ("tf_keras" in sys.modules and "keras" not in sys.modules):
            import tf_keras

            return tf_keras.callbacks.Callback
        import keras
    except ImportError:
        raise MissingExtra(f"the callback needs Keras; install it with: {INSTALL}") from None
    return keras.callbacks.Callback
