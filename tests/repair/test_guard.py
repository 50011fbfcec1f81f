"""The last look: what is run for it, and what is not."""

from types import SimpleNamespace

import numpy as np
import pytest

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.capture.samples import from_arrays
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair import guard
from ckpt_doctor.repair.guard import Trial, objections
from ckpt_doctor.repair.targets import Targets
from ckpt_doctor.rules._examples import example
from tests.repair.layers import found, verdict_on

HEALTHY, BROKEN = example("healthy", channels=8), example("broken", channels=8, moving_variance=np.nan)
VERDICT = verdict_on([HEALTHY, BROKEN], found("BN203", "broken"))
AFTER = Inventory((HEALTHY, example("broken", channels=8)))
ESTIMATED, COPIED = Targets(("broken",), (), (), ()), Targets((), ("broken",), (), ())
STORED = tuple(HEALTHY.values[role].astype(float) for role in ("moving_mean", "moving_variance"))


def seen_at(scale=1.0):
    mean, variance = STORED[0] * scale, STORED[1] * scale**2
    return Observation(100, mean, variance, np.stack([mean] * 2), np.stack([variance] * 2))


@pytest.fixture
def tried(monkeypatch):
    """Try a repair; give what was said and what was run for it."""

    def tried(targets=ESTIMATED, *, scale, in_training=1.0, measured=("broken",), outputs=None):
        ran = []

        def in_training_mode(engine, samples):
            ran.append("training mode")
            if isinstance(in_training, RepairRefused):
                raise in_training
            return {"healthy": seen_at(in_training), "broken": seen_at()}

        def answers(engine, statistics, samples, named):
            ran.extend(["answers"] if named else [])
            return dict.fromkeys(named, np.eye(4)[np.arange(40) % 4])

        monkeypatch.setattr(guard, "in_training_mode", in_training_mode)
        monkeypatch.setattr(guard, "answers", answers)
        engine = SimpleNamespace(sites=[SimpleNamespace(layer="healthy"), SimpleNamespace(layer="broken")], stored={})
        seen = {"healthy": seen_at(scale), "broken": seen_at()}
        samples = from_arrays({"x": np.zeros(100)}, range(100), 50)
        trial = Trial(engine, samples, outputs or {}, {name: seen[name] for name in measured}, seen)
        return objections(VERDICT, targets, AFTER, trial), ran

    return tried


def test_nothing_is_run_where_the_layers_agree(tried):
    said, ran = tried(scale=1.0)
    assert (said.told, said.refusing, ran) == ((), (), [])


def test_training_mode_decides(tried):
    """Behind a layer whose stored average lags, inference shows what is no fault of the data."""
    assert tried(scale=255.0) == (guard.Objections(), ["training mode"])
    said, ran = tried(scale=255.0, in_training=255.0)
    assert len(said.refusing) == 1
    assert ran == ["training mode"]


def test_what_was_measured_is_not_measured_again(tried):
    said, ran = tried(scale=255.0, measured=("healthy", "broken"))
    assert (len(said.refusing), ran) == (1, [])


def test_data_from_which_nothing_was_estimated_do_no_harm(tried):
    said, ran = tried(COPIED, scale=255.0, in_training=255.0, measured=())
    assert (said.told, ran) == ((), [])


def test_answers_are_compared_where_the_model_names_outputs(tried):
    outputs = {"y": "y:0"}
    assert tried(scale=1.0, outputs=outputs)[1] == ["answers", "answers"]
    # What comes from the file is held against training mode too.
    assert tried(COPIED, scale=1.0, measured=(), outputs=outputs)[1] == [
        "training mode",
        "answers",
        "answers",
        "answers",
    ]


def test_a_model_that_does_not_run_in_training_mode_is_said(tried):
    said, _ = tried(scale=255.0, in_training=RepairRefused("no kernel"))
    assert (said.told, said.refusing) == (("not compared with training mode: no kernel",), ())
