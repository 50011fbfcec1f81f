"""TensorFlow and Keras, imported when they are needed and quietly."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ckpt_doctor.errors import MissingExtra

# What stands before the reason where the error comes out of a graph.
_PREAMBLE = re.compile(
    r"Graph execution error:|Detected at node|Node: '|<stack traces unavailable>|\s*\d* ?root error\(s\) found"
)
# Keras 3 tells first in which call a layer failed, then in bold letters why
# (keras/src/utils/traceback_utils.py: `inject_argument_info_in_traceback`).
_SAID_BY_LAYER = re.compile(r"Exception encountered when calling .*?\x1b\[1m(.+?)\x1b\[0m", re.DOTALL)
# The extra `tensorflow` of pyproject.toml, package by package: it installs whatever ckpt-doctor was installed from.
INSTALL = 'pip install "tensorflow>=2.16" "tf_keras>=2.16"'


@contextmanager
def _without_native_messages() -> Iterator[None]:
    """Keep what TensorFlow's libraries write to stderr while they load from it.

    Some of it (the processor's features, absent GPUs) is written before the log level is looked at, so only the file
    descriptor itself can be turned away. Python's own errors come as exceptions and are not lost.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # It is closed, and nothing is written to it.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - no Path: a descriptor is what is needed
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def tensorflow() -> Any:
    """Return the module `tensorflow`.

    Raises:
        MissingExtra: It is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _without_native_messages():
            import tensorflow as tf
    except ImportError as error:
        raise MissingExtra(f"running the model needs TensorFlow ({error}); install it with: {INSTALL}") from error
    tf.get_logger().setLevel("ERROR")
    return tf


def keras(legacy: bool) -> Any:
    """Return the module `keras` (version 3), or `tf_keras` (Keras 2) for `legacy` files.

    Raises:
        MissingExtra: It is not installed.
    """
    tensorflow()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    name = "tf_keras" if legacy else "keras"
    try:
        if legacy:
            import tf_keras as module
        else:
            import keras as module
    except ImportError as error:
        raise MissingExtra(f"loading this model needs {name} ({error}); install it with: {INSTALL}") from error
    if not legacy and module.backend.backend() != "tensorflow":
        raise MissingExtra(
            f"Keras runs on the backend {module.backend.backend()!r} here but must run on TensorFlow; set "
            "KERAS_BACKEND=tensorflow"
        )
    return module


def reason(error: Exception) -> str:
    """Return what an error of TensorFlow or Keras says, in a line and without the names that the runtime adds."""
    said = _SAID_BY_LAYER.search(str(error))
    text = (
        said[1].strip() if said is not None else str(getattr(error, "message", error)).strip() or type(error).__name__
    )
    lines = [line for line in text.splitlines() if line.strip() and not _PREAMBLE.match(line)] or [text]
    plain = re.sub(r"\{\{[^}]*\}\}\s*", "", lines[0])
    return re.sub(r"\s*\[Op:\w+\].*$", "", plain)
