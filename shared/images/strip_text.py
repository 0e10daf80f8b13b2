"""From a reader's lines to the text of a page: which line is which strip's, and how strips join. Knows no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.images.canvases import Canvas, Strip


def lines_of(answer: str, count: int) -> list[str] | None:
    """The line of each strip.

    Args:
        answer: To a canvas.
        count: Strips on it.

    Returns:
        None where the answer has another number of lines, so that none can be trusted to be where it seems.
    """
    if count == 1:
        return [" ".join(answer.split())]
    lines = [" ".join(line.split()) for line in answer.split("\n")]
    if len(lines) == count:
        return lines
    # Room between strips may be read as that between blocks.
    written = [line for line in lines if line]
    return written if len(written) == count else None


def halves(canvas: Canvas) -> tuple[tuple[Strip, ...], tuple[Strip, ...]]:
    """The strips of a canvas in two parts."""
    middle = (len(canvas.strips) + 1) // 2
    return canvas.strips[:middle], canvas.strips[middle:]


@dataclass(frozen=True, slots=True)
class LineText:
    """A line of a page's text."""

    text: str
    strips: tuple[tuple[Strip, str], ...]
    """What it was read from, each with its part."""
    block: int


def join_strips(strips: Sequence[Strip], texts: Sequence[str]) -> list[LineText]:
    """Lines of a page: strips of one row are joined by a space; rows without text are left out.

    Args:
        strips: In reading order.
        texts: Of each.

    Returns:
        The lines in order.
    """
    lines: list[LineText] = []
    parts: list[tuple[Strip, str]] = []

    def close() -> None:
        text = " ".join(part for _, part in parts if part)
        if text:
            lines.append(LineText(text, tuple(parts), parts[0][0].block))
        parts.clear()

    for strip, text in zip(strips, texts, strict=True):
        if parts and parts[-1][0].row != strip.row:
            close()
        parts.append((strip, text))
    if parts:
        close()
    return lines


def page_text(lines: Sequence[LineText]) -> str:
    """The text of a page, a blank line between blocks."""
    text = ""
    for index, line in enumerate(lines):
        if index:
            text += "\n" if lines[index - 1].block == line.block else "\n\n"
        text += line.text
    return text
