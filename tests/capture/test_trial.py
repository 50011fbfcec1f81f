"""A trial on part of the data: which part, and what is kept of the answers."""

import numpy as np
import pytest

from ckpt_doctor.capture import trial
from ckpt_doctor.capture.samples import from_arrays


def samples_of(count, batch_size):
    return from_arrays({"x": np.arange(count)}, range(count), batch_size)


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (100, 64, [(0, 64), (64, 100)]),
        # Four of sixteen batches, evenly spread.
        (1024, 64, [(0, 64), (256, 320), (512, 576), (768, 832)]),
        # A batch at least, and whole: a model may take no other size.
        (4000, 1000, [(0, 1000)]),
    ],
)
def test_the_part_is_whole_batches_from_all_over_the_data(count, batch_size, expected):
    part = trial.part_of(samples_of(count, batch_size))
    assert [(batch["x"][0], batch["x"][-1] + 1) for batch in part] == expected
    assert len(part) == sum(end - start for start, end in expected)


class Model:
    """An engine whose output is its input, times the statistics that it is given."""

    def __init__(self, shape):
        self.stored = {"bn": 1}
        self.graph = type("", (), {"nodes": {"y": None}})
        self.program = type("", (), {"inputs": [type("", (), {"shape": (None,)})]})
        self.shape = shape
        self.batches = []

    def run(self, outputs, batch):
        value = np.broadcast_to(batch["x"].reshape(-1, *[1] * len(self.shape)), (len(batch["x"]), *self.shape))
        return [value * self.stored["bn"] for _ in outputs]

    def predict(self, samples, outputs):
        for batch in samples:
            self.batches.append(len(batch["x"]))
            yield self.run(outputs, batch)


def test_answers_are_those_with_the_statistics_that_were_given():
    model = Model((3,))
    found = trial.answers(model, {"bn": 2}, samples_of(100, 64), {"out": "y:0", "elsewhere": "z:0"})
    np.testing.assert_array_equal(found["out"], 2 * np.arange(100)[:, None].repeat(3, 1))
    assert list(found) == ["out"]
    assert model.stored == {"bn": 1}


def test_of_many_answers_some_are_kept_and_few_are_fetched_at_once(monkeypatch):
    monkeypatch.setattr(trial, "_KEPT_VALUES", 600)
    monkeypatch.setattr(trial, "_FETCHED_BYTES", 10 * 5 * 3 * 8)
    model = Model((5, 3))
    found = trial.answers(model, {"bn": 1}, samples_of(100, 64), {"out": "y:0"})
    assert max(model.batches) == 10
    assert sum(model.batches) == 100
    assert found["out"].shape[1] == 3
    # A batch keeps its share of the 600, rounded up to a row.
    assert found["out"].size <= 600 + 3 * len(model.batches)
    assert len(np.unique(found["out"])) > 90


def test_single_numbers_are_left_out():
    assert trial.answers(Model(()), {"bn": 1}, samples_of(10, 5), {"out": "y:0"}) == {}
