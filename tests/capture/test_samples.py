"""Samples in files and streams, whole batches and parts of them."""

import os
from contextlib import ExitStack

import h5py
import numpy as np
import pytest

from ckpt_doctor.capture.arrays import read_arrays
from ckpt_doctor.capture.samples import from_arrays, from_stream
from ckpt_doctor.errors import BadRequest


def test_split_batches_hold_the_same_samples_in_the_same_order():
    samples = from_arrays({"x:0": np.arange(23)}, range(23), 8)
    assert samples.lengths == (8, 8, 7)
    pieces = samples.split(3)
    assert pieces.lengths == (3, 3, 2, 3, 3, 2, 3, 3, 1)
    assert np.concatenate([batch["x:0"] for batch in pieces]).tolist() == list(range(23))
    # Any batch can be asked for again, in any order.
    assert pieces.read(8)["x:0"].tolist() == [22]
    assert pieces.read(1)["x:0"].tolist() == [3, 4, 5]


def test_a_part_of_a_batch_from_a_stream_is_that_part():
    with ExitStack() as kept:
        samples = from_stream(({"x:0": np.arange(4) + 10 * number} for number in range(3)), None, (), kept)
        pieces = samples.split(3)
        assert [pieces.read(number)["x:0"].tolist() for number in (3, 0, 4)] == [[13], [0, 1, 2], [20, 21, 22]]


ROWS = np.random.default_rng(0).integers(0, 100, (17, 3, 2)).astype(np.int16)


@pytest.mark.parametrize("kind", ["rows.npy", "columns.npy", "rows.h5"])
def test_rows_of_a_file_come_in_any_order(tmp_path, kind):
    path = tmp_path / kind
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["rows"] = ROWS
    else:
        np.save(path, np.asfortranarray(ROWS) if "columns" in kind else ROWS)
    with ExitStack() as kept:
        [array] = read_arrays(str(path), path, None, kept).values()
        assert (array.shape, array.dtype) == (ROWS.shape, ROWS.dtype)
        for chosen in (
            slice(0, 5),
            slice(0, 99),
            np.array([4]),
            np.array([], int),
            np.random.default_rng(1).permutation(17),
        ):
            np.testing.assert_array_equal(array[chosen], ROWS[chosen])


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((1000, 1000)))
    with ExitStack() as kept:
        [array] = read_arrays("rows.npy", path, None, kept).values()
        os.truncate(path, 5_000_000)
        assert not array[np.arange(600)].any()
        with pytest.raises(BadRequest, match=r"rows\.npy: ends before its last sample"):
            array[np.arange(700)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_member_of_an_archive_is_unpacked_beside_and_removed(tmp_path, monkeypatch, save):
    path, beside = tmp_path / "rows.npz", tmp_path / "temporary"
    beside.mkdir()
    save(path, rows=ROWS, labels=np.arange(17))
    monkeypatch.setattr("ckpt_doctor.capture.arrays._IN_MEMORY", 300)
    monkeypatch.setattr("tempfile.tempdir", str(beside))
    with ExitStack() as kept:
        found = read_arrays(str(path), path, None, kept)
        assert len(list(beside.rglob("array.npy"))) == 1
        np.testing.assert_array_equal(found["rows"][np.array([16, 0, 3])], ROWS[[16, 0, 3]])
        np.testing.assert_array_equal(found["labels"], np.arange(17))
    assert not list(beside.iterdir())
