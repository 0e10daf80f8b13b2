from __future__ import annotations

import numpy as np
import pytest

from shared.images.canvases import BAND_PX, LOW_PX, MOST_LINES, SIDE_PX, Strip, pack, pack_evenly
from shared.images.strip_text import PageText, first_line, lines_of


def strip(row: int, block: int = 0, *, width: int = 300, height: int = 26, grey: int = 0) -> Strip:
    return Strip(block, row, (0, 10 * row, 100, 10 * row + 8), ((0, 10 * row, 100, 10 * row + 8),),
                 np.full((height, width), grey, np.uint8))  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "count", "lines"),
    [
        ("one\ntwo", 2, ["one", "two"]),
        ("one\n\ntwo", 2, ["one", "two"]),
        ("one\n\ntwo", 3, ["one", "", "two"]),
        (" one \ntwo  ", 2, ["one", "two"]),
        ("\none", 2, ["", "one"]),
        ("one", 1, ["one"]),
        ("", 1, [""]),
        ("", 2, None),
        ("one\ntwo\nthree", 2, None),
        ("one\ntwo", 1, None),
    ],
)
def test_lines_are_those_of_the_strips_or_none(answer, count, lines):
    spans = lines_of(answer, count)
    assert (None if spans is None else [answer[start:end] for start, end in spans]) == lines


@pytest.mark.parametrize(("answer", "line"), [("one\ntwo", "one"), ("\n one ", "one"), (" \n", ""), ("", "")])
def test_single_strip_has_the_first_line(answer, line):
    start, end = first_line(answer)
    assert answer[start:end] == line


def test_page_text_joins_rows_and_parts_blocks():
    page = PageText()
    strips = [strip(0), strip(0), strip(1), strip(2, 1), strip(3, 1)]
    starts = [page.add(each, text) for each, text in zip(strips, ["a long", "line", "next", "block", ""], strict=True)]
    assert page.text == "a long line\nnext\n\nblock"
    assert starts == [0, 7, 12, 18, 23]
    assert [(start, line.text) for start, line in page.lines] == [(0, "a long line"), (12, "next"), (18, "block")]
    # One part cannot be two words.
    assert [len(line.words_px) for _, line in page.lines] == [0, 1, 1]


def test_each_strip_is_on_one_canvas_whole():
    strips = [strip(number, width=600, height=20 + number % 30, grey=number % 200) for number in range(100)]
    canvases = pack(strips)
    assert [each for canvas in canvases for each in canvas.strips] == strips
    for canvas in canvases:
        height, width = canvas.pixels_HW.shape
        assert max(height, width) <= SIDE_PX
        assert len(canvas.strips) <= MOST_LINES
        for each, top in zip(canvas.strips, canvas.tops_px, strict=True):
            assert (canvas.pixels_HW[top : top + each.pixels_HW.shape[0], 10:610] == each.pixels_HW).all()


def test_low_canvases_are_as_high_as_asked_unless_a_strip_is_higher():
    strips = [strip(number, width=300, height=400 if number == 5 else 27) for number in range(12)]
    canvases = pack(strips, most_px=BAND_PX)
    assert [each for canvas in canvases for each in canvas.strips] == strips
    assert [len(canvas.strips) for canvas in canvases] == [4, 1, 1, 4, 2]
    heights = [canvas.pixels_HW.shape[0] for canvas in canvases]
    assert [height <= BAND_PX for height in heights] == [True, True, False, True, True]


def longest(canvases) -> int:
    return max(sum(each.pixels_HW.shape[1] for each in canvas.strips) for canvas in canvases)


def test_canvases_of_even_text_keep_all_strips_in_order():
    noise = np.random.default_rng(0)
    for count in (1, 2, 9, 40):
        strips = [strip(number, width=int(noise.integers(20, 620)), height=int(noise.integers(18, 40)))
                  for number in range(count)]  # fmt: skip
        canvases = pack_evenly(strips, LOW_PX)
        assert [each for canvas in canvases for each in canvas.strips] == strips
        assert all(canvas.pixels_HW.shape[0] <= LOW_PX for canvas in canvases)
        assert longest(canvases) <= longest(pack(strips, most_px=LOW_PX))


def test_short_and_long_lines_share_the_text():
    """Nine lines fit: the first canvas of `pack` has long ones alone, the second short ones."""
    strips = [strip(number, width=600 if number < 9 else 60) for number in range(18)]
    assert [len(canvas.strips) for canvas in pack(strips, most_px=LOW_PX)] == [9, 9]
    assert longest(pack_evenly(strips, LOW_PX)) < 0.7 * longest(pack(strips, most_px=LOW_PX))


def test_lines_of_one_length_need_one_canvas_more_at_most():
    strips = [strip(number, width=600) for number in range(27)]
    assert [len(canvas.strips) for canvas in pack_evenly(strips, LOW_PX)] == [7, 7, 7, 6]
