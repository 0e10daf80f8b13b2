"""A page read by its lines: whatever answers are like, its text is in order, and each line where it was found."""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from service.engine.protocol import SequenceResult, SequenceTimings
from service.errors import EngineLostError
from service.ocr.line_reading import LinesResult, read_lines
from shared.contract.answer import FinishReason
from shared.contract.confidence import score_tokens
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.images.canvases import LOW_PX, Strip

HEIGHT = 24
STOP = FinishReason.STOP


def strips_of(count: int) -> list[Strip]:
    """Strips whose darkness says which they are; two of three rows have one strip, the third has two."""
    strips = []
    for number in range(count):
        box = (5, 30 * number, 90, 30 * number + 20)
        pixels = np.full((HEIGHT, 200), number, np.uint8)
        strips.append(Strip(number // 8, number - (number % 3 == 2), box, (box,), pixels))
    return strips


def numbers_on(view: PageViews) -> list[int]:
    """Which strips a canvas shows."""
    column = view.global_view_HWC[:, :, 0]
    x = int(np.argmax((column < 100).any(axis=0)))
    found = [int(value) for value in column[:, x] if value < 100]
    return list(dict.fromkeys(found))


class Reader:
    """Gives each strip's number in words, and counts what it was asked."""

    def __init__(self, answer: Callable[[list[int]], tuple[str, FinishReason]] | None = None) -> None:
        self.answer = answer or (lambda numbers: ("\n".join(f"line {n}" for n in numbers), STOP))
        self.asked: list[list[int]] = []

    async def __call__(self, view: PageViews, max_new_tokens: int) -> SequenceResult:
        numbers = numbers_on(view)
        self.asked.append(numbers)
        await asyncio.sleep(random.Random(len(self.asked)).random() / 500)
        text, reason = self.answer(numbers)
        if len(text) > max_new_tokens:
            text, reason = text[:max_new_tokens], FinishReason.LENGTH
        # Line breaks are easy, print is not if there is none.
        logs = [
            -0.01 if line.startswith("line") or not letter.strip() else -1.4
            for line in text.splitlines(keepends=True)
            for letter in line
        ]
        scores = score_tokens([letter.encode() for letter in text], logs)
        timings = SequenceTimings(0.1, 0.2, 0.3, 0.4)
        return SequenceResult("x", text, reason, 0.99, 0.9, 400, 410, len(text), timings, scores)


def run(strips: list[Strip], reader: Reader, most: int | None = 4000) -> tuple[LinesResult, str]:
    shown: list[str] = []
    result = asyncio.run(read_lines(strips, NANO_GEOMETRY, most, reader, shown.append))
    return result, "".join(shown)


def expected(count: int) -> str:
    text = ""
    for number in range(count):
        joint = "" if not number else " " if number % 3 == 2 else "\n\n" if not number % 8 else "\n"
        text += f"{joint}line {number}"
    return text


def test_text_is_in_order_and_streamed_as_it_is():
    reader = Reader()
    result, shown = run(strips_of(40), reader)
    assert result.result.text == shown == expected(40)
    assert len(reader.asked) == 3
    assert result.result.vision_tokens == 1200
    assert result.result.finish_reason is STOP
    assert result.busy_s == pytest.approx(2.7)


def test_boxes_and_scores_are_those_of_the_lines():
    result, _ = run(strips_of(20), Reader())
    text, scores = result.result.text, result.result.token_scores
    for region in result.regions:
        assert text[region.start : region.start + len(region.text)] == region.text
        number = int(region.text.split()[1])
        assert region.box_px[1] == 30 * number
    assert scores is not None
    assert "".join(text[a:b] for a, b in zip(scores.starts, scores.ends, strict=True)) == "".join(
        f"line {number}" for number in range(20)
    )


@pytest.mark.parametrize("fault", ["joins", "splits", "loops"])
def test_canvas_that_went_wrong_is_read_in_smaller_groups(fault):
    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        lines = [f"line {n}" for n in numbers]
        if len(numbers) > 3 and 5 in numbers:
            if fault == "loops":
                return "no " * 50, FinishReason.REPETITION
            if fault == "joins":
                lines = [" ".join(lines[:2]), *lines[2:]]
            else:
                lines.insert(3, "from nowhere")
        return "\n".join(lines), STOP

    reader = Reader(answer)
    result, shown = run(strips_of(24), reader)
    assert result.result.text == shown == expected(24)
    assert len(reader.asked) > 2


def test_strip_of_nonsense_has_no_text_and_costs_no_other():
    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        if 4 in numbers:
            return "no " * 40, FinishReason.REPETITION
        return "\n".join(f"line {n}" for n in numbers), STOP

    result, _ = run(strips_of(9), Reader(answer))
    assert "no" not in result.result.text
    assert [f"line {n}" in result.result.text for n in range(9)] == [n != 4 for n in range(9)]
    assert result.result.finish_reason is STOP


@pytest.mark.parametrize("most", [1, 10, 40, 100])
def test_limit_holds_for_the_page(most):
    result, shown = run(strips_of(40), Reader(), most)
    text = result.result.text
    assert text == shown
    assert expected(40).startswith(text)
    assert len(text.replace("\n", "")) <= most + 20
    assert result.result.finish_reason is FinishReason.LENGTH


def test_lost_engine_ends_the_page():
    class Lost(Reader):
        async def __call__(self, view: PageViews, max_new_tokens: int) -> SequenceResult:
            result = await super().__call__(view, max_new_tokens)
            if len(self.asked) >= 2:
                raise EngineLostError
            return result

    with pytest.raises(BaseExceptionGroup) as failure:
        run(strips_of(40), Lost())
    assert failure.group_contains(EngineLostError)


def canvases_of(count: int) -> list[Strip]:
    """Strips so high that each canvas has five."""
    boxes = [(5, 30 * number, 90, 30 * number + 20) for number in range(5 * count)]
    return [Strip(0, number, box, (box,), np.full((110, 200), number, np.uint8)) for number, box in enumerate(boxes)]


@pytest.mark.parametrize(("num_runaway", "num_lines"), [(3, 50), (5, 15)])
def test_page_whose_first_canvases_have_no_end_is_given_up(num_runaway, num_lines):
    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        if numbers[0] < 5 * num_runaway and len(numbers) > 1:
            return "no " * 20, FinishReason.REPETITION
        return "\n".join(f"line {n}" for n in numbers), STOP

    texts = set()
    for _ in range(3):
        reader = Reader(answer)
        result, shown = run(canvases_of(10), reader)
        assert result.result.text == shown
        assert len(result.result.text.split("\n")) == num_lines
        # Read again in parts, or not at all.
        assert (min(map(len, reader.asked)) < 5) == (num_runaway < 5)
        texts.add((result.result.text, result.result.confidence))
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("num_unsure", "num_empty", "least", "num_asked"),
    [(5, 0, 0.4, 8), (2, 5, 0.4, 8), (3, 0, 0.4, 10), (1, 7, 0.4, 10), (0, 8, 0.4, 10), (8, 0, 0.2, 10)],
)
def test_page_whose_first_canvases_are_read_unsurely_is_read_no_further(num_unsure, num_empty, least, num_asked):
    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        canvas = numbers[0] // 5
        if canvas < num_unsure:
            return "\n".join("seen in the clouds" for _ in numbers), STOP
        if canvas < num_unsure + num_empty:
            return "\n" * (len(numbers) - 1), STOP
        return "\n".join(f"line {n}" for n in numbers), STOP

    class LateReader(Reader):
        """Reads the last canvases after those that tell."""

        def __init__(self) -> None:
            super().__init__(answer)
            self.num_telling = 8
            self.have_told = asyncio.Event()

        async def __call__(self, view: PageViews, max_new_tokens: int) -> SequenceResult:
            is_late = numbers_on(view)[0] >= 40
            if is_late:
                await self.have_told.wait()
            result = await super().__call__(view, max_new_tokens)
            self.num_telling -= not is_late
            if not self.num_telling:
                self.have_told.set()
            return result

    reader = LateReader()
    asyncio.run(read_lines(canvases_of(10), NANO_GEOMETRY, 4000, reader, least_confidence=least))
    assert len(reader.asked) == num_asked


def test_limit_is_the_pages_where_there_is_one():
    result, _ = run(strips_of(40), Reader(), most=None)
    assert result.result.text == expected(40)
    result, _ = run(strips_of(40), Reader(), most=60)
    assert result.result.finish_reason is FinishReason.LENGTH
    assert expected(40).startswith(result.result.text)


def test_low_canvases_hold_fewer_lines_and_give_the_same_text():
    reader = Reader()
    shown: list[str] = []
    result = asyncio.run(read_lines(strips_of(40), NANO_GEOMETRY, 4000, reader, shown.append, most_px=LOW_PX))
    assert result.result.text == "".join(shown) == expected(40)
    assert [len(numbers) for numbers in reader.asked] == [8] * 5


LARGER = 50
"""What the darkness of enlarged strips is more than that of the strip in their place."""


def enlarged(count: int) -> list[Strip]:
    """The rows of `strips_of`, each of one strip."""
    rows = {strip.row: strip for strip in reversed(strips_of(count))}
    return [
        replace(strip, pixels_HW=np.full((33, 150), LARGER + row, np.uint8)) for row, strip in reversed(rows.items())
    ]


def looked_at_again(
    count: int, unsure: set[int], second: str, larger: list[Strip] | None = None
) -> tuple[LinesResult, list[str], Reader, int]:
    """Read strips of which some are not read surely; also the pieces of text, and how often larger ones were wanted."""
    shown: list[str] = []
    num_enlarged = 0

    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        if numbers[0] >= LARGER:
            return "\n".join(second for _ in numbers), STOP
        return "\n".join(("blurred" if n in unsure else "line") + f" {n}" for n in numbers), STOP

    async def enlarge() -> list[Strip]:
        nonlocal num_enlarged
        num_enlarged += 1
        await asyncio.sleep(0)
        return enlarged(count) if larger is None else larger

    reader = Reader(answer)
    result = asyncio.run(read_lines(strips_of(count), NANO_GEOMETRY, 4000, reader, shown.append, enlarge=enlarge))
    return result, shown, reader, num_enlarged


def test_page_that_was_not_read_surely_is_read_once_more_from_larger_print():
    result, shown, reader, _ = looked_at_again(24, {4, 10, 21}, "line again")
    text = result.result.text
    # A row has one strip or two, of which one is enough to doubt it. Rows that were read as surely stay.
    doubtful = ("line 4 line 5", "line 10 line 11", "line 21")
    assert text == functools.reduce(lambda all_of, row: all_of.replace(row, "line again"), doubtful, expected(24))
    assert "".join(shown) == text
    asked = [number for numbers in reader.asked for number in numbers if number >= LARGER]
    assert asked == [LARGER + number for number in range(24) if number % 3 != 2]
    scores = result.result.token_scores
    assert scores is not None
    tokens = "".join(text[a:b] for a, b in zip(scores.starts, scores.ends, strict=True))
    assert "".join(tokens.split()) == "".join(text.split())
    assert result.result.confidence == pytest.approx(math.exp(-0.01))


def test_second_look_leaves_out_canvases_that_were_read_surely():
    async def enlarge() -> list[Strip]:
        return enlarged(24)

    reader = Reader(lambda numbers: ("\n".join(f"{'blurred' if n in {9, 10} else 'line'} {n}" for n in numbers), STOP))
    asyncio.run(read_lines(strips_of(24), NANO_GEOMETRY, 4000, reader, None, enlarge=enlarge, most_px=LOW_PX))
    (doubtful,) = [numbers for numbers in reader.asked if 9 in numbers]
    asked = [number - LARGER for numbers in reader.asked for number in numbers if number >= LARGER]
    # The rows of its strips, by the first strip of each.
    assert sorted(asked) == sorted({number - (number % 3 == 2) for number in doubtful})
    assert len(doubtful) == 8


@pytest.mark.parametrize(
    ("unsure", "second", "larger"),
    [
        ({7}, "blurred again", None),
        ({7}, "", None),
        ({7}, "line again", []),
        ({7}, "line again", [strip for strip in enlarged(24) if strip.row != 7]),
    ],
    ids=["no surer", "empty", "page lost", "row lost"],
)
def test_what_was_read_first_stays_unless_the_second_look_is_surer(unsure, second, larger):
    result, shown, _, num_enlarged = looked_at_again(24, unsure, second, larger)
    assert result.result.text == "".join(shown) == expected(24).replace("line 7", "blurred 7")
    assert num_enlarged == 1


def test_engine_that_is_lost_in_the_second_look_costs_no_text():
    class Lost(Reader):
        async def __call__(self, view: PageViews, max_new_tokens: int) -> SequenceResult:
            result = await super().__call__(view, max_new_tokens)
            if LARGER + 16 in numbers_on(view):
                await asyncio.sleep(0.01)
                raise EngineLostError
            return result

    async def enlarge() -> list[Strip]:
        return enlarged(24)

    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        return "\n".join("line again" if n >= LARGER else "blurred" if n == 1 else f"line {n}" for n in numbers), STOP

    shown: list[str] = []
    reader = Lost(answer)
    result = asyncio.run(read_lines(strips_of(24), NANO_GEOMETRY, None, reader, shown.append, enlarge=enlarge))
    assert max(number for numbers in reader.asked for number in numbers) > LARGER
    assert result.result.text == "".join(shown) == expected(24).replace("line 1 line 2", "blurred line 2")


def test_row_that_the_limit_cut_in_the_second_look_stays_as_it_was():
    def answer(numbers: list[int]) -> tuple[str, FinishReason]:
        if numbers[0] < LARGER:
            return "\n".join("blurred" if n < 2 else f"line {n}" for n in numbers), STOP
        return "\n".join("x" * 82 if n == LARGER else "line again" for n in numbers), STOP

    async def enlarge() -> list[Strip]:
        return enlarged(9)

    reader = Reader(answer)
    result = asyncio.run(read_lines(strips_of(9), NANO_GEOMETRY, 90, reader, None, enlarge=enlarge)).result
    assert reader.asked[-1][0] == LARGER
    first_look = expected(9).replace("line 0", "blurred").replace("line 1", "blurred")
    assert (result.text, result.finish_reason) == (first_look, STOP)


def test_rows_after_the_limit_are_not_looked_at_again():
    reader = Reader(lambda numbers: ("\n".join(f"{'line' if n % 4 else 'blurred'} {n}" for n in numbers), STOP))

    async def enlarge() -> list[Strip]:
        return enlarged(24)

    result = asyncio.run(read_lines(strips_of(24), NANO_GEOMETRY, 60, reader, None, enlarge=enlarge)).result
    asked = [number - LARGER for numbers in reader.asked for number in numbers if number >= LARGER]
    assert asked
    assert max(asked) < 10
    assert result.finish_reason is FinishReason.LENGTH


def test_text_of_a_page_that_is_read_once_more_comes_after_that():
    _, shown, _, num_enlarged = looked_at_again(24, {12}, "line again")
    assert (len(shown), num_enlarged) == (1, 1)


def test_text_of_a_page_whose_first_canvases_were_read_surely_comes_as_it_is_read():
    async def enlarge() -> list[Strip]:
        raise AssertionError

    reader = Reader(lambda numbers: ("\n".join(("line" if n < 40 else "blurred") + f" {n}" for n in numbers), STOP))
    shown: list[str] = []
    result = asyncio.run(read_lines(canvases_of(19), NANO_GEOMETRY, 4000, reader, shown.append, enlarge=enlarge))
    assert result.result.text == "".join(shown)
    assert len(shown) > 1


def test_print_that_may_be_none_is_not_looked_at_again():
    result, shown, _, num_enlarged = looked_at_again(9, set(range(9)), "line again")
    assert num_enlarged == 0
    assert result.result.text == "".join(shown) == expected(9).replace("line", "blurred")


def test_nothing_is_enlarged_of_a_texture():
    async def enlarge() -> list[Strip]:
        raise AssertionError

    reader = Reader(lambda numbers: ("\n".join("seen in the clouds" for _ in numbers), STOP))
    shown: list[str] = []
    result = asyncio.run(read_lines(canvases_of(10), NANO_GEOMETRY, 4000, reader, shown.append, enlarge=enlarge))
    assert result.result.text == "".join(shown)
    assert result.result.text.count("seen") == 40
