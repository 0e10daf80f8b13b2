"""The trainer reads what it is unsure of once more, as the service does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from shared.contract.answer import FinishReason
from shared.contract.confidence import score_tokens
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import PADDING_GREY, plan_views
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.images.canvases import MOST_LINES, Strip
from shared.images.ink import find_ink
from tests.support.printed import LEFT, page_of
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.evaluation.scores import Reading
from trainer.reading.generation import Generated
from trainer.reading.lines import read_lines
from trainer.reading.model import ModelReader

DOUBTFUL = 20
LARGER = 100
"""What the darkness of enlarged strips is more than that of the strip in their place."""


def strip_of(number: int) -> Strip:
    box = (5, 30 * number, 90, 30 * number + 20)
    return Strip(0, number, box, (box,), np.full((24, 200), number, np.uint8))


def numbers_on(view: PageViews) -> list[int]:
    column = view.global_view_HWC[:, view.global_view_HWC.shape[1] // 2, 0]
    return list(dict.fromkeys(int(value) for value in column if value < 127))


def test_second_look_leaves_out_canvases_that_were_read_surely():
    asked: list[int] = []

    def line_of(number: int) -> str:
        if number >= LARGER:
            return f"again {number - LARGER}"
        return f"{'blurred' if number == DOUBTFUL else 'line'} {number}"

    def read(views: Sequence[PageViews]) -> list[Generated]:
        answers = []
        for view in views:
            numbers = numbers_on(view)
            asked.extend(numbers)
            text = "\n".join(map(line_of, numbers))
            lines = text.splitlines(keepends=True)
            logs = [-1.4 if line.startswith("blurred") else -0.001 for line in lines for _ in line]
            scores = score_tokens([letter.encode() for letter in text], logs)
            answers.append(Generated(text, len(text), FinishReason.STOP, scores))
        return answers

    strips = [strip_of(number) for number in range(25)]

    def enlarge() -> list[Strip]:
        return [replace(strip, pixels_HW=strip.pixels_HW + LARGER) for strip in strips]

    answer = read_lines(strips, NANO_GEOMETRY, read, enlarge)
    assert [n - LARGER for n in asked if n >= LARGER] == list(range(MOST_LINES, 25))
    assert answer.text.splitlines()[DOUBTFUL] == f"again {DOUBTFUL}"
    assert answer.text.splitlines()[0] == "line 0"


def reading(text: str, probability: float) -> Reading:
    scores = score_tokens([letter.encode() for letter in text], [math.log(probability)] * len(text))
    return Reading(text, 1.0, token_scores=scores)


@pytest.mark.parametrize(
    ("num_lines", "whole", "lines", "chosen"),
    [
        pytest.param(4, 0.9, 0.93, "lines", id="lines are surer"),
        pytest.param(4, 0.9, 0.905, "whole", id="lines are hardly surer"),
        pytest.param(4, 0.975, 0.999, "whole", id="sure"),
    ],
)
def test_what_was_read_whole_and_not_surely_is_read_by_its_lines_too(num_lines, whole, lines, chosen, monkeypatch):
    image = page_of((40, 40, LEFT), size=(600, 360))
    reader = ModelReader(tiny_model(), tiny_tokenizer(), NANO_GEOMETRY, "nano")
    monkeypatch.setattr(reader, "_read_strips", lambda *_: reading("lines", lines))
    found = reader._surest(image, plan_of(image), reading("whole", whole), find_ink(image).lines[:num_lines])
    assert found.text == chosen


@pytest.mark.parametrize(
    ("size", "whole", "others", "scales", "chosen"),
    [
        pytest.param((450, 360), 0.9, [0.91, 0.93, 0.92], [1.25, 0.8, 1.4], "0.93", id="surest"),
        pytest.param((500, 360), 0.9, [0.98], [1.25], "0.98", id="sure of the second"),
        pytest.param((600, 360), 0.9, [0.91, 0.89, 0.89], [0.8, 0.7, 0.9], "0.91", id="no larger one has room"),
        pytest.param((600, 360), 0.9, [0.89, 0.89, 0.89], [0.8, 0.7, 0.9], "whole", id="less sure"),
        pytest.param((600, 360), 0.98, [], [], "whole", id="sure"),
        pytest.param((900, 360), 0.9, [], [], "whole", id="several views"),
    ],
)
def test_few_lines_that_were_not_read_surely_are_read_at_other_sizes_too(
    size, whole, others, scales, chosen, monkeypatch
):
    image = page_of((40, 40, LEFT), size=size)
    reader = ModelReader(tiny_model(), tiny_tokenizer(), NANO_GEOMETRY, "nano")
    seen: list[PageViews] = []

    def generate(views, *_):
        seen.extend(views)
        probability = others[len(seen) - 1]
        read = reading(f"{probability}", probability)
        return [Generated(read.text, 5, FinishReason.STOP, read.token_scores)]

    monkeypatch.setattr(reader, "_generate", generate)
    found = reader._surest(image, plan_of(image), reading("whole", whole), find_ink(image).lines[:3])
    assert found.text == chosen
    assert [view_size(view) for view in seen] == [tuple(round(side * scale) for side in size) for scale in scales]


def test_a_reading_at_another_size_that_leaves_text_out_is_not_taken(monkeypatch):
    image = page_of((40, 40, LEFT), size=(450, 360))
    reader = ModelReader(tiny_model(), tiny_tokenizer(), NANO_GEOMETRY, "nano")
    others = iter(["to", "8446.79\n\nto", "8446"])

    def generate(*_):
        read = reading(next(others), 0.95)
        return [Generated(read.text, 5, FinishReason.STOP, read.token_scores)]

    monkeypatch.setattr(reader, "_generate", generate)
    first = reading("8448.79\n\nto", 0.9)
    assert reader._surest(image, plan_of(image), first, find_ink(image).lines[:3]).text == "8446.79\n\nto"


def plan_of(image):
    return plan_views(image.width, image.height, NANO_GEOMETRY.default_mode, NANO_GEOMETRY)


def view_size(views: PageViews) -> tuple[int, int]:
    """Width and height of what is not padding."""
    is_shown = (views.global_view_HWC != PADDING_GREY).any(axis=2)
    return int(is_shown.any(axis=0).sum()), int(is_shown.any(axis=1).sum())
