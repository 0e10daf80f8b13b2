from __future__ import annotations

import math
from dataclasses import replace

import pytest

from service.engine.protocol import SequenceResult, SequenceTimings
from service.ocr.confidence import Granularity, PageConfidence, Wanted, judge
from service.ocr.outcome import JUNK_SHARE, MIN_CONFIDENCE
from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap, score_tokens
from shared.deepseek_ocr.grounding import parse_grounded

HALVED = Calibration(MonotoneMap(0.0, (-50.0, 0.0), (0.0, 0.5)), MonotoneMap(0.0, (0.0,), (0.125,)))

MOSTLY_RIGHT = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.7,)),))


def result(*tokens: tuple[str, float]) -> SequenceResult:
    scores = score_tokens((text.encode() for text, _ in tokens), (math.log(each) for _, each in tokens))
    text = "".join(text for text, _ in tokens)
    timings = SequenceTimings(0, 0, 0, 0)
    return SequenceResult("", text, FinishReason.STOP, 0.9, 0.5, 1, 1, len(tokens), timings, token_scores=scores)


def judged(answer: SequenceResult, wanted: Wanted, calibration: Calibration | None = None) -> PageConfidence:
    found = judge(answer, parse_grounded(answer.text, 999, 999), wanted, calibration)
    assert found is not None
    return found


PLAIN = result(("Total", 0.75), (" 1", 1.0), ("2", 0.5), ("3", 0.25), (" 4", 0.5), ("\n", 0.1), ("Due", 0.875))


def test_words_below_the_threshold_are_listed_and_doubtful_digits_are_joined():
    found = judged(PLAIN, Wanted(review_threshold=0.8))
    assert not found.is_calibrated
    assert [(word.start, word.end, word.line) for word in found.words] == [
        (0, 5, 1),
        (6, 9, 1),
        (10, 11, 1),
        (12, 15, 2),
    ]
    assert [word.confidence for word in found.words] == pytest.approx([0.75, 0.125, 0.5, 0.875])
    assert found.doubtful_words == found.words[:3]
    assert found.doubtful_digits is not None
    assert [(span.start, span.end, round(span.confidence, 4)) for span in found.doubtful_digits] == [
        (7, 9, 0.25), (10, 11, 0.5),
    ]  # fmt: skip


def test_lines_and_pages_are_as_sure_as_their_words_are_on_average():
    found = judged(PLAIN, Wanted(Granularity.WORD))
    assert [(line.start, line.end, line.line) for line in found.lines] == [(0, 11, 1), (12, 15, 2)]
    assert [line.confidence for line in found.lines] == pytest.approx([(0.75 + 0.125 + 0.5) / 3, 0.875])
    assert found.word_accuracy == pytest.approx((0.75 + 0.125 + 0.5 + 0.875) / 4)
    assert found.doubtful_words is None
    assert found.doubtful_digits is None


def test_calibration_replaces_the_models_own_scores():
    found = judged(PLAIN, Wanted(review_threshold=0.6), HALVED)
    assert found.is_calibrated
    assert found.words[3].confidence == pytest.approx(0.5 + math.log(0.875) / 100, abs=1e-4)
    assert found.doubtful_digits is not None
    assert {span.confidence for span in found.doubtful_digits} == {0.125}


def test_page_with_many_wrong_words_is_known_by_its_calibration_alone():
    guessed = result(*[(" aujBaan", 0.9)] * 5)
    third = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.3,)),))
    assert judged(guessed, Wanted(), third).has_low_accuracy
    assert not judged(guessed, Wanted(), MOSTLY_RIGHT).has_low_accuracy
    assert not judged(result(*[(" aujBaan", 0.1)] * 5), Wanted()).has_low_accuracy
    assert not judged(result(*[(" aujBaan", 0.9)] * 4), Wanted(), third).has_low_accuracy
    assert not judged(result((" ", 0.1)), Wanted(), third).has_low_accuracy


def test_junk_is_known_by_fewer_words_where_hardly_any_is_right() -> None:
    third = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.33,)),))
    two, five = (judged(result(*[(" aujBaan", 0.9)] * count), Wanted(), third) for count in (2, 5))
    assert five.is_junk(0.34)
    assert not five.is_junk(0.32)
    assert not two.is_junk(0.34)
    assert two.is_junk(0.84)
    assert not judged(result(*[(" aujBaan", 0.1)] * 5), Wanted()).is_junk(1.0)


@pytest.mark.parametrize(("accuracy", "is_junk"), [(0.2, True), (0.37, True), (0.41, False), (0.6, False)])
def test_look_alikes_are_told_from_poor_print(accuracy: float, is_junk: bool) -> None:
    fixed = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (accuracy,)),))
    page = judged(result(*[(" aujBaan", 0.9)] * 8), Wanted(), fixed)
    assert page.is_junk(JUNK_SHARE * MIN_CONFIDENCE) is is_junk


def test_regions_have_the_words_of_their_own_text():
    tag = "<|ref|>text<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>"
    answer = result((tag, 0.01), ("\nsame", 0.5), (" one\n\n\n", 0.75), (tag, 0.01), ("\nsame", 0.25))
    found = judged(answer, Wanted(Granularity.BLOCK))
    assert [[round(word.confidence, 4) for word in words] for words in found.regions] == [[0.5, 0.75], [0.25]]


def test_answer_without_scores_has_no_confidences():
    answer = replace(PLAIN, token_scores=None)
    assert judge(answer, parse_grounded(answer.text, 9, 9), Wanted(Granularity.WORD), None) is None
