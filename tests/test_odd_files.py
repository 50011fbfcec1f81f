"""What is no file, or no numbers: named, and neither waited for nor taken for health."""

import json
import os
import shutil
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor.cli import main
from tests.formats.test_tensor_bundle import make_bundle

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats"
ODD = "is a pipe, a device or a link that leads nowhere; expected a file or a folder"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_json(capsys):
    """Run one command line; return its code and its JSON."""

    def run_json(*argv):
        code = main([*argv, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return run_json


@pytest.mark.parametrize("command", ["scan", "ls", "fix --output new.h5"])
def test_a_link_that_leads_to_itself(command, capsys):
    Path("me").symlink_to("me")
    first, *rest = command.split()
    assert main([first, "me", *rest]) == 2
    assert capsys.readouterr().err == f"ckpt-doctor: me: {ODD}\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_nobody_waits_for_a_pipe(capsys):
    for name in ("checkpoint", "model.index", "model.data-00000-of-00001", "model.h5", "model.keras"):
        os.mkfifo(name)
    assert main(["scan", "."]) == 2
    assert main(["scan", "model.h5"]) == 2
    assert f"model.h5: {ODD}" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("sample", ["tf1_bundle/sample", "saved_model_tf2/sample/variables/variables"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_shard(capsys, sample):
    for file in (FORMATS / sample).parent.iterdir():
        shutil.copyfile(file, file.name)
    shard = Path(f"{Path(sample).name}.data-00000-of-00001")
    shard.unlink()
    os.mkfifo(shard)
    # In a thread of its own: a test that waits for ever names nobody.
    codes = []
    worker = threading.Thread(target=lambda: codes.append(main(["scan", f"{Path(sample).name}.index"])), daemon=True)
    worker.start()
    worker.join(timeout=30)
    assert codes == [2]
    assert f"{shard}: is a pipe or a device; expected a file" in capsys.readouterr().err


def test_checkpoints_without_a_variable_and_with_one(here, run_json):
    """TensorFlow writes both; Keras writes a model without layers."""
    for name, values in (("none", {}), ("one", {"w": np.zeros(2, np.float32)}), ("scalar", {"step": np.int64(3)})):
        make_bundle(here, {key: np.asarray(value) for key, value in values.items()}, name=name)
    with h5py.File("empty.h5", "w") as file:
        file.create_group("model_weights").attrs["layer_names"] = np.array([], "S1")
    with h5py.File("empty.weights.h5", "w") as file:
        file.create_group("layers")
        file.create_group("vars")
    code, document = run_json("scan", ".")
    assert code == 0
    counts = {Path(one["path"]).name: (one["variables"], one["findings"]) for one in document["checkpoints"]}
    assert counts == {
        "none": (0, []),
        "one": (1, []),
        "scalar": (1, []),
        "empty.h5": (0, []),
        "empty.weights.h5": (0, []),
    }
    assert document["coverage"]["files"] == 3 * 2 + 2


def test_statistics_of_text_are_not_judged(capsys):
    with h5py.File("model.h5", "w") as file:
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"bn"]
        names = [f"bn/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
        layer = weights.create_group("bn")
        layer.attrs["weight_names"] = [name.encode() for name in names]
        for name in names:
            layer.create_dataset(name, data=np.array([b"a", b"b"]))
    assert main(["scan", "model.h5"]) == 0
    assert "it holds text, where the layer has numbers" in capsys.readouterr().out
    assert main(["scan", "model.h5", "--strict"]) == 1
    capsys.readouterr()
    assert main(["fix", "model.h5", "--layers", "*", "--method", "debias", "--output", "new.h5"]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err
