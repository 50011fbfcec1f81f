"""Models of Keras 2, saved in all ways, each held against the float64 oracle of `benchmarks/trial_keras.py`.

The trial is of one Keras or of the other, whichever it finds when it is loaded: for this one it is loaded once more,
under the names that it has as a program.
"""

import importlib
import sys
from pathlib import Path

import pytest

# Saving as HDF5 and loading without the optimizer are remarked on.
pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
MODULES = ["trial_keras", "trial_models", "trial_oracle", "trial_ways"]

# Every way, with a model that Keras' own code rebuilds.
WAYS = (
    "SavedModel",
    "SavedModel by --model",
    "TensorFlow weights",
    "tf.train.Checkpoint",
    "weights.h5",
    ".weights.h5",
    ".h5",
    ".h5 by --model",
    ".keras",
    ".keras by --model",
)
# How a file names the variables of a class of the user's own; a SavedModel names them in one way, whatever runs it.
WAYS_OF_CLASSES = tuple(way for way in WAYS if way != "SavedModel by --model")
# Where code comes from: the file, the graph, the user. How the variables are named is that of `renorm`.
WAYS_OF_CODE = ("SavedModel", ".h5", ".keras", ".keras by --model")
EXCEPTIONS = {
    # Not saved as .h5 at all.
    ("subclassed Model", ".h5"): "unsaved",
    ("subclassed Model", ".h5 by --model"): "unsaved",
    # The code in the file does not run unasked.
    ("Lambda", ".h5"): "refused",
    ("Lambda", ".keras"): "refused",
}


@pytest.fixture(scope="module")
def trial():
    pytest.importorskip("tf_keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setenv("TRIAL_KERAS", "tf_keras")
        yield importlib.import_module("trial_keras")
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def truths():
    """Return what the oracle says of each model, which it is asked once whatever ways there are to save it."""
    return {name: {} for name in ("renorm", "subclassed Model", "Lambda")}


def test_these_are_all_ways(trial):
    assert trial.keras.__name__ == "tf_keras"
    assert set(trial.WAYS) == set(WAYS)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("renorm", way) for way in WAYS),
        *(("subclassed Model", way) for way in WAYS_OF_CLASSES),
        *(("Lambda", way) for way in WAYS_OF_CODE),
    ],
)
def test_a_model_of_keras_2_is_repaired_in_every_form_and_trains_on(trial, truths, name, way, tmp_path):
    outcome = trial.try_model(name, trial.CASES[name], tmp_path, [33], way, truths[name])
    assert outcome.verdict == EXCEPTIONS.get((name, way), "repaired"), outcome
