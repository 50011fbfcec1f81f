"""What a metric is measured on: every form of `--data`, read as it is, labels and order included."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.capture.data import read_unmatched
from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import DataOptions
from tests.catalogue import BY_NAME, DATA

pytestmark = pytest.mark.usefixtures("models_loaded_once")

BROKEN = BY_NAME["tf1_layers/trainable/model.ckpt-400"].path
IMAGE = ModelInput("images", "images:0", "float32", (None, 8, 8, 1))
NUMBERS = np.arange(24.0).reshape(6, 4)
LABELS = np.array([5, 0, 4, 1, 3, 2])

FUNCTIONS = """
import numpy as np
import tensorflow as tf

def mine():
    yield "whatever"
    yield "the metric understands"

def fails():
    raise RuntimeError("no disk today")

def number(record):
    return tf.reshape(tf.io.decode_raw(record, tf.float64), [4])

def pair(record):
    return number(record), number(record)[0]

def table(record):
    return {"x": number(record), "rest": pair(record)}

def uneven(record):
    return tf.range(tf.cast(number(record)[0], tf.int64))

def mean_of_all(predict, data):
    arrays = data.values() if isinstance(data, dict) else [data]
    return np.mean([np.asarray(array, np.float64).mean() for array in arrays])

def kinds(predict, data):
    assert all(type(array) is np.ndarray for array in data.values()), data
    assert list(data) == ["images", "labels"]
    return 1.0
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The same numbers in every form of file."""
    monkeypatch.chdir(tmp_path)
    np.savez("both.npz", x=NUMBERS, y=LABELS)
    np.savez_compressed("packed.npz", x=NUMBERS, y=LABELS)
    Path("packed.npz").rename("BOTH.NPZ")
    np.save("x.npy", NUMBERS)
    np.save("turned.npy", np.asfortranarray(NUMBERS))
    np.save("one.npy", np.float64(7))
    with h5py.File("both.h5", "w") as file:
        file["deep/x"] = NUMBERS
        file["y"] = LABELS
        file["words"] = [b"a", b"bc"]
        file["single"] = 7.0
    with h5py.File("alone.hdf5", "w") as file:
        file["x"] = NUMBERS
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


def read(*arguments, entries=(IMAGE,), **options):
    return read_unmatched("--metric-data", DataOptions(data=arguments, **options), lambda: entries)


FORMS = [
    (["both.npz"], {"x": NUMBERS, "y": LABELS}),
    (["both.npz[y]"], {"y": LABELS}),
    (["BOTH.NPZ[x]"], {"x": NUMBERS}),
    (["labels=both.npz[y]"], {"labels": LABELS}),
    (["x.npy"], {"": NUMBERS}),
    (["turned.npy"], {"": NUMBERS}),
    (["one.npy"], {"": np.float64(7)}),
    (["images=x.npy", "both.npz[y]"], {"images": NUMBERS, "y": LABELS}),
    (["both.h5[deep/x]"], {"deep/x": NUMBERS}),
    (["both.h5[/deep/x]"], {"deep/x": NUMBERS}),
    (["images=both.h5[deep/x]"], {"images": NUMBERS}),
    (["both.h5[single]"], {"single": np.float64(7)}),
    (["alone.hdf5"], {"x": NUMBERS}),
    (["images=alone.hdf5"], {"images": NUMBERS}),
]


@pytest.mark.parametrize(("arguments", "expected"), FORMS, ids=[" ".join(one[0]) for one in FORMS])
def test_files_give_their_arrays_by_name_in_their_order(here, arguments, expected):
    # Neither the seed nor a limit on the samples of the estimate concerns a metric.
    found = read(*arguments, seed=3, samples=2, batch_size=2)
    assert list(found) == list(expected)
    for name, array in found.items():
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, expected[name])


def test_all_datasets_of_a_file_may_be_wanted(here):
    found = read("both.h5")
    assert set(found) == {"deep/x", "y", "words", "single"}
    assert found["words"].tolist() == [b"a", b"bc"]


def test_what_is_large_is_read_whole(here, monkeypatch):
    monkeypatch.setattr("ckpt_doctor.capture.arrays._IN_MEMORY", 10)
    found = read("both.npz")
    np.testing.assert_array_equal(found["x"], NUMBERS)
    np.testing.assert_array_equal(found["y"], LABELS)


def test_an_archive_is_read_after_its_file_is_gone(here):
    found = read("x.npy", "y=both.h5[y]")
    Path("x.npy").unlink()
    Path("both.h5").unlink()
    np.testing.assert_array_equal(found["y"], LABELS)


WRONG = [
    (["gone.npz"], "--metric-data gone.npz: no such file: gone.npz"),
    (["both.npz[z]"], "--metric-data both.npz[z]: both.npz has no array 'z'; it has x (6, 4), y (6,)"),
    (["both.h5[z]"], "--metric-data both.h5[z]: both.h5 has no array 'z'; it has deep/x (6, 4)"),
    (["a=both.h5"], "--metric-data a=both.h5: both.h5 holds deep/x (6, 4), single (), words (2,), y (6,); choose one"),
    (["a=both.npz"], "--metric-data a=both.npz: both.npz holds x (6, 4), y (6,); choose one with"),
    (["both.npz", "x=x.npy"], "--metric-data x=x.npy: x is already fed"),
    (["mine.py"], "--metric-data mine.py: mine.py: unsupported data format"),
    (["mine.py:fails"], "--metric-data mine.py:fails: failed with RuntimeError: no disk today"),
    (["mine.py:absent"], "--metric-data mine.py:absent: mine.py has no function 'absent'"),
    (
        ["mine.py:mine", "x.npy"],
        "--metric-data mine.py:mine: feeds the whole model and cannot be combined with other --met",
    ),
    (
        ["a.tfrecord"],
        "--metric-data a.tfrecord: a record is bytes; pass the function that reads it with --parse MODULE:FUNCTION",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(one[0]) for one in WRONG])
def test_what_cannot_be_read_is_refused_by_the_name_of_the_option(here, arguments, message):
    pytest.importorskip("tensorflow")
    with pytest.raises(BadRequest, match=re.escape(message)):
        read(*arguments)


def test_objects_are_not_unpickled(here):
    np.savez("objects.npz", x=np.array([None]))
    with pytest.raises(BadRequest, match=r"--metric-data objects.npz: .* Object arrays cannot be loaded"):
        read("objects.npz")


@pytest.mark.tensorflow
def test_a_function_gives_what_it_gives(here):
    assert list(read("mine.py:mine")) == ["whatever", "the metric understands"]


@pytest.fixture
def records(here, tf):
    for part in range(2):
        with tf.io.TFRecordWriter(f"part-{part}.tfrecord") as writer:
            for row in NUMBERS[part * 3 : part * 3 + 3]:
                writer.write(row.tobytes())


@pytest.mark.tensorflow
def test_records_are_what_parse_returns_all_of_them_stacked(records):
    options = {"batch_size": 4, "samples": 2}
    np.testing.assert_array_equal(read("part-*.tfrecord", parse="mine.py:number", **options), NUMBERS)
    rows, firsts = read("part-*.tfrecord", parse="mine.py:pair", **options)
    np.testing.assert_array_equal(rows, NUMBERS)
    assert firsts.tolist() == [0, 4, 8, 12, 16, 20]
    table = read("part-*.tfrecord", parse="mine.py:table", **options)
    assert list(table) == ["x", "rest"]
    np.testing.assert_array_equal(table["x"], NUMBERS)
    np.testing.assert_array_equal(table["rest"][1], firsts)


@pytest.mark.tensorflow
def test_records_that_do_not_stack_are_refused(records):
    with pytest.raises(BadRequest, match=r"--metric-data part-\*.tfrecord: "):
        read("part-*.tfrecord", parse="mine.py:uneven", batch_size=1)
    with pytest.raises(BadRequest, match=r"--metric-data gone-\*.tfrecord: no such file"):
        read("gone-*.tfrecord", parse="mine.py:number")
    Path("empty.tfrecord").write_bytes(b"")
    with pytest.raises(BadRequest, match=r"--metric-data empty.tfrecord: the data contain no samples"):
        read("empty.tfrecord", parse="mine.py:number")


@pytest.fixture
def images(here, tf):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    Path("png").mkdir()
    for number, image in enumerate(pixels):
        Path(f"png/{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    return pixels


@pytest.mark.tensorflow
def test_images_come_by_the_name_of_the_input_in_the_order_of_their_names(images):
    found = read("png", seed=7, samples=2, batch_size=2, image_scale=(0.5, -1))
    assert list(found) == ["images"]
    np.testing.assert_array_equal(found["images"], images.astype(np.float32) * np.float32(0.5) - 1)
    with pytest.raises(BadRequest, match="--metric-data png: images feed a single input; the model has 2"):
        read("png", entries=(IMAGE, IMAGE))


@pytest.mark.tensorflow
def test_every_form_reaches_the_metric_of_a_repair(images, records):
    """The metric is the mean of all that it gets, so its value says what that was."""
    for argument, expected, options in (
        ("both.npz[y]", LABELS.mean(), {}),
        ("both.npz", (LABELS.mean() + NUMBERS.mean()) / 2, {}),
        ("labels=both.h5[y]", LABELS.mean(), {}),
        (["both.h5[deep/x]", "both.npz[y]"], (LABELS.mean() + NUMBERS.mean()) / 2, {}),
        ("part-*.tfrecord", NUMBERS.mean(), {"parse": "mine.py:number"}),
        ("png", images.astype(np.float64).mean() / 2, {"image_scale": "0.5,0"}),
    ):
        options |= {"metric": "mine.py:mean_of_all", "metric_data": argument, "dry_run": True, "samples": 64}
        result = ckpt_doctor.fix(BROKEN, data=DATA, **options)
        assert result.metric.before == result.metric.after == pytest.approx(expected, rel=1e-6), argument


@pytest.mark.tensorflow
def test_without_data_of_its_own_a_metric_gets_those_of_the_repair(here):
    from tests.catalogue import CALIBRATION

    with np.load(CALIBRATION) as arrays:
        x, y = arrays["x"][:64], arrays["y"][:64]
    np.savez("train.npz", images=x, labels=y)
    options = {"dry_run": True, "samples": 32}
    result = ckpt_doctor.fix(BROKEN, data="train.npz", metric="mine.py:kinds", **options)
    assert result.metric.after == 1.0
    result = ckpt_doctor.fix(BROKEN, data="train.npz[images]", metric="mine.py:mean_of_all", **options)
    assert result.metric.after == pytest.approx(x.mean(dtype=np.float64), rel=1e-6)


@pytest.mark.tensorflow
def test_the_command_takes_it_more_than_once(images, here, capsys):
    argv = ["fix", str(BROKEN), "--data", DATA, "--samples", "64", "--dry-run", "--metric", "mine.py:mean_of_all"]
    assert main([*argv, "--metric-data", "both.h5[deep/x]", "--metric-data", "labels=both.npz[y]"]) == 0
    assert f"{(LABELS.mean() + NUMBERS.mean()) / 2:.4g}" in capsys.readouterr().out
    assert main([*argv, "--metric-data", "both.npz[z]"]) == 2
    assert capsys.readouterr().err.startswith("ckpt-doctor: --metric-data both.npz[z]: both.npz has no array 'z'")
