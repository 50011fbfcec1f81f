"""The Keras callback: it sees what was just saved, by whatever means, and warns once."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest

from ckpt_doctor import keras_callback
from ckpt_doctor.cli.policy import Policy
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.keras_callback import SickCheckpointWarning, check_saves
from tests.gate.conftest import FIXTURES, copy_bundle


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def watch(path, **options):
        return keras_callback._Watch(path, Policy.of(options))

    return watch


def test_what_was_there_before_training_is_none_of_its_business(watch, tmp_path):
    copy_bundle(True, tmp_path / "old")
    seen = watch(".")
    assert list(seen.news()) == []
    copy_bundle(False, tmp_path / "new")
    assert list(seen.news()) == []


def test_a_sick_save_is_news_once(watch, tmp_path):
    seen = watch(".")
    copy_bundle(True, tmp_path / "first")
    (news,) = seen.news()
    assert news.startswith("the checkpoint that was just saved is broken\n")
    assert "BN301 saver-omits-statistics" in news
    copy_bundle(True, tmp_path / "second")
    assert list(seen.news()) == []
    shutil.copy(FIXTURES / "keras_h5" / "broken.h5", tmp_path / "other.h5")
    assert len(list(seen.news())) == 1


def test_a_file_that_is_written_again_is_looked_at_again(watch, tmp_path):
    seen = watch("model.h5")
    shutil.copy(FIXTURES / "keras_h5" / "healthy.h5", tmp_path / "model.h5")
    assert list(seen.news()) == []
    shutil.copy(FIXTURES / "keras_h5" / "broken.h5", tmp_path / "model.h5")
    os.utime(tmp_path / "model.h5", ns=(1, 1))
    assert len(list(seen.news())) == 1


@pytest.mark.parametrize(
    "path", ["saves/{epoch:02d}-{val_loss:.2f}.ckpt", "saves/*.ckpt", "saves", "saves/07-0.10.ckpt"]
)
def test_where_to_look_is_said_as_to_model_checkpoint(watch, tmp_path, path):
    seen = watch(path)
    prefix = copy_bundle(True, tmp_path / "saves")
    for file in list(prefix.parent.iterdir()):
        file.rename(file.with_name(file.name.replace("model.ckpt-400", "07-0.10.ckpt")))
    assert len(list(seen.news())) == 1


def test_the_policy_of_the_project_counts(watch, tmp_path):
    (tmp_path / ".ckpt-doctor.toml").write_text('ignore = ["BN1", "BN3"]')
    seen = watch(".")
    copy_bundle(True, tmp_path / "first")
    assert list(seen.news()) == []
    assert seen.policy.options.fail_on == "error"


def test_a_wrong_option_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=r"no such option: 'fail_onn'; did you mean fail_on\?"):
        check_saves("saves", fail_onn="note")


@pytest.mark.tensorflow
@pytest.mark.parametrize("stop", [False, True])
def test_a_trainable_only_save_is_caught_while_training(tmp_path, monkeypatch, stop):
    monkeypatch.chdir(tmp_path)
    keras = pytest.importorskip("keras")
    tensorflow = pytest.importorskip("tensorflow")
    import numpy as np

    class TrainableOnly(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            variables = {variable.path: variable.value for variable in self.model.trainable_variables}
            tensorflow.compat.v1.train.Saver(variables).save(None, f"saves/model-{epoch}.ckpt", write_meta_graph=False)

    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(3)(inputs)))
    model.compile("sgd", "mse")
    callbacks = [TrainableOnly(), check_saves("saves", stop=stop)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(np.ones([8, 4]), np.ones([8, 3]), epochs=3, verbose=0, callbacks=callbacks)
    (one,) = [warning for warning in caught if issubclass(warning.category, SickCheckpointWarning)]
    assert "BN101 missing-moving-mean" in str(one.message)
    assert "model-0.ckpt" in str(one.message)
    assert len(history.epoch) == (1 if stop else 3)


@pytest.mark.tensorflow
def test_model_checkpoint_saves_what_it_should(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras = pytest.importorskip("keras")
    import numpy as np

    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    model.compile("sgd", "mse")
    path = "saves/{epoch}.keras"
    callbacks = [keras.callbacks.ModelCheckpoint(path), check_saves(path, every_seconds=0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SickCheckpointWarning)
        model.fit(np.random.default_rng(0).random([8, 4]), np.ones([8, 4]), epochs=2, verbose=0, callbacks=callbacks)
    assert len(list((tmp_path / "saves").iterdir())) == 2


LEGACY = """
import warnings
import numpy
import tensorflow
from tensorflow import keras
from ckpt_doctor.keras_callback import SickCheckpointWarning, check_saves

class TrainableOnly(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        saver = tensorflow.compat.v1.train.Saver(self.model.trainable_variables)
        saver.save(None, f"saves/model-{epoch}.ckpt", write_meta_graph=False)

model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,)), keras.layers.BatchNormalization(name="bn")])
model.compile("sgd", "mse")
data = numpy.ones([8, 4]), numpy.ones([8, 3])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.fit(*data, epochs=2, verbose=0, callbacks=[TrainableOnly(), check_saves("saves")])
print(keras.__name__, sum(issubclass(one.category, SickCheckpointWarning) for one in caught))
"""


@pytest.mark.tensorflow
def test_keras_2_gets_a_callback_of_its_own(tmp_path):
    pytest.importorskip("tf_keras")
    environment = os.environ | {"PYTHONPATH": str(FIXTURES.parent), "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LEGACY],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split()[-1] == "1", done.stderr
    assert "tf_keras" in done.stdout
