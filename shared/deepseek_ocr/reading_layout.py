"""Whether a page is read as a whole or by its lines."""

from __future__ import annotations

from enum import StrEnum

from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import GeometryConfig


class ReadingLayout(StrEnum):
    """How a page goes to the model."""

    AUTO = "auto"
    PAGE = "page"
    LINES = "lines"


LINE_TASKS = (Task.FREE, Task.MARKDOWN)
"""Tasks whose answer is the text of the page alone, so that it can be put together from lines."""


def layouts_of(geometry: GeometryConfig) -> tuple[ReadingLayout, ...]:
    """What requests may ask of a checkpoint."""
    return tuple(layout for layout in ReadingLayout if layout is not ReadingLayout.LINES or geometry.reads_lines)


def lines_from_views(layout: ReadingLayout, geometry: GeometryConfig, *, is_base: bool) -> int:
    """From how many views on a page is read by its lines.

    Args:
        layout: What was asked for.
        geometry: The checkpoint's, which says whether it reads lines.
        is_base: Whether no adapter is used: adapters are trained on whole pages.

    Returns:
        0: never.
    """
    if not geometry.reads_lines or layout is ReadingLayout.PAGE:
        return 0
    if layout is ReadingLayout.LINES:
        return 1
    return 2 if is_base else 0
