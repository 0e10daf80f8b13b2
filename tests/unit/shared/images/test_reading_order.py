"""Columns are read one after the other, tables row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from shared.images.reading_order import reading_order
from shared.images.segments import Segment
from tests.support.sheets import Sheet, read

EM = 20
PITCH = 26


def words(x: int, base: int, count: int, *, wide: int = 50, gap: int = 8) -> Segment:
    """Print of so many words on a base line, in pixels; their letters are as high as capitals."""
    boxes = [(x + i * (wide + gap), base - 14, x + i * (wide + gap) + wide, base) for i in range(count)]
    whole = boxes[0][0], base - 14, boxes[-1][2], base
    return Segment(whole, EM, tuple((box[0], box[2]) for box in boxes), tuple(boxes))


def column(x: int, bases: list[int], counts: list[int]) -> list[Segment]:
    """Lines one below the other, each of its number of words."""
    return [words(x, base, counts[i % len(counts)]) for i, base in enumerate(bases)]


def typewritten(x: int, bases: list[int], rng: np.random.Generator) -> list[Segment]:
    """Justified lines, 480 pixels wide, whose words stand so far apart that each is a segment."""
    segments = []
    for base in bases:
        ends = np.sort(rng.choice(np.arange(60, 420, 12), 4, replace=False)).tolist()
        for left, right in zip([0, *ends], [*ends, 480], strict=True):
            segments.append(words(x + left, base, 1, wide=right - left - (0 if right == 480 else 20)))
    return segments


def steps(top: int, count: int, pitch: int = PITCH) -> list[int]:
    """Base lines."""
    return [top + i * pitch for i in range(count)]


def order_of(segments: list[Segment], rules: list[tuple[int, int, int, int]] | None = None) -> list[Segment]:
    """Segments in reading order, whatever order they come in."""
    shuffled = [segments[i] for i in np.random.default_rng(0).permutation(len(segments))]
    return [segment for block in reading_order(shuffled, rules or []) for row in block for segment in row]


def joined(parts: Iterable[Sequence[Segment]]) -> list[Segment]:
    """Segments of one part after another."""
    return list(chain.from_iterable(parts))


def by_rows(*columns: list[Segment]) -> list[Segment]:
    """Segments of as many rows as each column has."""
    return joined(zip(*columns, strict=True))


def test_columns_of_short_lines_are_read_one_after_the_other() -> None:
    left = column(60, [*steps(100, 4), *steps(222, 3), *steps(318, 5)], [1, 2, 2, 1])
    right = column(420, [*steps(100, 2), *steps(165, 6), *steps(339, 4)], [2, 1, 2])
    assert order_of([*left, *right]) == [*left, *right]


def test_typewritten_columns_on_one_grid_are_read_one_after_the_other() -> None:
    rng = np.random.default_rng(3)
    left, right = (typewritten(x, steps(100, 24), rng) for x in (40, 560))
    assert order_of([*left, *right]) == [*left, *right]


def justified(x: int, bases: list[int]) -> list[Segment]:
    """Lines of six words, every second in two pieces with little more room between them, anywhere."""
    segments = []
    for i, base in enumerate(bases):
        first = (6, 2, 6, 4)[i % 4]
        segments.append(words(x, base, first))
        if first < 6:
            segments.append(words(segments[-1].box[2] + 14, base, 6 - first))
            segments[-1] = replace(segments[-1], box=(*segments[-1].box[:2], x + 340, base))
    return segments


def test_short_justified_columns_on_one_grid_are_read_one_after_the_other() -> None:
    left, right = (justified(x, steps(100, 9)) for x in (40, 440))
    assert order_of([*left, *right]) == [*left, *right]


def test_a_table_below_columns_is_read_row_by_row() -> None:
    left = column(60, steps(100, 6), [2, 1, 2])
    right = column(420, steps(110, 5), [1, 2])
    labels, figures = column(60, steps(330, 6, 40), [2, 1]), column(420, steps(330, 6, 40), [1])
    assert order_of([*left, *right, *labels, *figures]) == [*left, *right, *by_rows(labels, figures)]


def test_a_table_of_wordy_cells_is_read_row_by_row() -> None:
    cells = [column(x, steps(100, 9), counts) for x, counts in ((40, [3, 2, 3]), (300, [3, 3, 2]), (560, [2, 3, 3]))]
    assert order_of(joined(cells)) == by_rows(*cells)


def test_cells_below_headings_that_cross_them_are_no_running_text() -> None:
    headings = [words(x, 70, 5) for x in (40, 400)]
    cells = [column(x, steps(100, 18), [2]) for x in (40, 180, 400, 540)]
    assert order_of([*headings, *joined(cells)]) == [*headings, *by_rows(*cells)]


def test_a_column_ends_at_white_space_as_wide_as_no_other() -> None:
    above = [column(x, steps(top, 8), [6, 7]) for x, top in ((40, 100), (560, 108))]
    below = [column(x, steps(top, 8), [7, 6]) for x, top in ((40, 372), (560, 364))]
    assert order_of(joined([*above, *below])) == joined([*above, *below])


def test_columns_go_on_along_an_upright_rule_within_their_gutter() -> None:
    left, right = (column(x, [*steps(top, 8), *steps(top + 264, 8)], [6, 7]) for x, top in ((40, 100), (560, 108)))
    upper, lower = ([*left[part], *right[part]] for part in (slice(8), slice(8, 16)))
    assert order_of([*left, *right]) == [*upper, *lower]
    assert order_of([*left, *right], [(500, 80, 502, 580)]) == [*left, *right]
    assert order_of([*left, *right], [(500, 80, 502, 290)]) == [*upper, *lower]


def test_notes_far_below_a_longer_column_are_read_with_it() -> None:
    left, right = column(40, steps(100, 18), [6, 7]), column(560, steps(109, 10), [7, 6])
    notes = column(40, steps(760, 3), [6])
    assert order_of([*left, *right, *notes]) == [*left, *notes, *right]


@pytest.mark.parametrize("number", [1, 2])
def test_a_number_below_or_above_columns_is_read_last_or_first(number: int) -> None:
    left, right = column(40, steps(100, 18), [6, 7]), column(560, steps(100, 17), [7, 6])
    below, above = [words(40, 620, number)], [words(900, 40, number)]
    assert order_of([*left, *right, *below]) == [*left, *right, *below]
    assert order_of([*left, *right, *above]) == [*above, *left, *right]
    assert order_of([*left, *right, *below, *above]) == [*above, *left, *right, *below]


def test_a_line_of_text_at_the_end_of_a_longer_column_is_read_with_it() -> None:
    left, right = column(40, steps(100, 18), [6, 7]), column(560, steps(100, 15), [7, 6])
    last = words(40, 100 + 18 * PITCH, 1)
    assert order_of([*left, *right, last]) == [*left, last, *right]


def test_a_level_rule_across_the_gutter_ends_columns() -> None:
    sides = [column(x, steps(top, 14), [2, 1, 2]) for x, top in ((60, 100), (420, 110))]
    above, below = (
        [[line for line in side if (line.middle < 270) == is_above] for side in sides] for is_above in (1, 0)
    )
    rule = (40, 269, 700, 271)
    assert order_of(joined(sides)) == joined(sides)
    assert order_of(joined(sides), [rule]) == joined([*above, *below])
    one_side_rule = (40, 269, 380, 271)
    assert order_of(joined(sides), [one_side_rule]) == joined(sides)


@pytest.mark.parametrize("missing", [[], [2, 3, 7], [0, 1, 4, 5, 9]])
def test_a_table_with_dashes_and_empty_cells_is_read_row_by_row(missing: list[int]) -> None:
    bases = steps(100, 12)
    dashes = [
        Segment((430, base - 8, 440, base - 6), EM, ((430, 440),), ((430, base - 8, 440, base - 6),)) for base in bases
    ]
    labels, figures = column(40, bases, [2, 3]), column(560, bases, [1])
    rows = [[labels[i], dashes[i], *([figures[i]] if i not in missing else [])] for i in range(12)]
    assert order_of(joined(rows)) == joined(rows)


def test_numbers_in_a_margin_belong_to_their_lines() -> None:
    numbers = [words(20, base, 1, wide=20) for base in steps(100, 20, 40)]
    lines = column(90, steps(103, 30), [6, 7, 5])
    found = order_of([*numbers, *lines])
    assert found.index(numbers[-1]) > found.index(lines[-8])


def test_a_page_with_a_rule_between_addresses_and_amounts_is_read_in_parts() -> None:
    sheet = Sheet()
    for kind, top in (("name", 60), ("item", 290)):
        for number in range(12):
            x, pitch = (80, 28) if number < 6 else (700, 34)
            sheet.write(x, top + pitch * (number % 6), f"{kind}{number} street")
    sheet.draw.rectangle((60, 266, 1140, 268), fill=(0, 0, 0))
    text = read(sheet.image, sheet.lines)
    places = [text.index(f"{kind}{number} ") for kind in ("name", "item") for number in range(12)]
    assert places == sorted(places)
