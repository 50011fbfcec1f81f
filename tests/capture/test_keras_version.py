"""What is said where a file is of a newer Keras than the one that is installed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpt_doctor.capture.keras_models import _age
from ckpt_doctor.formats import open_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("installed", "advice"), [("3.12.4", "upgrade with: pip install -U keras"), ("3.15.1", ""), ("3.20.0", "")]
)
def test_a_file_of_a_newer_keras_says_so(installed, advice):
    checkpoint = open_checkpoint(FIXTURES / "keras_v3" / "broken.keras")
    checkpoint = replace(checkpoint, attributes={**checkpoint.attributes, "keras_version": "3.15.1"})
    assert _age(checkpoint, SimpleNamespace(__version__=installed)).endswith(advice)
    assert bool(_age(checkpoint, SimpleNamespace(__version__=installed))) == bool(advice)
