"""`scan --data`: what no static rule can see, seen by running the model (BN401, BN402)."""

import json

import numpy as np
import pytest

from ckpt_doctor.cli import main
from tests.catalogue import BY_NAME, CALIBRATION, DATA
from tests.independent import read_file, write_bundle

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("models_loaded_once")]

HEALTHY = BY_NAME["keras_v3/healthy.keras"].path
HEALTHY_TF1 = BY_NAME["tf1_layers/full/model.ckpt-400"].path


@pytest.fixture
def found(capsys, monkeypatch, tmp_path):
    """Scan with data; give exit code, and code to layers."""
    monkeypatch.chdir(tmp_path)

    def found(path, data, *options):
        code = main(["scan", str(path), "--data", data, "--format", "json", *options])
        (checkpoint,) = json.loads(capsys.readouterr().out)["checkpoints"]
        table = {}
        for finding in checkpoint["findings"]:
            table.setdefault(finding["rule"], []).extend(finding["layers"])
        return code, table

    return found


@pytest.mark.parametrize("path", [HEALTHY, HEALTHY_TF1], ids=["keras", "tf1"])
def test_a_healthy_model_fits_its_data(found, path):
    assert found(path, DATA) == (0, {})


@pytest.mark.parametrize("path", [HEALTHY, HEALTHY_TF1], ids=["keras", "tf1"])
@pytest.mark.parametrize(
    "wrong", [lambda x: x / 255, lambda x: 1 - x, lambda x: x * 2 - 1], ids=["scale", "sign", "range"]
)
def test_wrong_preprocessing_is_found(found, path, wrong):
    with np.load(CALIBRATION) as arrays:
        np.save("x.npy", wrong(arrays["x"]).astype(np.float32))
    code, table = found(path, "x.npy")
    assert code == 1
    assert table["BN401"]


def test_averaged_weights_with_statistics_of_others_are_found(found, tmp_path):
    """As an average of weights that someone made by hand leaves them: no shadow, no optimizer tells."""
    values = dict(read_file(HEALTHY_TF1).values)
    random = np.random.default_rng(0)
    for name in ("conv1/kernel", "conv2/kernel", "conv3/kernel"):
        if name in values:
            noise = random.normal(0, values[name].std(), values[name].shape)
            values[name] = ((values[name] + noise) / 2).astype(np.float32)
    write_bundle(tmp_path / "averaged", values, meta_of=HEALTHY_TF1)
    code, table = found("averaged", DATA)
    assert code == 1
    assert "bn2" in table["BN401"]
    assert main(["scan", "averaged"]) == 0
    argv = ["fix", "averaged", "--data", DATA, "--layers", "*", "--output", "out"]
    assert main(argv) == 0


def test_the_tolerance_decides(found):
    with np.load(CALIBRATION) as arrays:
        np.save("x.npy", (arrays["x"] * 1.5).astype(np.float32))
    assert "BN401" in found(HEALTHY, "x.npy")[1]
    assert "BN401" not in found(HEALTHY, "x.npy", "--tolerance", "1000")[1]


def test_too_little_data_is_remarked_upon(found):
    with np.load(CALIBRATION) as arrays:
        np.save("x.npy", arrays["x"][:16])
    assert "BN402" in found(HEALTHY, "x.npy", "--batch-size", "2")[1]


def test_sorted_batches_are_remarked_upon(found):
    with np.load(CALIBRATION) as arrays:
        order = np.argsort(arrays["y"], kind="stable")
        x = arrays["x"][order]
    np.save("x.npy", x)
    with open("mine.py", "w") as file:  # noqa: PTH123
        file.write("import numpy as np\ndef batches():\n    x = np.load('x.npy')\n    return np.array_split(x, 40)\n")
    assert "BN402" in found(HEALTHY, "mine.py:batches")[1]
    assert "BN402" not in found(HEALTHY, "x.npy")[1]  # An array is shuffled by the seed.


def test_data_without_a_model_to_run_is_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "bare", {"bn/gamma": np.ones(4, np.float32)})
    assert main(["scan", "bare", "--data", DATA]) == 2
    assert "--model" in capsys.readouterr().err
