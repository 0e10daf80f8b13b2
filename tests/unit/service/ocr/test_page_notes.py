"""What a header says of pages in answers that are not JSON."""

from __future__ import annotations

from typing import Any

from service.ocr.page_notes import MOST_NOTED, PageNote, from_header, notes_of, to_header
from service.schemas import PageAnswer, PageError


def page(number: int, **members: Any) -> PageAnswer:
    read = {"status": "ok", "text": "", "finish_reason": "stop", "confidence": 1.0, "regions": []}
    return PageAnswer(page=number, width_px=1, height_px=1, **(read | members))


def test_pages_that_are_more_than_read_are_noted_and_survive_the_header() -> None:
    broken = PageError(code="undecodable_file", title="It is broken.", retryable=False)
    notes = notes_of(
        [
            page(1),
            page(2, status="blank", finish_reason=None),
            page(3, status="failed", finish_reason=None, error=broken),
            page(4, status="unreadable"),
            page(5, warnings=["damaged_image", "partly_read"], finish_reason="length"),
        ]
    )
    assert to_header(notes) == "3 failed undecodable_file, 4 unreadable, 5 ok damaged_image partly_read length"
    assert from_header(to_header(notes)) == notes


def test_header_is_bounded_and_what_is_unknown_in_it_is_left_out() -> None:
    many = [PageNote(number, "unreadable") for number in range(1, 2 * MOST_NOTED)]
    assert to_header(many).endswith(", ...")
    assert from_header(to_header(many)) == many[:MOST_NOTED]
    assert from_header("2 dreamt, 0 ok, 4 unreadable later, \x1b[2J, 5") == [PageNote(4, "unreadable", ("later",))]
    assert from_header("") == []
