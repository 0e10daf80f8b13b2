"""Pass rates of page tests: by kind, by file, with intervals by pages."""

from __future__ import annotations

import pytest

from trainer.evaluation.page_test_file import NamedTest, PageName
from trainer.evaluation.page_test_scores import Failure, score_tests
from trainer.evaluation.page_tests import Absent, Present

A, B = PageName("a.png"), PageName("b.pdf", 2)


def named(number, page, test, file="one"):
    return NamedTest(f"t{number}", file, page, test)


TESTS = [named(1, A, Present("a")), named(2, A, Present("b")), named(3, B, Present("a")), named(4, B, Absent("x"))]


def test_rates_are_by_kind_and_of_all_and_failures_have_reasons():
    score = score_tests(TESTS, {A: "a", B: "x"})
    assert {kind: (rate.pages, rate.tests, rate.passed, rate.rate) for kind, rate in score.kinds.items()} == {
        "present": (2, 3, 1, pytest.approx(1 / 3)),
        "absent": (1, 1, 0, 0.0),
    }
    assert (score.overall.passed, score.overall.tests, score.overall.rate) == (1, 4, 0.25)
    assert score.failures == (
        Failure("t2", "a.png", "present", "'b' is not there (at most 0% of it)"),
        Failure("t3", "b.pdf page 2", "present", "'a' is not there (at most 0% of it)"),
        Failure("t4", "b.pdf page 2", "absent", "'x' is there"),
    )
    assert score.mean_of_files is None


def test_intervals_resample_pages_not_tests():
    # Page a passes both of its tests, page b neither: a resample has one of them twice, or both.
    score = score_tests([*TESTS[:2], TESTS[2], named(5, B, Present("c"))], {A: "a b", B: ""})
    assert (score.overall.low, score.overall.rate, score.overall.high) == (0, 0.5, 1)
    assert (score.kinds["present"].low, score.kinds["present"].high) == (0, 1)


def test_several_files_have_rates_and_their_mean():
    score = score_tests([*TESTS, named(6, A, Present("a"), "two")], {A: "a b", B: "x"})
    assert {file: rate.rate for file, rate in score.files.items()} == {"one": 0.5, "two": 1}
    mean, low, high = score.mean_of_files
    assert mean == 0.75
    assert (low, high) == (0.5, 1)
