"""Files of TensorFlow 2.12 and 2.13 under the groups that today's Keras looks for.

Those two kept layers under `_layer_checkpoint_dependencies/` and numbered them otherwise. No later Keras loads them,
and TensorFlow 2.13 has no wheels for Python 3.12. The weights move to other groups; what is measured is the same.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.graphs.keras_file import groups_of_today


def has_old_groups(checkpoint: Checkpoint) -> bool:
    """Return whether the file has the groups of TensorFlow 2.12 and 2.13."""
    return str(checkpoint.attributes.get("layout", "")).startswith("_layer")


def with_groups_of_today(checkpoint: Checkpoint, config: str, folder: Path) -> Path:
    """Return a copy of the weights, and of the config where the file has one, for Keras to load.

    Args:
        checkpoint: The file; its optimizer and metrics are left out.
        config: The JSON of the model, which says in which group each layer is.
        folder: Where the copy goes.
    """
    described = replace(checkpoint, descriptions=replace(checkpoint.descriptions, keras_config=config))
    groups = groups_of_today(described)
    weights = folder / "today.weights.h5"
    with h5py.File(weights, "w") as file:
        # Keras asks for the variables of every layer, also of those that have none.
        for group in ("", *groups.values()):
            while file.require_group(f"{group}/vars".lstrip("/")) is not None and group:
                group = group.rpartition("/")[0]
        for variable in checkpoint.variables:
            group, _, rest = variable.name.partition("/vars/")
            # Layers that are made of others keep theirs below.
            owner = group
            while owner and owner not in groups:
                owner = owner.rpartition("/")[0]
            if not owner:
                continue
            value = variable.read()
            # HDF5 has no bfloat16; Keras casts to what the model has.
            native = value.astype(np.float32) if value.dtype.kind == "V" else value
            file[f"{groups[owner]}{group[len(owner) :]}/vars/{rest}"] = native
    if checkpoint.layout.weights_only:
        return weights
    archive = folder / "today.keras"
    with zipfile.ZipFile(archive, "w") as copy:
        copy.writestr("config.json", config)
        copy.writestr("metadata.json", json.dumps({"keras_version": checkpoint.attributes.get("keras_version")}))
        copy.write(weights, "model.weights.h5")
    return archive
