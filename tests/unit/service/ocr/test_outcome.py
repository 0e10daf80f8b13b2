"""Answers held against what their pages show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.ocr.outcome import BEYOND_DOUBT, LEAST_SHARE, MANY_MARKS, MIN_CONFIDENCE, SURE, PageStatus, status_of
from shared.images.page_ink import MOST_MARKS, InkLine, PageInk

TEXT = "the tide was out and the boats lay on the sand"


def ink_of(marks: int) -> PageInk:
    return PageInk(marks, 0.05, lines=(InkLine((0, 0, 400, 12), (400,), 9.0),))


@pytest.mark.parametrize(
    ("marks", "confidence", "is_by_lines", "expected"),
    [
        (MOST_MARKS, 0.25, True, PageStatus.UNREADABLE),
        (MOST_MARKS, 0.25, False, PageStatus.OK),
        (MOST_MARKS, 0.45, True, PageStatus.OK),
        (MOST_MARKS - 1, 0.25, False, PageStatus.UNREADABLE),
    ],
)
def test_text_seen_on_a_photo_line_by_line_is_not_read(marks, confidence, is_by_lines, expected):
    assert status_of(ink_of(marks), TEXT, confidence, MIN_CONFIDENCE, is_by_lines=is_by_lines) is expected


@pytest.mark.parametrize(
    ("is_in_shadow", "confidence", "min_confidence", "expected"),
    [
        (True, SURE - 0.01, MIN_CONFIDENCE, PageStatus.UNREADABLE),
        (True, SURE, MIN_CONFIDENCE, PageStatus.OK),
        (True, SURE / 2, MIN_CONFIDENCE / 2, PageStatus.OK),
        (False, SURE - 0.01, MIN_CONFIDENCE, PageStatus.OK),
    ],
)
def test_line_in_a_shadow_is_read_where_the_model_is_sure(is_in_shadow, confidence, min_confidence, expected):
    ink = replace(ink_of(MANY_MARKS - 1), is_in_shadow=is_in_shadow)
    assert status_of(ink, TEXT, confidence, min_confidence) is expected


@pytest.mark.parametrize(
    ("confidence", "expected"), [(BEYOND_DOUBT, PageStatus.OK), (BEYOND_DOUBT - 0.01, PageStatus.UNREADABLE)]
)
def test_a_line_that_noise_hides_is_read_where_the_model_is_beyond_doubt(confidence, expected):
    assert status_of(PageInk(0, 0.05), "should reuse existing code", confidence, MIN_CONFIDENCE) is expected


@pytest.mark.parametrize(
    ("share", "confidence", "min_confidence", "expected"),
    [
        (LEAST_SHARE - 0.01, SURE - 0.01, MIN_CONFIDENCE, PageStatus.UNREADABLE),
        (LEAST_SHARE - 0.01, SURE, MIN_CONFIDENCE, PageStatus.OK),
        (LEAST_SHARE - 0.01, SURE / 2, MIN_CONFIDENCE / 2, PageStatus.OK),
        (LEAST_SHARE, SURE - 0.01, MIN_CONFIDENCE, PageStatus.OK),
    ],
)
def test_few_of_what_looks_like_lines_are_text_where_the_model_is_sure(share, confidence, min_confidence, expected):
    status = status_of(ink_of(MOST_MARKS), TEXT, confidence, min_confidence, is_by_lines=True, share_of_lines=share)
    assert status is expected


@pytest.mark.parametrize(
    ("text", "share", "expected"),
    [
        ("r", LEAST_SHARE - 0.01, PageStatus.UNREADABLE),
        ("r", LEAST_SHARE, PageStatus.OK),
        ("108", LEAST_SHARE - 0.01, PageStatus.OK),
    ],
)
def test_a_sign_alone_among_what_looks_like_lines_is_none_however_sure_the_model_is(text, share, expected):
    def status(min_confidence: float) -> PageStatus:
        return status_of(ink_of(MOST_MARKS), text, 0.97, min_confidence, is_by_lines=True, share_of_lines=share)

    assert status(MIN_CONFIDENCE) is expected
    assert status(0.0) is PageStatus.OK


def test_request_can_ask_for_text_however_unsure_it_is():
    assert status_of(ink_of(MOST_MARKS), TEXT, 0.05, 0.0, is_by_lines=True) is PageStatus.OK


def test_dots_and_dashes_alone_are_dirt_however_sure_the_model_is_of_them_and_zeros_unless_it_is():
    assert status_of(ink_of(4), "0\n\n0", 0.67, MIN_CONFIDENCE) is PageStatus.UNREADABLE
    assert status_of(ink_of(4), "100", 0.67, MIN_CONFIDENCE) is PageStatus.OK
    assert status_of(ink_of(4), "0", 0.97, MIN_CONFIDENCE) is PageStatus.OK
    assert status_of(ink_of(4), ".\n\n.\n\n.", 0.95, MIN_CONFIDENCE) is PageStatus.UNREADABLE
    assert status_of(ink_of(4), "7.", 0.95, MIN_CONFIDENCE) is PageStatus.OK
    assert status_of(ink_of(MOST_MARKS), "-.--\n-.--", 0.95, MIN_CONFIDENCE) is PageStatus.OK


@pytest.mark.parametrize("is_by_lines", [False, True])
def test_strokes_that_the_model_doubts_are_no_text_however_many_marks_a_page_has(is_by_lines):
    def status(text: str, confidence: float) -> PageStatus:
        return status_of(ink_of(MOST_MARKS), text, confidence, MIN_CONFIDENCE, is_by_lines=is_by_lines)

    assert status("//\n)\n\n/", 0.5) is PageStatus.UNREADABLE
    assert status("//\n)\n\n/", 0.7) is PageStatus.OK
    assert status("12 /\n)\n\n/", 0.5) is PageStatus.OK
