"""`--model` as the JSON of a config."""

import json

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
def test_a_class_of_the_users_own_asks_for_a_function(tmp_path, framework):
    """tf_keras 2.21 makes a text of it, and raises nothing."""
    keras = pytest.importorskip(framework)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
    model.save_weights(tmp_path / "model.weights.h5")
    config = {**json.loads(model.to_json()), "class_name": "Mine"}
    config.pop("module", None)
    config.pop("registered_name", None)
    (tmp_path / "model.json").write_text(json.dumps(config))
    np.save(tmp_path / "x.npy", np.zeros((9, 3), np.float32))
    with pytest.raises(RepairRefused, match=r"Mine.*--model path\.py:FUNCTION"):
        ckpt_doctor.fix(
            tmp_path / "model.weights.h5",
            model=str(tmp_path / "model.json"),
            data=tmp_path / "x.npy",
            output=tmp_path / "out.weights.h5",
            layers=("*",),
        )
