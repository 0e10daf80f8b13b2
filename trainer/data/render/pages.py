"""Draws a text on as many pages as it needs; each page with exactly its own lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from trainer.data.render.bidi import base_level
from trainer.data.render.faces import JOINERS, FaceSet
from trainer.data.render.lines import LineSetter


@dataclass(frozen=True, slots=True)
class PageStyle:
    """How pages look.

    Attributes:
        width_px: of a page.
        height_px: of a full page; a text's last page ends after its last line.
        margin_px: blank on every side.
        size_px: minimum and maximum em size; each text gets one in between.
        leading: distance of baselines relative to the height of the faces.
    """

    width_px: int = 1024
    height_px: int = 1448
    margin_px: int = 64
    size_px: tuple[int, int] = (20, 28)
    leading: float = 1.15


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """A page and its text.

    Attributes:
        image: mode L, black on white.
        text: its lines.
        fonts: names of the document's faces.
    """

    image: Image.Image
    text: str
    fonts: tuple[str, ...]


def draw_pages(
    text: str, faces: FaceSet, style: PageStyle, rng: Random, language: str | None = None
) -> Iterator[DrawnPage]:
    """Draw a text on as many pages as it needs; a line feed ends a paragraph, a blank line is kept.

    `language` is that of its Han characters; None to guess.
    """
    text = visible(text)
    faces.check_shaping(text)
    chosen = faces.choose(text, rng, language)
    setter = LineSetter(faces, chosen, rng.randint(*style.size_px))
    names = tuple(face.name for face in chosen)
    step = max(round((setter.ascent + setter.descent) * style.leading), 1)
    per_page = max((style.height_px - 2 * style.margin_px) // step, 1)
    lines: list[tuple[str, int]] = []
    for line, base in _lines(text, setter, style.width_px - 2 * style.margin_px):
        if not line and not lines:
            continue  # no page begins with a blank line
        lines.append((line, base))
        if len(lines) == per_page:
            yield _page(lines, setter, style, step, names)
            lines = []
    while lines and not lines[-1][0]:
        lines.pop()
    if lines:
        yield _page(lines, setter, style, step, names)


def visible(text: str) -> str:
    """A text without control and format characters other than joiners."""
    return "".join(
        character if character in f"\n{JOINERS}" or unicodedata.category(character) not in {"Cc", "Cf"}
        else " " if character.isspace() else ""
        for character in text
    )  # fmt: skip


def _lines(text: str, setter: LineSetter, room_px: int) -> Iterator[tuple[str, int]]:
    for paragraph in text.split("\n"):
        if not paragraph.strip():
            yield "", 0
            continue
        base = base_level(paragraph)
        for line in setter.break_paragraph(paragraph, room_px):
            yield line, base


def _page(
    lines: list[tuple[str, int]], setter: LineSetter, style: PageStyle, step: int, names: tuple[str, ...]
) -> DrawnPage:
    while lines and not lines[-1][0]:
        lines.pop()
    height = 2 * style.margin_px + step * (len(lines) - 1) + setter.ascent + setter.descent
    image = Image.new("L", (style.width_px, height), 255)
    canvas = ImageDraw.Draw(image)
    for index, (line, base) in enumerate(lines):
        room = style.width_px - 2 * style.margin_px
        x = style.margin_px + (room - setter.width(line, base) if base else 0)
        setter.draw(canvas, x, style.margin_px + index * step + setter.ascent, line, base)
    return DrawnPage(image, "\n".join(line for line, _ in lines), names)
