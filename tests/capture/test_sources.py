"""Data that come as images, records or from a user's function: what a repair makes of each form, and of what is wrong.

All forms hold the same samples, so each must give the statistics that the array gives.
"""

import json
import shutil

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import BadRequest
from tests.catalogue import BY_NAME
from tests.independent import read_file

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("models_loaded_once")]

BROKEN = BY_NAME["tf1_layers/trainable/model.ckpt-400"].path
LAYER = "bn1/moving_variance"

FUNCTIONS = """
import numpy as np
import tensorflow as tf

x = np.load("x.npy")

def dataset():
    return tf.data.Dataset.from_tensor_slices(x).batch(20)

def labelled_dataset():
    return tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(20)

def dataset_of_dicts():
    return tf.data.Dataset.from_tensor_slices({"images": x}).batch(20)

def generator():
    for start in range(0, len(x), 30):
        yield x[start : start + 30]

def arrays():
    return [x[:1], x[1:40], x[40:]]

def tuples():
    return [(x[:50], np.zeros(50)), (x[50:], None)]

def dicts():
    return [{"images": x[:50]}, {"images": x[50:], "labels": None}]

def parse(record):
    return tf.reshape(tf.io.decode_raw(record, tf.float32), (8, 8, 1))

def parse_to_dict(record):
    return {"images": parse(record)}

def fails():
    raise RuntimeError("no disk today")

def fails_on_the_way():
    yield x[:10]
    raise RuntimeError("the stream ended")

def nothing():
    return []

def yields_nothing():
    return iter(())

def a_number():
    return 7

def too_flat():
    return [x[:10].reshape(10, 64)]

def of_words():
    return [np.full((3, 8, 8, 1), "word")]

def other_names():
    return [{"left": x[:5], "right": x[:5]}]

def not_finite():
    return [np.full((3, 8, 8, 1), np.nan, np.float32)]

def zeros():
    return [np.zeros((30, 8, 8, 1), np.float32)]

def whole_numbers():
    return [(x[:50] * 16).astype(np.uint8)]

not_a_function = 3
"""


@pytest.fixture(scope="module")
def every_form(tmp_path_factory):
    """A folder with 100 samples in every form."""
    import tensorflow as tf

    here = tmp_path_factory.mktemp("every_form")
    random = np.random.default_rng(0)
    # Whole numbers of 1/255, so that images can hold them.
    pixels = random.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    x = pixels.astype(np.float32) / 255
    np.save(here / "x.npy", x)
    np.savez(here / "named.npz", images=x, labels=np.zeros(100))
    np.savez(here / "other.npz", x=x, y=np.zeros(100))
    with h5py.File(here / "x.h5", "w") as file:
        file["deep/x"] = x
        file["deep/y"] = np.zeros(100)
    for kind in ("png", "jpg"):
        (here / kind / "inside").mkdir(parents=True)
    for number, image in enumerate(pixels):
        folder = "png/inside" if number % 2 else "png"
        (here / folder / f"{number:03}.png").write_bytes(tf.io.encode_png(image).numpy())
        flat = np.full((16, 16, 1), image.mean(), np.uint8)
        (here / "jpg" / f"{number:03}.jpg").write_bytes(tf.io.encode_jpeg(flat).numpy())
    for part in range(2):
        with tf.io.TFRecordWriter(str(here / f"part-{part}.tfrecord")) as writer:
            for sample in x[part * 50 : part * 50 + 50]:
                writer.write(sample.tobytes())
    (here / "mine.py").write_text(FUNCTIONS)
    return here


@pytest.fixture
def here(every_form, tmp_path, monkeypatch):
    """Such a folder to work in."""
    shutil.copytree(every_form, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def estimate(here):
    """Repair with some data; give the result and a variance."""

    def estimate(*data, **options):
        options = {"output": "out", "overwrite": True} | options
        result = ckpt_doctor.fix(BROKEN, data=list(data), **options)
        return result, read_file(here / "out").values[LAYER]

    return estimate


IMAGES = {"image_scale": f"{1 / 255},0"}
RECORDS = {"parse": "mine.py:parse"}
FORMS = [
    ("named.npz", {}),
    ("other.npz[x]", {}),
    ("images=other.npz[x]", {}),
    ("other.npz", {"inputs": {"x": "images"}}),
    ("other.npz", {"inputs": {"x": "images:0"}}),
    ("x.h5[deep/x]", {}),
    ("images=x.h5[deep/x]", {}),
    ("png", IMAGES),
    ("png", IMAGES | {"image_size": "8x8"}),
    ("part-*.tfrecord", RECORDS),
    ("part-*.tfrecord", {"parse": "mine:parse_to_dict"}),
    *((f"mine.py:{name}", {}) for name in ("dataset", "labelled_dataset", "dataset_of_dicts", "generator")),
    *((f"mine.py:{name}", {}) for name in ("arrays", "tuples", "dicts")),
]


def test_every_form_gives_the_same_statistics(estimate, here, monkeypatch):
    # A module by its name; nothing of it may stay for the next test.
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    _, expected = estimate("x.npy")
    for argument, options in FORMS:
        result, found = estimate(argument, **options)
        assert result.samples == 100, argument
        np.testing.assert_allclose(found, expected, rtol=2e-6, err_msg=f"{argument} {options}")
    __import__("sys").modules.pop("mine", None)


def test_a_users_batches_stay_as_they_are(estimate):
    assert estimate("mine.py:arrays")[0].batches == 3
    assert estimate("x.npy", batch_size=30)[0].batches == 4


@pytest.mark.parametrize("argument", ["x.npy", "mine.py:arrays", "png", "part-*.tfrecord"])
def test_the_number_of_samples_can_be_capped(estimate, argument):
    result, _ = estimate(argument, samples=33, batch_size=10, **RECORDS, **IMAGES)
    assert result.samples == 33
    full, _ = estimate(argument, samples=1000, **RECORDS, **IMAGES)
    assert full.samples == 100


@pytest.mark.parametrize("argument", ["x.npy", "png", "x.h5[deep/x]"])
def test_the_seed_decides_which_samples_are_taken(estimate, argument):
    def taken(seed):
        return estimate(argument, samples=20, seed=seed, **IMAGES)[1].tobytes()

    assert taken(1) == taken(1)
    assert taken(1) != taken(2)


def test_images_are_resized(estimate):
    result, _ = estimate("jpg", **IMAGES)  # To what the model takes.
    assert result.samples == 100
    with pytest.raises(BadRequest, match=r"shape|8|16"):
        estimate("jpg", image_size="16x16")
    with pytest.raises(BadRequest, match="--image-size 16: must be HEIGHTxWIDTH"):
        estimate("jpg", image_size="16")
    with pytest.raises(BadRequest, match="--image-scale 1: must be A,B"):
        estimate("jpg", image_scale="1")


def test_images_that_are_none(estimate, here):
    (here / "png" / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadRequest, match=r"broken.png: cannot be decoded as an image"):
        estimate("png")
    (here / "empty").mkdir()
    with pytest.raises(BadRequest, match=r"no .png or .jpg images"):
        estimate("empty")


WRONG = [
    ("mine.py:fails", {}, r"mine.py:fails: failed with RuntimeError: no disk today"),
    ("mine.py:fails_on_the_way", {}, r"fails_on_the_way: failed with RuntimeError: the stream ended"),
    ("mine.py:nothing", {}, r"the data contain no samples"),
    ("mine.py:yields_nothing", {}, r"the data contain no samples"),
    ("mine.py:a_number", {}, r"returned int; expected a tf.data.Dataset or an iterable"),
    ("mine.py:too_flat", {}, r"shape \(10, 64\); the input images takes \(\?, 8, 8, 1\)"),
    ("mine.py:of_words", {}, r"is of type <U4; the input images takes float32"),
    ("mine.py:other_names", {}, r"a batch holds left, right, but the model needs images; map it with --input"),
    ("mine.py:not_finite", {}, r"NaN or infinite"),
    ("mine.py:absent", {}, r"has no function 'absent'"),
    ("mine.py:not_a_function", {}, r"has no function 'not_a_function'"),
    ("gone.py:f", {}, r"no such file: gone.py"),
    ("no_such_module:f", {}, r"importing no_such_module failed: ModuleNotFoundError"),
    ("part-*.tfrecord", {}, r"pass the function that reads it with --parse MODULE:FUNCTION"),
    ("gone-*.tfrecord", RECORDS, r"no such file"),
    ("part-*.tfrecord", {"parse": "mine.py:absent"}, r"has no function 'absent'"),
    ("x.npy", {"samples": 0}, r"--samples 0: must be a whole number of 1 or more"),
    ("x.txt", {}, r"no such file: x.txt"),
    ("mine.py", {}, r"mine.py: unsupported data format"),
]


@pytest.mark.parametrize(("argument", "options", "message"), WRONG, ids=[f"{one[0]}-{len(one[1])}" for one in WRONG])
def test_what_is_wrong_is_said_and_nothing_is_written(estimate, here, argument, options, message):
    before = sorted(path.name for path in here.rglob("*") if "__pycache__" not in path.parts)
    with pytest.raises(BadRequest, match=message):
        estimate(argument, **options)
    assert sorted(path.name for path in here.rglob("*") if "__pycache__" not in path.parts) == before


def test_records_that_are_damaged(estimate, here):
    content = bytearray((here / "part-0.tfrecord").read_bytes())
    content[100] ^= 1
    (here / "part-0.tfrecord").write_bytes(content)
    with pytest.raises(BadRequest, match=r"part-\*.tfrecord: corrupted record at \d+$"):
        estimate("part-*.tfrecord", **RECORDS)


@pytest.mark.parametrize(
    ("argument", "words"), [("mine.py:zeros", "are all zero"), ("mine.py:whole_numbers", "integers of type uint8")]
)
def test_odd_values_are_remarked_upon(estimate, argument, words):
    result, _ = estimate(argument, unproven=True)
    assert any(words in note for note in result.notes), json.dumps(result.notes)
