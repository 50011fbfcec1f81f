"""Whether an HDF5 file holds data and no model, so that a folder's search passes it over.

A damaged file of Keras may look so: one flipped bit in the name `layer_names` is a sound file without a layout. So a
file holds data only if everything that is looked at can be read and nothing in it is called as Keras calls it.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5_file import Hdf5File
from ckpt_doctor.formats._hdf5_objects import OpenFile, has_attribute
from ckpt_doctor.formats._hdf5_open import groups_below, layout_of
from ckpt_doctor.formats._kept import shared

# What Keras writes to the root and to `model_weights`, then to the group of every layer and to that of the optimizer
# (keras/src/legacy/saving/legacy_h5_format.py).
_ATTRIBUTES = (
    *("keras_version", "model_config", "training_config", "layer_names", "layer_names0", "nb_layers"),
    *("weight_names", "weight_names0", "nb_params"),
)


def holds_data_only(path: str) -> bool:
    """Return whether an HDF5 file is sound and not of Keras: it holds data, and is not a damaged checkpoint."""
    try:
        return shared(Hdf5File.at, path).fact(_holds_data_only)
    except Damaged:
        return False


def _holds_data_only(file: OpenFile) -> bool:
    return layout_of(file) is None and not _has_traces_of_keras(file.h5)


def _has_traces_of_keras(root: Any) -> bool:
    """Return whether the root, a group in it or a group in such a group has an attribute of Keras.

    Raises:
        Damaged: Something of it cannot be read.
    """
    groups = chain([root], (group for _, group in groups_below(root, 2)))
    return any(has_attribute(group, name) for group in groups for name in _ATTRIBUTES)
