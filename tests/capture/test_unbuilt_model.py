"""A model whose weights are made only when it is run, so that no value of the file is in them."""

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused

pytestmark = pytest.mark.tensorflow

CODE = """
import keras, numpy as np

class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.fc = keras.layers.Dense(4, use_bias=False)
        self.bn = keras.layers.BatchNormalization()

    def call(self, x, training=False):
        return self.bn(self.fc(x), training=training)

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.block(x, training=training))

def called():
    model = Net()
    model(np.zeros((1, 6), "float32"))
    return model

def built():
    model = Net()
    model.build((None, 6))
    return model
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "subclassed_net.py").write_text(CODE)
    import subclassed_net

    model = subclassed_net.called()
    model.block.bn.gamma.assign(np.linspace(0.5, 2, 4))
    tf.train.Checkpoint(model=model).write("model")
    model.save_weights("model.weights.h5")
    np.save("x.npy", np.random.default_rng(0).normal(2, 3, (128, 6)).astype(np.float32))
    return tmp_path


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
@pytest.mark.parametrize(("path", "output"), [("model", "out"), ("model.weights.h5", "out.weights.h5")])
def test_random_weights_are_not_measured(here, path, output):
    options = {"data": ("x.npy",), "unproven": True, "output": output}
    with pytest.raises(RepairRefused, match=r"had not created \d+ of its weights .*call the model once on data"):
        ckpt_doctor.fix(path, model="subclassed_net.py:built", **options)
    assert not (here / output).exists()
    assert ckpt_doctor.fix(path, model="subclassed_net.py:called", **options).layers
