"""Texts are held against drawn print; how often that is right is measured by `benchmarks/outcomes.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks.print_pages import misread
from shared.images.accounting import BoxedText, account, repeats
from shared.images.ink import find_ink
from shared.images.page_ink import InkLine
from tests.support.found_print import SHORT_LINES, SHORT_LINES_TEXT, TABLE, TABLE_TEXT
from tests.support.printed import LEFT, RIGHT, ROW, SIZE_PX, TITLE, page_of, register, two_columns

COLUMNS = find_ink(two_columns()).lines


def words(*lines: str) -> str:
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        words(*LEFT, *RIGHT),
        words(*RIGHT, *LEFT),
        " ".join((*LEFT, *RIGHT)),
        f"# {words(*LEFT)}\n\n**{words(*RIGHT)}**",
    ],
    ids=["lines", "other order", "flowing", "markdown"],
)
def test_whole_text_accounts_for_all_print(text: str) -> None:
    found = account(text, COLUMNS)
    assert (found.coverage, found.unread) == (1.0, ())


def test_misread_text_does_too() -> None:
    text = misread(words(*LEFT, *RIGHT), 0.08, np.random.default_rng(3))
    assert text != words(*LEFT, *RIGHT)
    assert account(text, COLUMNS).coverage == 1.0


@pytest.mark.parametrize(("text", "x"), [(LEFT, 520), (RIGHT, 40)])
def test_column_that_is_missing_is_found(text: tuple[str, ...], x: int) -> None:
    found = account(words(*text), COLUMNS)
    assert found.coverage == pytest.approx(0.5, abs=0.05)
    in_column = [box for box in found.unread if abs(box[0] - x) < 8]
    assert sum(box[3] - box[1] for box in in_column) > 150


def test_column_that_comes_twice_does_not_stand_for_the_other() -> None:
    assert account(words(*LEFT, *LEFT), COLUMNS).coverage == pytest.approx(0.5, abs=0.05)


def test_passage_that_is_printed_twice_is_read_whole_by_lines() -> None:
    said = " ".join(LEFT).split()
    # Broken elsewhere the second time, so that no two lines are alike.
    lines = [*LEFT, *(" ".join(said[start : start + 7]) for start in range(0, len(said), 7))]
    drawn = page_of((40, 40, lines))
    page, boxed = find_ink(drawn), boxed_lines(drawn, lines, 34)
    assert account(words(*lines), page.lines, boxed).coverage == 1.0
    assert account(words(*lines), page.lines).coverage < 0.8
    assert account(words(*LEFT), page.lines, boxed[: len(LEFT)]).coverage < 0.8


def boxed_lines(page: Image.Image, lines: Sequence[str], step: int) -> list[BoxedText]:
    """Lines below each other, as a page that is read by its lines has them."""
    return [BoxedText((40, 40 + n * step, page.width - 20, 40 + n * step + 34), line) for n, line in enumerate(lines)]


def circling(lines: int) -> list[str]:
    """Paragraphs of five lines, each of which says the same from another word on."""
    said = " ".join(LEFT + RIGHT).split()
    begun = [said[7 * number :] + said[: 7 * number] for number in range(lines // 5)]
    return [" ".join(words[start : start + 10]) for words in begun for start in range(0, 50, 10)]


def test_print_that_is_alike_has_the_text_of_its_own_place() -> None:
    lines = circling(25)
    page = page_of((40, 40, lines), size=(1000, 1300), step=48)
    found, boxed = find_ink(page).lines, boxed_lines(page, lines, 48)
    assert account(words(*lines), found).coverage < 0.95
    assert account(words(*lines), found, boxed).coverage == 1.0
    del boxed[12]
    left = account(words(*(each.text for each in boxed)), found, boxed)
    assert left.coverage == pytest.approx(0.96, abs=0.01)
    assert [box[1] // 48 for box in left.unread] == [(40 + 12 * 48) // 48]


def test_text_that_is_half_of_its_line_does_not_account_for_all_of_it() -> None:
    lines = circling(10)
    page = page_of((40, 40, lines), size=(1000, 600), step=48)
    lines[3] = lines[3][: len(lines[3]) // 2]
    left = account(words(*lines), find_ink(page).lines, boxed_lines(page, lines, 48))
    assert left.coverage == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("thick", [1, 2, 3])
def test_boxes_to_write_in_are_no_print(thick: int) -> None:
    page = page_of((40, 40, ["Surname", "First name", "Date of birth", "Postcode", "Town"]))
    draw, values = ImageDraw.Draw(page), ["Okonkwo", "Beatrice", "12.04.1983", "SW4 7QX", "London"]
    for row, value in enumerate(values):
        draw.rectangle((400, 34 + row * 54, 900, 72 + row * 54), outline="black", width=thick)
        draw.text((412, 38 + row * 54), value, font=ImageFont.load_default(SIZE_PX), fill="black")
    text = words(
        "Surname Okonkwo", "First name Beatrice", "Date of birth 12.04.1983", "Postcode SW4 7QX", "Town London"
    )
    found = find_ink(page).lines
    assert max(line.box_px[2] for line in found) < 700
    assert account(text, found).coverage == 1.0


def test_no_text_accounts_for_nothing_and_no_print_is_read_whole() -> None:
    assert account("", COLUMNS).coverage == 0.0
    assert account("text", ()).coverage == 1.0


def test_cells_of_an_html_table_account_for_print() -> None:
    columns = ["Item", "Apples", "Pears"], ["Weight", "12.50", "318.00"]
    page = page_of((40, 40, columns[0]), (420, 40, columns[1]))
    rows = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in zip(*columns, strict=True))
    table = f"<table>{rows}</table>"
    assert account(table, find_ink(page).lines).coverage == 1.0


@pytest.mark.parametrize("rows", [6, 14, 20])
def test_rows_are_counted(rows: int) -> None:
    assert repeats(f"{ROW}\n", TITLE, find_ink(register(rows)).lines) == rows


def test_rows_that_were_written_before_are_not_counted_again() -> None:
    assert repeats(f"{ROW}\n", f"{TITLE}\n{ROW}\n{ROW}", find_ink(register(14)).lines) == 12


def test_cells_are_counted_and_words_of_a_paragraph_are_not() -> None:
    cells = page_of(*((40 + 120 * column, 40, ["0.00"] * 5) for column in range(6)))
    assert repeats("0.00 ", "", find_ink(cells).lines) == 30
    assert repeats("the boats ", words(*LEFT[:2]), COLUMNS) == 0
    assert repeats("____", "", COLUMNS) == 0


@pytest.mark.parametrize(
    ("text", "lines"), [(SHORT_LINES_TEXT, SHORT_LINES), (TABLE_TEXT, TABLE)], ids=["short lines", "misread title"]
)
def test_whole_readings_of_other_pages_are_not_taken_for_partial_ones(text: str, lines: tuple[InkLine, ...]) -> None:
    assert account(text, lines).coverage > 0.95


def test_what_is_left_out_of_them_is_still_found() -> None:
    rows = TABLE_TEXT.strip().split("\n")
    assert account("\n".join(rows[: len(rows) // 2]), TABLE).coverage < 0.7
    assert account("\n".join(SHORT_LINES_TEXT.strip().split("\n")[:8]), SHORT_LINES).coverage < 0.45
