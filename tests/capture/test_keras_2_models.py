"""Models of Keras 2, saved in all ways, each held against the float64 oracle of `benchmarks/trial_keras.py`.

They run in a process of their own: the trial is of one Keras or of the other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[2]
NAMES = ["renorm", "subclassed Model", "Lambda"]


def test_models_of_keras_2_are_repaired_in_every_form_and_train_on():
    pytest.importorskip("tf_keras")
    trial = [sys.executable, "-W", "ignore", "benchmarks/trial_keras.py", *NAMES, "--ways", "all", "--batches", "33"]
    done = subprocess.run(
        trial,
        cwd=ROOT,
        env={**os.environ, "TRIAL_KERAS": "tf_keras", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    counts = {verdict: sum(f" {verdict} " in line for line in lines) for verdict in ("repaired", "refused", "unsaved")}
    # A class of the user's own is not saved as .h5; Lambda layers do not run from .keras and .h5.
    assert counts == {"repaired": 26, "refused": 2, "unsaved": 2}, done.stdout
