"""What goes on across pages is joined and said to be; what does not go on, is cut short or may be a heading is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ocr.joining import Join, join_pages
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from shared.contract.answer import FinishReason
from tests.support.pages import grounded_page, tag

TEXT, TABLE = tag("text"), tag("table")


def pages(*answers: str) -> list[PageResult]:
    return [grounded_page(answer, number) for number, answer in enumerate(answers, 1)]


def table(*rows: str) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row.split()) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


@pytest.mark.parametrize(
    ("first", "second", "joined", "kind"),
    [
        ("It goes", "on here.", "It goes on here.", "paragraph"),
        ("Lines of\nthe page go", "on here.", "Lines of\nthe page go\non here.", "paragraph"),
        ("An exam-", "ple of it.", "An example of it.", "word"),
        ("A list, and", "\u00e4hnlich weiter", "A list, and \u00e4hnlich weiter", "paragraph"),
        (f"{TEXT}It goes\n\n", f"{TEXT}on here.", "It goes on here.", "paragraph"),
        (f"{TEXT}\u6c49\u5b57", f"{TEXT}\u6c49\u5b57\u3002", "\u6c49\u5b57\u6c49\u5b57\u3002", "paragraph"),
        (table("a b", "1 2"), table("3 4"), table("a b", "1 2", "3 4"), "table"),
        (f"{TABLE}{table('a b', '1 2')}", f"{TABLE}{table('a b', '3 4')}", table("a b", "1 2", "3 4"), "table"),
        (
            "| a | b |\n| --- | --- |\n| 1 | 2 |",
            table("3 4"),
            "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |",
            "table",
        ),
    ],
)
def test_what_goes_on_is_joined(first: str, second: str, joined: str, kind: str) -> None:
    text, joins = join_pages(pages(f"Above.\n\n{first}", f"{second}\n\nBelow."))
    assert text == f"Above.\n\n{joined}\n\nBelow."
    assert joins == (Join(1, 2, kind),)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("It ends.", "on here."),
        ("It ends.\u201d", "on here."),
        ("It ends", "A new one"),
        ("It goes", "- an item"),
        ("It goes", "# heading"),
        ("# heading", "on here"),
        ("12", "on here"),
        ("Text\n12", "on here"),
        ("1 -", "on here"),
        ("\u6c49\u5b57", "\u6c49\u5b57"),
        (f"{tag('title')}Heading", f"{TEXT}on here"),
        (f"{TEXT}It goes", f"{tag('title')}on here"),
        (table("a b"), table("1 2 3")),
        (table("a b"), "on here"),
        ("It goes", table("1 2")),
        (table("a b"), table("1 2").replace("td", "th")),
        (table("a b"), table("a b")),
    ],
)
def test_what_does_not_go_on_is_not(first: str, second: str) -> None:
    read = pages(first, second)
    text, joins = join_pages(read)
    assert text == f"{read[0].text}\n\n{read[1].text}"
    assert joins == ()


def test_headers_footers_and_figures_between_come_after() -> None:
    first = (
        f"{TEXT}It goes\n\n{tag('image')}{tag('image_caption')}A ship.\n\n{tag('footer')}Firm\n\n{tag('page_number')}1"
    )
    second = f"{tag('header')}Report\n\n{TEXT}on here.\n\n{TEXT}Next."
    text, joins = join_pages(pages(first, second))
    assert text == "It goes on here.\n\nA ship.\n\nFirm\n\n1\n\nReport\n\nNext."
    assert joins == (Join(1, 2, "paragraph"),)


def test_one_thing_can_go_on_over_many_pages() -> None:
    text, joins = join_pages(pages("It goes", "on and", "on here.\n\nAnd this", "too."))
    assert text == "It goes on and on here.\n\nAnd this too."
    assert joins == (Join(1, 2, "paragraph"), Join(2, 3, "paragraph"), Join(3, 4, "paragraph"))


@pytest.mark.parametrize(
    "change",
    [
        {"page": 5},
        {"status": PageStatus.FAILED, "text": ""},
        {"status": PageStatus.BLANK, "text": ""},
    ],
)
def test_pages_that_do_not_follow_each_other_are_not_joined(change: dict[str, object]) -> None:
    first, second, third = pages("It goes", "and goes", "on here.")
    assert not join_pages([first, replace(second, **change), third])[1]


def test_a_page_that_was_cut_short_is_not_joined() -> None:
    first, second = grounded_page("It goes", 1, reason=FinishReason.LENGTH), grounded_page("on here.", 2)
    assert join_pages([first, second]) == ("It goes\n\non here.", ())


PARTS = st.lists(
    st.tuples(st.sampled_from(["", "text", "footer", "table"]), st.text(st.sampled_from("abA.-\n |"), max_size=9)),
    max_size=4,
)


@given(st.lists(PARTS, max_size=4))
def test_no_letter_is_lost(parts: list[list[tuple[str, str]]]) -> None:
    read = pages(*("".join((tag(label) if label else "") + text + "\n\n" for label, text in page) for page in parts))
    text, joins = join_pages(read)

    def letters(texts: list[str]) -> list[str]:
        return sorted(character for each in texts for character in each if character.isalpha() or character == ".")

    assert letters([text]) == letters([page.text for page in read])
    if not joins:
        assert "".join(text.split()) == "".join("".join(page.text for page in read).split())
