"""What answers say about a repair without labels."""

import numpy as np
import pytest

from ckpt_doctor.repair.answers import FEWEST_ANSWERS, agreement, information, objections

SURE = np.eye(4)[np.arange(40) % 4]
UNSURE = np.full((40, 4), 0.25)
ALWAYS_THE_SAME = np.tile([1.0, 0, 0, 0], (40, 1))


def said(stored, repaired, training=None):
    return objections({"y": stored}, {"y": repaired}, {} if training is None else {"y": training})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (SURE, 1.0),
        (UNSURE, 0.0),
        (ALWAYS_THE_SAME, 0.0),
        # Two of four places, half of ln 4.
        (np.eye(4)[np.arange(40) % 2], 0.5),
        # A certain half and an open half: ln 2 - ln 2 / 2, of ln 2.
        (np.concatenate([np.eye(2)[np.arange(20) % 2], np.full((20, 2), 0.5)]), 0.5),
    ],
)
def test_information_is_one_where_answers_tell_all_samples_apart(answers, expected):
    assert information(answers) == pytest.approx(expected, abs=1e-12)


def test_agreement_is_a_share_of_answers():
    assert agreement(SURE, SURE) == 1
    assert agreement(SURE, ALWAYS_THE_SAME) == 0.25


@pytest.mark.parametrize("repaired", [UNSURE, ALWAYS_THE_SAME], ids=["unsure", "one answer"])
def test_answers_that_tell_less_are_told_and_refuse_nothing(repaired):
    found = said(SURE, repaired)
    (text,) = found.told
    assert found.refusing == ()
    assert "its answers carry 0.00 of the largest possible information, 1.00 before" in text
    assert said(repaired, SURE).told == ()


def test_a_small_fall_is_not_told():
    mixed = np.concatenate([SURE[:32], UNSURE[:8]])
    assert 1 - information(mixed) == pytest.approx(0.2)
    assert said(SURE, mixed).told == ()


def test_what_is_no_probability_has_no_information():
    """Logits and quantities: softmax of a quantity would say nothing."""
    assert said(SURE * 30, UNSURE * 30).told == ()


def test_statistics_from_the_file_are_measured_by_training_mode():
    half = np.concatenate([SURE[:20], SURE[20:][:, ::-1]])
    found = said(SURE * 9, half * 9, SURE * 9)
    (text,) = found.refusing
    assert text == "output y: 100 % of 40 answers agreed with training mode before the repair, 50 % do after it"
    fewer = np.concatenate([SURE[:32], SURE[32:][:, ::-1]])
    assert (len(said(SURE * 9, fewer * 9, SURE * 9).told), said(SURE * 9, fewer * 9, SURE * 9).refusing) == (1, ())
    assert said(half * 9, SURE * 9, SURE * 9).told == ()


def test_answers_that_are_no_longer_finite_are_refused():
    broken = SURE.copy()
    broken[3] = np.nan
    assert said(SURE, broken).refusing == ("output y: the repaired model returns NaN or infinite values",)
    # It was no better before.
    assert said(broken, broken).refusing == ()
    assert said(broken, SURE).told == ()


def test_few_answers_and_single_numbers_say_nothing():
    few = FEWEST_ANSWERS - 1
    assert said(SURE[:few], UNSURE[:few]).told == ()
    assert said(SURE[:, :1], UNSURE[:, :1]).told == ()
    assert said(SURE.astype(int), np.zeros_like(SURE, int)).told == ()
