from __future__ import annotations

import pytest

from service.errors import InvalidFieldError, PageOutOfRangeError, TooManyPagesError
from service.intake.selection import parse_pages, select


@pytest.mark.parametrize(
    ("text", "pages"),
    [("1", (1,)), ("1-3,7", (1, 2, 3, 7)), (" 2 , 1 ", (1, 2)), ("3-3,3", (3,)), ("2-4,3-5", (2, 3, 4, 5))],
)
def test_selection_is_read_in_ascending_order_each_once(text: str, pages: tuple[int, ...]) -> None:
    assert parse_pages(text, 10) == pages


@pytest.mark.parametrize("text", ["", ",", "0", "3-1", "a", "1-", "-1", "1;2", "1 2", "123456", "99999-99999", "1--2"])
def test_what_is_no_selection_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError):
        parse_pages(text, 10)


@pytest.mark.parametrize("text", ["1-11", "1-5,10-15", "1-10000"])
def test_selection_of_too_many_pages_is_refused_before_it_is_built(text: str) -> None:
    with pytest.raises(TooManyPagesError):
        parse_pages(text, 10)


def test_no_selection_means_every_page_up_to_the_limit() -> None:
    assert select(None, 3, 3) == (1, 2, 3)
    with pytest.raises(TooManyPagesError):
        select(None, 4, 3)


def test_selection_ends_where_the_document_does() -> None:
    assert select((2, 4), 4, 3) == (2, 4)
    with pytest.raises(PageOutOfRangeError):
        select((2, 5), 4, 3)
