from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.contract.confidence import score_tokens
from trainer.calibration.cases import Case, PageCases, cases_of
from trainer.calibration.fit import TooFewCasesError, fit_calibration, fit_map
from trainer.calibration.reliability import confidences, reliability, review
from trainer.calibration.report import Measured, picture, report
from trainer.evaluation.samples import Layout, Sample
from trainer.evaluation.scores import Reading


def sample(truth: str) -> Sample:
    return Sample("page", "block", Layout.BLOCK, Path("page.png"), truth)


def reading(text: str) -> Reading:
    """Each character a token; the later, the less probable."""
    tokens = score_tokens((each.encode() for each in text), (-0.01 * place for place in range(len(text))))
    return Reading(text, 0.0, token_scores=tokens)


def right_words(truth: str, text: str, *, any_order: bool = False) -> list[bool]:
    return [case.is_right for case in cases_of(sample(truth), reading(text), any_order=any_order).words]


def test_words_are_right_where_the_truth_has_them_at_that_place():
    assert right_words("the old bridge was closed", "the 0ld bridge closed today") == [True, False, True, True, False]
    assert right_words("a b", "a\n\n  b") == [True, True]
    assert right_words("caf\u00e9", "cafe\u0301") == [True]
    assert right_words("", "made up") == [False, False]


def test_truths_in_another_order_are_found_as_often_as_they_have_a_word():
    assert right_words("left col right col", "right col left col col") != [True] * 5
    assert right_words("left col right col", "right col left col col", any_order=True).count(True) == 4


def test_digits_are_judged_one_by_one():
    cases = cases_of(sample("total 1234 of 7"), reading("total 1294 of 7"))
    assert [case.is_right for case in cases.digits] == [True, True, False, True, True]
    assert cases.digits[2].log_probability == pytest.approx(-0.08)


def test_digits_of_truths_in_another_order_are_found_in_the_word_that_was_meant():
    truth, text = "alpha 1234 beta 5678 gamma 90", "gamma 90 alpha 1284 beta 5678"
    in_order = cases_of(sample(truth), reading(text))
    assert [case.is_right for case in in_order.digits] == [
        False,
        False,
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        True,
    ]
    found = cases_of(sample(truth), reading(text), any_order=True)
    assert [case.is_right for case in found.digits] == [True, True, True, True, False, True, True, True, True, True]
    assert sum(case.is_elsewhere for case in found.digits) == 2
    misread = cases_of(sample("7 1234 5678 a b c"), reading("a b c 5678 1294"), any_order=True)
    assert [case.is_right for case in misread.digits] == [True] * 4 + [True, True, False, True]
    invented = cases_of(sample("1234"), reading("1234 1234"), any_order=True)
    assert [case.is_right for case in invented.digits] == [True] * 4 + [False] * 4


def test_reading_without_scores_is_refused():
    with pytest.raises(ValueError, match="no scores"):
        cases_of(sample("a"), Reading("a", 0.0))


def drawn(num_pages: int, seed: int, *, page_counts: bool) -> list[list[Case]]:
    """Words whose chance of being right is known: half of what the model says, or depends on the page as well."""
    rng = random.Random(seed)
    pages = []
    for _ in range(num_pages):
        mean = -rng.random()
        cases = []
        for _ in range(40):
            chance = rng.random()
            true_chance = chance * math.exp(mean) ** 2 if page_counts else chance / 2
            cases.append(Case(math.log(max(chance, 1e-9)), mean, rng.random() < true_chance))
        pages.append(cases)
    return pages


@pytest.mark.parametrize("page_counts", [False, True])
def test_fitted_map_is_calibrated_on_other_pages(page_counts: bool):
    fitted = fit_map(drawn(200, 1, page_counts=page_counts))
    others = [case for page in drawn(200, 2, page_counts=page_counts) for case in page]
    assert reliability(confidences(others, fitted.share)).error < 0.03
    raw = [(math.exp(case.log_probability), case.is_right) for case in others]
    assert reliability(raw).error > 0.2
    assert (fitted.page_weight > 0) is page_counts


def test_too_little_is_not_fitted():
    page = [Case(-0.1, -0.1, True)] * 200
    with pytest.raises(TooFewCasesError):
        fit_map([page])
    with pytest.raises(TooFewCasesError):
        fit_map([[*page, Case(-1.0, -0.1, False)]])
    with pytest.raises(TooFewCasesError):
        fit_map([[*page[:20], Case(-1.0, -0.1, False)]])


def pages_of_three_kinds(seed: int, *, easy: int, hard: int, strange: int) -> list[PageCases]:
    """Pages that are read well, pages with doubtful digits, and pages in a script that the model does not know."""
    rng = random.Random(seed)
    pages = []
    for kind in ["easy"] * easy + ["hard"] * hard + ["strange"] * strange:
        mean = {"easy": -0.02, "hard": -0.25, "strange": -1.2}[kind] * rng.uniform(0.8, 1.2)
        words = [Case(mean, mean, rng.random() < (0.02 if kind == "strange" else 0.97)) for _ in range(20)]
        digits = []
        for _ in range(40):
            log = -rng.expovariate(1 / {"easy": 0.05, "hard": 0.4, "strange": 1.0}[kind])
            is_right = kind != "strange" and rng.random() < math.exp(log) ** 0.5
            digits.append(Case(log, mean, is_right))
        pages.append(PageCases(tuple(words), tuple(digits)))
    return pages


def error_of_digits(pages: list[PageCases], share_of: Callable[[float, float], float]) -> float:
    return reliability(confidences([digit for page in pages for digit in page.digits], share_of)).error


def test_doubtful_digits_of_pages_that_are_read_are_not_taken_for_those_of_another_script():
    seen = pages_of_three_kinds(1, easy=150, hard=5, strange=30)
    fitted, one_map = fit_calibration(seen), fit_map([page.digits for page in seen])
    assert fitted.readable is not None
    hard = pages_of_three_kinds(2, easy=0, hard=60, strange=0)
    assert error_of_digits(hard, fitted.digit_share) < 0.07
    assert error_of_digits(hard, one_map.share) > 0.08
    assert error_of_digits(pages_of_three_kinds(3, easy=60, hard=0, strange=0), fitted.digit_share) < 0.03
    assert error_of_digits(pages_of_three_kinds(4, easy=0, hard=0, strange=60), fitted.digit_share) < 0.03


def test_without_unreadable_pages_there_is_one_map_and_without_digits_that_of_words():
    pages = pages_of_three_kinds(1, easy=60, hard=20, strange=0)
    assert fit_calibration(pages).readable is None
    bare = [PageCases(tuple(page), ()) for page in drawn(60, 1, page_counts=False)]
    fitted = fit_calibration(bare)
    assert fitted.digits == fitted.words


def test_expected_calibration_error_is_the_mean_distance_over_bins():
    judged = [(0.95, True)] * 9 + [(0.95, False)] + [(0.15, True)] * 5 + [(0.15, False)] * 5
    curve = reliability(judged)
    assert [(each.cases, each.right) for each in curve.bins] == [(10, 0.5), (10, 0.9)]
    assert curve.error == pytest.approx((0.35 + 0.05) / 2)
    assert reliability([(1.0, True)]).error == 0
    assert reliability([]).error == 0


def test_review_says_what_a_threshold_takes_and_finds():
    judged = [(0.95, True)] * 8 + [(0.95, False)] + [(0.4, False)] * 2 + [(0.4, True)]
    found = review(judged, 0.5)
    assert (found.reviewed, found.found, found.wrong) == pytest.approx((0.25, 2 / 3, 2 / 3))


def test_report_and_picture_have_every_set():
    curve = reliability([(0.95, True)] * 9 + [(0.95, False)])
    sets = [
        Measured(name, 2, is_fitted, curve, reliability([]), 0, 0.01, (review([(0.5, True)], 0.9),))
        for name, is_fitted in (("first", True), ("<second>", False))
    ]
    text = report(sets, {"commit": "abc"}, "curve.svg")
    assert "| first (fitted to it) | 2 | 10 | 0.900 | 0.950 | 0.050 | 0 | - | - | - | 0.010 |" in text
    assert "![Reliability curves](curve.svg)" in text
    assert "&lt;second&gt;" in picture(sets)
