"""The last look before a commit: data that the file itself contradicts are refused, and right data never."""

import json
import shutil

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.errors import RepairRefused
from tests.catalogue import BY_NAME, CALIBRATION
from tests.independent import read_file, write_bundle

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("models_loaded_once")]

TF1 = BY_NAME["tf1_layers/full/model.ckpt-400"].path
KERAS = BY_NAME["keras_h5/healthy.h5"].path
WRONG = {"255": lambda x: x * 255, "small": lambda x: x / 255}


@pytest.fixture
def broken_tf1(tmp_path, monkeypatch):
    """Make a healthy model with NaN in the statistics of its last layer; give its path."""
    monkeypatch.chdir(tmp_path)
    values = dict(read_file(TF1).values)
    last = sorted(name for name in values if name.endswith("moving_variance"))[-1]
    values[last] = np.full_like(values[last], np.nan)
    write_bundle(tmp_path / "broken", values, meta_of=TF1)
    return "broken"


@pytest.fixture(params=["tf1", "keras"])
def broken(request, broken_tf1):
    """Make the same of two formats; give its path and that of the output."""
    if request.param == "tf1":
        return broken_tf1, "repaired"
    shutil.copy(KERAS, "broken.h5")
    with h5py.File("broken.h5", "r+") as file:
        found = []
        file.visititems(lambda _, item: found.append(item) if item.name.endswith("moving_variance") else None)
        found[-1][...] = np.nan
    return "broken.h5", "repaired.h5"


def data(name="x.npy", change=lambda x: x, count=None):
    with np.load(CALIBRATION) as arrays:
        np.save(name, change(arrays["x"][:count]).astype(np.float32))
    return name


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_data_of_another_scale_are_refused(broken, change, tmp_path):
    path, output = broken
    given = data(change=change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RepairRefused, match=r"the data contradict the healthy layer .*; nothing was written"):
        ckpt_doctor.fix(path, data=given, output=output)
    assert sorted(tmp_path.iterdir()) == before


def test_right_data_are_not(broken):
    path, output = broken
    result = ckpt_doctor.fix(path, data=data(count=50), output=output)
    assert not [note for note in result.notes if "contradict" in note or "separates the samples" in note]
    assert result.output == output


def test_a_dry_run_says_the_same(broken_tf1, capsys):
    argv = ["fix", broken_tf1, "--data", data(change=WRONG["255"]), "--dry-run"]
    assert main(argv) == 2
    assert "the data contradict the healthy layer " in capsys.readouterr().err


def test_unproven_writes_all_the_same_and_says_so(broken_tf1, capsys):
    given = data(change=WRONG["255"])
    argv = ["fix", broken_tf1, "--data", given, "--output", "repaired", "--unproven", "--format", "json"]
    assert main(argv) == 1
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes[0].startswith("the data contradict the healthy layer ")


def test_a_metric_judges_where_it_is_given(broken_tf1, tmp_path):
    path, output = broken_tf1, "repaired"
    (tmp_path / "mine.py").write_text("def always_good(predict, data):\n    return 1.0\n")
    result = ckpt_doctor.fix(path, data=data(change=WRONG["255"]), output=output, metric="mine.py:always_good")
    assert result.output == output
    assert result.notes[0].startswith("the data contradict the healthy layer ")


def test_what_the_user_asked_to_replace_is_told(broken_tf1):
    path, output = broken_tf1, "repaired"
    result = ckpt_doctor.fix(path, data=data(change=WRONG["255"]), output=output, layers="*")
    assert result.output == output
    assert any(note.startswith("the data contradict the healthy layer ") for note in result.notes)
