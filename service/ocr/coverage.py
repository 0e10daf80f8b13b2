"""The print of a page that a model's answer has to account for."""

from __future__ import annotations

from collections.abc import Sequence

from service.intake.print_task import PrintTask
from shared.deepseek_ocr.grounding import GroundedText
from shared.images.accounting import BoxedText
from shared.images.page_ink import InkLine

_PICTURES = {"image", "figure"}
"""Labels of boxes whose print is part of a picture."""


def print_task(answer: GroundedText, lines: Sequence[InkLine], *, is_by_lines: bool = False) -> PrintTask:
    """What holds an answer against the page's print; print in boxes of pictures needs no text.

    Args:
        answer: The page's text, and the boxes where the model gives them.
        lines: The page's print.
        is_by_lines: The page was read line by line.

    Returns:
        The text, and the print that it has to account for.
    """
    pictures = [region.box_px for region in answer.regions if region.label.lower() in _PICTURES]
    wanted = tuple(line for line in lines if not any(_is_in(line, box) for box in pictures))
    boxed = tuple(BoxedText(region.box_px, region.text) for region in answer.regions) if is_by_lines else ()
    return PrintTask(answer.text, wanted, boxed)


def _is_in(line: InkLine, box: tuple[int, int, int, int]) -> bool:
    x, y = (line.box_px[0] + line.box_px[2]) / 2, (line.box_px[1] + line.box_px[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]
