"""The ways in which users of Keras save a model and get it back, for `trial_keras.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

if __package__:
    from benchmarks.trial_models import keras
else:
    from trial_models import keras


class Way(NamedTuple):
    """One way.

    Attributes:
        save: Saves a compiled model at a path without extension, and returns the checkpoint's path.
        restore: Returns the compiled model of a checkpoint; takes a function that builds the model anew, and the path.
        by_model: Whether the checkpoint holds no model, so that `--model` must name one.
    """

    save: Callable[[Any, Path], Path]
    restore: Callable[[Callable[[], Any], Path], Any]
    by_model: bool = False


def _save(method: str, suffix: str, **options: Any) -> Callable[[Any, Path], Path]:
    def save(model, path):
        path = path.with_name(path.name + suffix)
        getattr(model, method)(path, **options)
        return path

    return save


def _save_h5(model, path):
    try:
        return _save("save", ".h5")(model, path)
    except ValueError:
        # Layers of one name in different models have slots of one name.
        return _save("save", ".h5", include_optimizer=False)(model, path)


def _load(_, path):
    # Keras 3 cannot train on with the optimizer of an .h5 file: it builds that for the model's own variables only.
    usable = keras.__name__ == "tf_keras" or path.suffix != ".h5"
    return keras.models.load_model(path, safe_mode=False, compile=usable)


def _load_weights(build, path):
    model = build()
    status = model.load_weights(path)
    if status is not None:
        status.assert_existing_objects_matched()
    return model


def _tracked(model):
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def _save_tracked(model, path):
    return Path(_tracked(model).save(str(path)))


def _restore_tracked(build, path):
    model = build()
    _tracked(model).read(str(path)).assert_existing_objects_matched()
    return model


WAYS = {
    ".keras": Way(_save("save", ".keras"), _load),
    ".keras by --model": Way(_save("save", ".keras"), _load_weights, by_model=True),
    ".h5": Way(_save_h5, _load),
    ".h5 by --model": Way(_save_h5, _load_weights, by_model=True),
    ".weights.h5": Way(_save("save_weights", ".weights.h5"), _load_weights, by_model=True),
    "tf.train.Checkpoint": Way(_save_tracked, _restore_tracked, by_model=True),
}
if keras.__name__ == "tf_keras":
    WAYS |= {
        "SavedModel": Way(_save("save", "", save_format="tf"), _load),
        "SavedModel by --model": Way(_save("save", "", save_format="tf"), _load_weights, by_model=True),
        "weights.h5": Way(_save("save_weights", "_weights.h5"), _load_weights, by_model=True),
        "TensorFlow weights": Way(_save("save_weights", "", save_format="tf"), _load_weights, by_model=True),
    }
