"""Layers that trained alike, and those that only seem to have."""

import numpy as np

from ckpt_doctor.analysis import analyse
from ckpt_doctor.formats import open_checkpoint
from tests.catalogue import FIXTURES
from tests.independent import read_file, write_bundle

SOURCE = FIXTURES / "training_modes" / "adam_batch"


def test_nothing_is_told_of_a_layer_that_no_step_has_touched(tmp_path):
    """A frozen layer runs on its stored statistics, and a SavedModel does not say that it is frozen."""
    values = {name: value for name, value in read_file(SOURCE).values.items() if not name.startswith("fc1/bias/")}
    values["fc1/bias"] = np.zeros_like(values["fc1/bias"])

    def told():
        write_bundle(tmp_path / "model", values, meta_of=SOURCE)
        layers = analyse(open_checkpoint(tmp_path / "model")).inventory.layers
        return {layer.name: layer.trained and layer.trained.of for layer in layers}

    assert told() == {"bn1": "bn2", "bn2": "bn2"}
    values["bn1/gamma"], values["bn1/beta"] = np.ones_like(values["bn1/gamma"]), np.zeros_like(values["bn1/beta"])
    assert told() == {"bn1": None, "bn2": "bn2"}
