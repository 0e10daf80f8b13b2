"""Rewards: the most for the truth, less for every fault that they name."""

from __future__ import annotations

import pytest

from shared.contract.answer import FinishReason
from trainer.evaluation.page_tests import derive_tests
from trainer.rewards.rewards import REWARDS, Judged, invented_ratio, is_closed

TRUTH = "# Report\n\nThe lamp costs 12.50\n\n<table><tr><td>lamp</td><td>12.50</td></tr></table>"


def reward(name, text, finish=FinishReason.STOP, truth=TRUTH):
    return REWARDS[name](Judged(truth, text, finish, derive_tests(truth)))


@pytest.mark.parametrize(("name", "most"), [("cer", 1), ("tests", 1), ("format", 1), ("loop", 0), ("invented", 0)])
def test_the_truth_gets_the_most(name, most):
    assert reward(name, TRUTH) == most


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cer", TRUTH.replace("lamp", "damp")),
        ("tests", TRUTH.replace("The lamp costs 12.50", "")),
        ("format", TRUTH.replace("</table>", "")),
        ("format", TRUTH.replace("# Report", "Report")),
        ("format", TRUTH.replace("</table>", "<tr><td>one</td></tr></table>")),
        ("format", ""),
        ("invented", f"{TRUTH} and a chair"),
    ],
)
def test_a_fault_costs(name, text):
    assert reward(name, text) < reward(name, TRUTH)


def test_an_answer_without_an_end_costs_the_same_whether_it_loops_or_goes_on():
    assert reward("loop", TRUTH, FinishReason.REPETITION) == reward("loop", TRUTH, FinishReason.LENGTH) == -1


def test_a_reading_far_too_long_gets_no_less_than_none():
    assert reward("cer", "word " * 500) == 0


def test_words_count_as_often_as_the_page_has_them():
    assert invented_ratio("a b b", "a b b") == 0
    assert invented_ratio("a b b", "b b b a") == 0.25
    assert invented_ratio("a", "") == 0


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("<b>a</b>", True),
        ("a<br>b", True),
        ("<i/>", True),
        ("1 < 2 > 0", True),
        ("</b>", False),
        ("<b><i></b></i>", False),
    ],
)
def test_tags_are_closed_in_order(text, closed):
    assert is_closed(text) is closed
