"""Arrays in files, matched to the inputs of a model; what does not fit is refused by name."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.capture.data import read_samples
from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import DataOptions

IMAGE = ModelInput("image", "image:0", "float32", (None, 4, 3))
FLAG = ModelInput("meta/flag", "meta/flag:0", "int64", (None,))
OPEN = ModelInput("anything", "anything:0", "float32", None)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """A file `a.npz` with an image for each number, that number itself, and halves."""
    monkeypatch.chdir(tmp_path)
    number = np.arange(10)
    image = np.broadcast_to(number[:, None, None], (10, 4, 3)).astype(np.float32)
    np.savez("a.npz", image=image, number=number, half=number / 2)
    np.savez("one.npz", picture=image)
    np.save("image.npy", image)
    return image


def read(arguments, entries, **options):
    with ExitStack() as kept:
        samples = read_samples(DataOptions(data=arguments, **options), entries, kept)
        return list(samples), samples


def joined(batches, tensor):
    return np.concatenate([batch[tensor] for batch in batches])


def test_arrays_are_matched_by_name(arrays):
    batches, samples = read(["a.npz"], [IMAGE], seed=None)
    assert (len(samples), samples.batch_count) == (10, 1)
    assert [set(batch) for batch in batches] == [{"image:0"}]
    np.testing.assert_array_equal(joined(batches, "image:0"), arrays)


@pytest.mark.parametrize("argument", ["one.npz", "image.npy", "a.npz[image]", "image=one.npz", "image=a.npz[image]"])
def test_one_array_feeds_one_input(arrays, argument):
    batches, _ = read([argument], [IMAGE], seed=None)
    np.testing.assert_array_equal(joined(batches, "image:0"), arrays)


@pytest.mark.parametrize("argument", ["image.npy", "a.npz[image]"])
def test_an_array_without_a_name_is_what_the_only_input_option_names(arrays, argument):
    batches, _ = read([argument], [IMAGE], inputs={"x": "image:0"}, seed=None)
    np.testing.assert_array_equal(joined(batches, "image:0"), arrays)


@pytest.mark.parametrize("argument", ["run=3/a.npz[image]", "image=run=3/a.npz[image]", "run=3/b[1].npz"])
def test_signs_in_the_name_of_a_file_are_part_of_it(arrays, argument):
    Path("run=3").mkdir()
    Path("run=3/a.npz").write_bytes(Path("a.npz").read_bytes())
    Path("run=3/b[1].npz").write_bytes(Path("one.npz").read_bytes())
    batches, _ = read([argument], [IMAGE], seed=None)
    np.testing.assert_array_equal(joined(batches, "image:0"), arrays)


@pytest.mark.parametrize(
    ("arguments", "renamed"),
    [
        (["a.npz"], {"number": "meta/flag:0"}),
        (["a.npz", "x=one.npz"], {"number": "meta/flag:0", "x": "image:0"}),
        (["image=one.npz", "meta/flag=a.npz[number]"], {}),
    ],
)
def test_names_are_mapped_to_tensors(arrays, arguments, renamed):
    batches, _ = read(arguments, [IMAGE, FLAG], inputs=renamed, batch_size=3)
    image, flag = joined(batches, "image:0"), joined(batches, "meta/flag:0")
    np.testing.assert_array_equal(image[:, 0, 0], flag)
    assert flag.dtype == np.int64


def test_the_order_is_that_of_the_seed_and_the_last_batch_is_shorter(arrays):
    batches, samples = read(["a.npz"], [IMAGE], seed=5, batch_size=4)
    assert samples.lengths == (4, 4, 2)
    assert joined(batches, "image:0")[:, 0, 0].tolist() == np.random.default_rng(5).permutation(10).tolist()


def test_a_limit_takes_the_first_of_that_order(arrays):
    batches, samples = read(["a.npz"], [IMAGE], seed=5, batch_size=4, samples=6)
    assert samples.lengths == (4, 2)
    assert joined(batches, "image:0")[:, 0, 0].tolist() == np.random.default_rng(5).permutation(10)[:6].tolist()


def test_a_batch_is_the_same_whenever_it_is_asked_for(arrays):
    with ExitStack() as kept:
        samples = read_samples(DataOptions(data=["a.npz"], batch_size=3), [IMAGE], kept)
        first = samples.read(2)["image:0"]
        assert first.tobytes() == samples.read(2)["image:0"].tobytes()
        assert first.tobytes() != samples.read(1)["image:0"].tobytes()


def test_bytes_for_a_float_input_are_cast_and_remarked_upon(arrays):
    np.save("bytes.npy", np.full((5, 4, 3), 200, np.uint8))
    batches, samples = read(["bytes.npy"], [IMAGE])
    assert batches[0]["image:0"].dtype == np.float32
    assert samples.notes == (
        "the data: integers of type uint8 feed the float input image; if the model was trained on scaled values, "
        "scale these in the same way",
    )


def test_zeros_are_remarked_upon(arrays):
    np.save("zeros.npy", np.zeros((5, 4, 3), np.float32))
    assert read(["zeros.npy"], [IMAGE])[1].notes == ("the data: the first 5 samples are all zero",)


@pytest.mark.parametrize(
    ("arguments", "inputs", "options", "message"),
    [
        ([], [IMAGE], {}, "no data: pass --data FILE.npz"),
        (["gone.npz"], [IMAGE], {}, "--data gone.npz: no such file: gone.npz"),
        (["a.npz[z]"], [IMAGE], {}, "a.npz has no array 'z'; it has image (10, 4, 3), number (10,), half (10,)"),
        (["image=a.npz"], [IMAGE], {}, "holds image (10, 4, 3), number (10,), half (10,); choose one with a.n"),
        (["a.npz", "image=one.npz"], [IMAGE], {}, "--data image=one.npz: image is already fed, by a.npz"),
        (["a.npz"], [IMAGE, FLAG], {}, "no array 'meta/flag' in the data, which the model needs as input; "),
        (["a.npz"], [IMAGE], {"inputs": {"z": "image:0"}}, "--input z=image:0: the data have no array 'z'; they have"),
        (["number=a.npz[number]"], [IMAGE], {}, "array number has shape (10,); the input image takes (?, 4, 3)"),
        (["a.npz[half]"], [FLAG], {}, "array (the only one) is of type float64; the input meta/flag takes int64"),
    ],
)
def test_what_does_not_fit_is_refused(arrays, arguments, inputs, options, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        read(arguments, inputs, **options)


def test_inputs_of_different_length_are_refused(arrays):
    np.save("flag.npy", np.arange(9))
    message = "the inputs have different numbers of samples: meta/flag:0 9, image:0 10"
    with pytest.raises(BadRequest, match=re.escape(message)):
        read(["image=one.npz", "meta/flag=flag.npy"], [FLAG, IMAGE])


def test_a_value_that_is_no_number_is_refused_in_whatever_batch(arrays):
    image = arrays.copy()
    image[9, 0, 0] = np.nan
    np.save("nan.npy", image)
    with pytest.raises(BadRequest, match=re.escape("array (the only one) holds NaN or infinite values")):
        read(["nan.npy"], [IMAGE], seed=None, batch_size=5)
