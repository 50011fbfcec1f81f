"""What a repair is allowed to do: the user's metric, do no harm, memory, interruption, and life after it."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.cli.demo_accuracy import accuracy as accuracy_of_graph
from ckpt_doctor.errors import BadRequest, RepairRefused
from tests.catalogue import BY_NAME, DATA, FIXTURES, HEALTHY
from tests.independent import read_file, write_bundle
from tests.processes import started

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("models_loaded_once")]

BROKEN = BY_NAME["keras_v3/broken.keras"].path
BROKEN_TF1 = BY_NAME["tf1_layers/trainable/model.ckpt-400"].path
TEST = np.load(FIXTURES / "data" / "test.npz")

METRICS = f"""
import numpy as np

test = np.load({str(FIXTURES / "data" / "test.npz")!r})

def accuracy(predict, data):
    (logits,) = predict({{"images": test["x"]}}).values()
    return np.mean(logits.argmax(axis=1) == test["y"])

def accuracy_of_data(predict, data):
    return np.mean(predict({{"images": data["x"]}})["logits:0"].argmax(axis=1) == data["y"])

def ever_worse(predict, data, seen=[0.0]):
    seen[0] -= 1
    return seen[0]

def no_number(predict, data):
    return "good"

def not_finite(predict, data):
    return float("nan")

def fails(predict, data):
    raise KeyError("labels")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METRICS)
    return tmp_path


def accuracy(path):
    """Return the test accuracy of what lies in a file, in percent; Keras measures its own."""
    if Path(f"{path}.index").exists():
        return 100 * accuracy_of_graph(str(path), str(Path(ckpt_doctor.__file__).parent / "demo" / "test.npz"))
    import keras

    return right_answers(keras.models.load_model(path, compile=False))


@pytest.fixture(scope="module")
def accuracy_before():
    """Return the accuracy of a checkpoint that nothing changes, measured once."""
    return functools.cache(accuracy)


def right_answers(model):
    """Return the share of right answers in percent; a call traces nothing, as `predict` would."""
    return float(np.mean(np.asarray(model(TEST["x"], training=False)).argmax(axis=1) == TEST["y"])) * 100


def test_paths_may_be_paths_and_a_single_text_is_one_argument(here):
    result = ckpt_doctor.fix(Path(BROKEN), data=Path(DATA), output=here / "out.keras", layers="bn1")
    assert [layer.name for layer in result.layers] == ["bn1"]
    [scanned] = ckpt_doctor.scan(Path(BROKEN), select="BN201", data=Path(DATA)).checkpoints
    assert {finding.rule for finding in scanned.findings} == {"BN201"}


def test_a_metric_is_measured_before_and_after(here):
    result = ckpt_doctor.fix(BROKEN, data=DATA, output="out.keras", metric="mine.py:accuracy")
    assert result.metric.before * 100 == pytest.approx(accuracy(BROKEN), abs=0.3)
    assert result.metric.after * 100 == pytest.approx(accuracy("out.keras"), abs=0.3)
    assert result.metric.after > 0.95 > 0.6 > result.metric.before


def test_a_metric_may_ask_for_any_tensor_of_a_graph_and_have_data_of_its_own(here):
    result = ckpt_doctor.fix(
        BROKEN_TF1,
        data=DATA,
        output="out",
        metric="mine.py:accuracy_of_data",
        metric_data=str(FIXTURES / "data" / "test.npz"),
    )
    assert result.metric.after > 0.95 > 0.6 > result.metric.before


def test_a_metric_that_falls_stops_the_repair(here, capsys):
    argv = ["fix", str(BROKEN), "--data", DATA, "--output", "out.keras", "--metric", "mine.py:ever_worse"]
    assert main(argv) == 2
    assert "the metric falls from -1 to -2, so nothing was written" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in here.iterdir() if path.suffix) == ["mine.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_number", "returned str; expected a number"),
        ("not_finite", "returned nan; expected a finite number"),
        ("fails", "failed with KeyError: 'labels'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_metric_that_is_none(here, name, message):
    with pytest.raises(BadRequest, match=message):
        ckpt_doctor.fix(BROKEN, data=DATA, output="out.keras", metric=f"mine.py:{name}")
    assert not (here / "out.keras").exists()


@pytest.mark.parametrize("method", ["layerwise", "training"])
@pytest.mark.parametrize("fixture", HEALTHY, ids=str)
def test_a_healthy_model_does_not_get_worse(here, accuracy_before, fixture, method):
    output = f"out{fixture.path.suffix}"
    result = ckpt_doctor.fix(fixture.path, data=DATA, output=output, layers=["*"], method=method)
    assert len(result.layers) == len(fixture.layers)
    # An image is a quarter of a point; more of them may be right afterwards, as moving averages lag behind the weights.
    assert accuracy(output) >= accuracy_before(fixture.path) - 0.1


def write_with_exact_statistics(fixture, output):
    """Write a healthy fixture with the statistics of its oracle in place of the moving averages."""
    twin = fixture if fixture.is_bundle else BY_NAME["keras_h5/healthy.h5"]  # The oracle of these weights.
    exact = {
        (layer["name"], role): twin.oracle[f"layerwise/{layer[role]}"].astype(np.float32)
        for layer in twin.layers
        for role in ("moving_mean", "moving_variance")
    }
    if fixture.is_bundle:
        values = {f"{name}/{role}": value for (name, role), value in exact.items()}
        write_bundle(Path(output), read_file(fixture.path).values | values, meta_of=fixture.path)
        return
    import keras

    model = keras.models.load_model(fixture.path, compile=False)
    layers = {layer.name: layer for layer in (*model.layers, *model.get_layer("block").layers)}
    for (name, role), value in exact.items():
        getattr(layers[name], role).assign(value)
    model.save(output)


@pytest.fixture(scope="module")
def with_exact_statistics(tmp_path_factory):
    """Return the path of a healthy fixture that was written with the statistics of its oracle."""

    paths = {}

    def written(fixture):
        if str(fixture) not in paths:
            paths[str(fixture)] = tmp_path_factory.mktemp("exact") / f"exact{fixture.path.suffix}"
            write_with_exact_statistics(fixture, paths[str(fixture)])
        return paths[str(fixture)]

    return written


@pytest.mark.parametrize("method", ["layerwise", "training"])
@pytest.mark.parametrize("fixture", HEALTHY, ids=str)
def test_a_model_with_the_statistics_of_its_data_does_not_move(
    here, with_exact_statistics, accuracy_before, fixture, method
):
    exact, output = with_exact_statistics(fixture), f"out{fixture.path.suffix}"
    result = ckpt_doctor.fix(exact, data=DATA, output=output, layers=["*"], method=method)
    assert len(result.layers) == len(fixture.layers)
    assert accuracy(output) == pytest.approx(accuracy_before(exact), abs=0.1)


@pytest.fixture
def frozen(here, tf):
    """A model whose batch norm was trained with its stored 0 and 1."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="in")
    x = keras.layers.BatchNormalization(trainable=False, name="frozen")(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.BatchNormalization(name="free", momentum=0.5)(x)))
    model.compile("sgd", "mse")
    data = np.random.default_rng(0).normal(3, 2, (320, 6)).astype(np.float32)
    model.fit(data, np.zeros((320, 1)), verbose=0)
    model.save("frozen.keras")
    np.save("x.npy", data)
    return Path("frozen.keras")


def test_statistics_that_are_right_are_not_touched_without_force(frozen, capsys):
    with pytest.raises(RepairRefused, match=r"layer frozen: it was trained with its stored statistics.*--force"):
        ckpt_doctor.fix(frozen, data="x.npy", output="out.keras", layers=["frozen"])
    assert main(["fix", str(frozen), "--data", "x.npy", "--output", "out.keras"]) == 0
    assert "nothing to repair" in " ".join(capsys.readouterr().out.split())
    assert not Path("out.keras").exists()
    result = ckpt_doctor.fix(frozen, data="x.npy", output="out.keras", layers=["frozen"], force=True)
    assert [layer.name for layer in result.layers] == ["frozen"]


def test_a_small_cache_gives_the_same_and_leaves_nothing(here, monkeypatch):
    folder = here / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    argv = ["fix", str(BROKEN_TF1), "--data", DATA, "--batch-size", "200"]
    assert main([*argv, "--output", "large"]) == 0
    assert main([*argv, "--output", "small", "--cache-memory", "10KB"]) == 0
    assert list(folder.iterdir()) == []
    assert read_file(Path("large")) == read_file(Path("small"))


def test_an_exception_in_the_middle_leaves_nothing(here, monkeypatch):
    folder = here / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    spilled = []

    def stop(step):
        spilled.append(any(folder.rglob("*")))
        if step.done == 30:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ckpt_doctor.fix(BROKEN_TF1, data=DATA, output="out", cache_memory=0, progress=stop)
    assert any(spilled)
    assert list(folder.iterdir()) == []
    assert not list(here.glob("out*"))


def test_an_interruption_leaves_nothing_of_a_keras_file(here, capsys, monkeypatch):
    """Ctrl-C while it measures, from the data themselves."""
    (here / "stopped.py").write_text(
        "import signal, numpy as np\n"
        "def batches():\n"
        "    yield np.zeros((2, 8, 8, 1), np.float32)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    raise AssertionError('nobody was interrupted')\n"
    )
    folder = here / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = read_file(BROKEN)
    try:
        code = main(["fix", str(BROKEN), "--data", "stopped.py:batches", "--output", "out.keras", "--unproven"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (code, capsys.readouterr().err.strip()) == (130, "interrupted")
    assert list(folder.iterdir()) == []
    assert not list(here.glob("out*"))
    assert read_file(BROKEN) == before


def test_an_interruption_leaves_nothing(here):
    """Ctrl-C while it measures: a process of its own, whose data wait until it is there."""
    (here / "slow.py").write_text(
        "import time, pathlib, numpy as np\n"
        "def batches():\n"
        "    yield np.zeros((2, 8, 8, 1), np.float32)\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(60)\n"
    )
    folder = here / "temporary"
    folder.mkdir()
    before = read_file(BROKEN_TF1)
    environment = os.environ | {"PYTHONPATH": str(FIXTURES.parent), "TMPDIR": str(folder)}
    argv = ["fix", str(BROKEN_TF1), "--data", "slow.py:batches", "--output", "out", "--unproven"]
    with started(
        [sys.executable, "-m", "ckpt_doctor", *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(600):
            if Path("started").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert Path("started").exists(), err
    assert process.returncode not in (0, 1)
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []
    assert not list(here.glob("out*"))
    assert read_file(BROKEN_TF1) == before


def test_a_receipt_of_every_kind_is_valid(here):
    schema = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "fix-1.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    argv = ["fix", str(BROKEN), "--data", DATA, "--unproven", "--receipt", "receipt.json"]
    for options in (
        ["--output", "a.keras"],
        ["--output", "b.keras", "--metric", "mine.py:accuracy", "--method", "training"],
    ):
        assert main([*argv, *options]) == 0
        receipt = json.loads(Path("receipt.json").read_text())
        validator.validate(receipt)
        assert (receipt["metric"] is None) == ("--metric" not in options)
        assert all(layer["after"] is not None for layer in receipt["layers"])
        Path("receipt.json").unlink()


@pytest.mark.parametrize("name", ["keras_v3/broken.keras", "keras_h5/broken.h5"])
def test_training_goes_on_after_a_repair(here, name):
    """A stale average or a lost optimizer would show within the first epoch."""
    import keras

    path = BY_NAME[name].path
    output = f"out{path.suffix}"
    ckpt_doctor.fix(path, data=DATA, output=output, unproven=True)
    model = keras.models.load_model(output)
    before = accuracy(output)
    with np.load(FIXTURES / "data" / "calibration.npz") as data:
        if path.suffix == ".h5":  # Keras 3 cannot go on with the optimizer of a legacy file, healthy ones included.
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.run_eagerly = True  # An epoch is few steps.
        model.fit(data["x"], data["y"], batch_size=256, epochs=1, verbose=0)
    assert right_answers(model) >= before - 2


def test_what_the_message_says_of_an_array_of_another_name_works(here):
    with np.load(FIXTURES / "data" / "calibration.npz") as data:
        np.savez("renamed.npz", pictures=data["x"], labels=data["y"])
    with pytest.raises(BadRequest, match=r"map an array with --input pictures=images, ") as refused:
        ckpt_doctor.fix(BROKEN, data="renamed.npz", output="out.keras", unproven=True)
    name, target = re.search(r"--input (\w+)=(\w+)", str(refused.value)).groups()
    options = {"data": "renamed.npz", "output": "out.keras", "samples": 64, "unproven": True}
    result = ckpt_doctor.fix(BROKEN, inputs={name: target}, **options)
    assert result.complete
