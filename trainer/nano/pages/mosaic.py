"""Whole pages of many parts, drawn: several columns, forms, wide tables, letterheads, numbered lines, side boxes.

The tiers of `trainer.nano.pages.render` have one text area. Here a page is a stack of bands, each with a layout of its
own, and the truth goes band by band; in a band from left to right, part by part, as a person would read it aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from random import Random
from typing import Final

import numpy as np
from PIL import Image

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.words import LABELS
from trainer.nano.fonts.glyphs import Ink
from trainer.nano.pages import synthetic_blocks
from trainer.nano.pages.blocks import Block, FixedLines, Paragraph, Table
from trainer.nano.pages.documents import adapt_block, heading, small_block
from trainer.nano.pages.layout import Column, Sheet, TextStyle, set_block
from trainer.nano.pages.render import MAX_TRIES, PageRenderer, RenderedPage, Tier, fill

SIZES_PX: Final = ((1240, 1754), (1275, 1650), (1754, 1240), (1000, 1414), (1280, 1280), (1654, 2339), (800, 1900))
SIZE_WEIGHTS: Final = (0.35, 0.2, 0.1, 0.12, 0.06, 0.1, 0.07)
LEAST_BAND_LINES: Final = 4


@dataclass(slots=True)
class BandedPage:
    """A page being filled from top to bottom."""

    sheet: Sheet
    left: int
    width: int
    y: int
    bottom: int
    characters: int
    texts: list[str]
    style: TextStyle
    small: TextStyle
    drawable: frozenset[str]

    def column(self, x: int, width: int, bottom: int | None = None, characters: int | None = None) -> Column:
        """A column from the page's present position down, to `bottom` and of `characters` or what the page has left."""
        room = self.characters if characters is None else characters
        return Column(self.sheet, x, width, self.y, self.bottom if bottom is None else bottom, room)

    def close(self, columns: list[Column], gap: int) -> None:
        """Take the band's truth, column by column, and move on below it."""
        for column in columns:
            if text := column.text():
                self.texts.append(text)
                self.characters -= len(text)
        self.y = max(column.y for column in columns) + gap


class MosaicRenderer(PageRenderer):
    """Renders pages of many parts from the same faces and texts as the tiers."""

    def render_mosaic(self) -> RenderedPage:
        """Render one page.

        Returns:
            The image; its text is never empty and no glyph is cut off.

        Raises:
            RuntimeError: no attempt gave a page (fonts or texts are unusable).
        """
        for _ in range(MAX_TRIES):
            page = self._try_mosaic()
            if page is not None:
                return page
        raise RuntimeError(f"no page could be set in {MAX_TRIES} tries: check the fonts and the corpus")

    def _try_mosaic(self) -> RenderedPage | None:
        rng = self._rng
        width, height = rng.choices(SIZES_PX, SIZE_WEIGHTS)[0]
        large = max(width, height) > 2000
        face, size = self._face_and_size(Tier.SHEET if large else Tier.PAGE, (19, 32) if large else (12, 24))
        style, faces = self._style(face, size)
        style = replace(style, spacing=0, strokes=0.0, leading=min(style.leading, 1.5))
        small, more = self._style(face, max(round(size * 0.8), 11))
        small = replace(small, spacing=0, strokes=0.0, align="left", leading=1.2)
        margin = rng.randint(width // 40, width // 9)
        page = BandedPage(
            Sheet.blank(width, height), margin, width - 2 * margin, rng.randint(margin // 2, margin),
            height - rng.randint(margin // 2, margin), rng.randint(700, 4200), [], style, small,
            frozenset.intersection(*(frozenset(each.characters) | {" "} for each in [*faces, *more])),
        )  # fmt: skip
        self._fill_bands(page)
        text = "\n\n".join(page.texts)
        if not text or not page.sheet.is_border_blank():
            return None
        files = tuple(face.file for face in faces)
        return RenderedPage(255 - page.sheet.page(), text, Tier.PAGE, files, (size,), tuple(page.sheet.marks))

    def _fill_bands(self, page: BandedPage) -> None:
        rng = self._rng
        foot = self._foot(page) if rng.random() < 0.5 else ""
        bands: dict[Callable[[BandedPage], None], float] = {
            self._title: 0.1, self._prose: 0.15, self._columns: 0.3, self._letterhead: 0.12, self._table: 0.18,
            self._form: 0.14, self._numbered: 0.06, self._side_box: 0.1, self._picture: 0.05, self._spaced: 0.1,
        }  # fmt: skip
        # Pages have a character: a few kinds of bands, not all.
        kinds = rng.sample(list(bands), rng.randint(2, 5))
        if rng.random() < 0.6:
            rng.choice((self._title, self._letterhead))(page)
        least = round(LEAST_BAND_LINES * 1.4 * page.style.glyphs.size_px)
        for _ in range(12):
            if page.bottom - page.y < least or page.characters < 60 or (page.texts and rng.random() < 0.04):
                break
            rng.choices(kinds, [bands[kind] for kind in kinds])[0](page)
        if foot:
            page.texts.append(foot)

    def _gap(self, page: BandedPage) -> int:
        return round(page.style.glyphs.size_px * self._rng.uniform(0.6, 2.2))

    def _blocks(self, page: BandedPage) -> Iterator[Block]:
        rng, corpus = self._rng, self._corpus
        language = corpus.passage(rng).language
        while True:
            kind = rng.random()
            block: Block
            if kind < 0.12:
                block = heading(rng, corpus)
            elif kind < 0.24:
                block = small_block(rng, corpus)
            else:
                block = Paragraph(corpus.paragraph(rng, language) if kind < 0.8 else corpus.passage(rng).text)
            adapted = adapt_block(block, page.drawable)
            if adapted is not None:
                yield adapted

    def _height(self, page: BandedPage) -> int:
        """Where a band ends: a part of what is left, or all of it."""
        room = page.bottom - page.y
        share = self._rng.choice((self._rng.uniform(0.15, 0.5), self._rng.uniform(0.3, 1.0)))
        return page.y + max(round(room * share), 6 * page.style.glyphs.size_px)

    def _set(self, column: Column, block: Block, style: TextStyle, page: BandedPage) -> None:
        adapted = adapt_block(block, page.drawable)
        if adapted is not None:
            set_block(column, adapted, style, self._rng)

    def _title(self, page: BandedPage) -> None:
        column = page.column(page.left, page.width)
        self._set(column, heading(self._rng, self._corpus, level=0), page.style, page)
        page.close([column], self._gap(page))

    def _prose(self, page: BandedPage) -> None:
        column = page.column(page.left, page.width, min(self._height(page), page.bottom))
        fill(column, self._blocks(page), page.style, self._rng)
        page.close([column], self._gap(page))

    def _columns(self, page: BandedPage) -> None:
        rng = self._rng
        most = max(min(page.width // (9 * page.style.glyphs.size_px), 4), 1)
        count = min(rng.choices((2, 3, 4), (0.55, 0.33, 0.12))[0], most)
        style = page.style if count < 3 else replace(page.small, align=rng.choice(("left", "justify")))
        gutter = round(style.glyphs.size_px * rng.uniform(1.0, 2.6))
        width = (page.width - gutter * (count - 1)) // count
        bottom = min(self._height(page), page.bottom)
        share = max(page.characters // count, 60)
        columns = [page.column(page.left + i * (width + gutter), width, bottom, share) for i in range(count)]
        top, blocks = page.y, self._blocks(page)
        for column in columns:
            fill(column, blocks, style, rng)
        if rng.random() < 0.25:
            for column in columns[1:]:
                middle = column.x - gutter // 2
                page.sheet.rule(middle, top, middle + 1, max(c.y for c in columns))
        page.close(columns, self._gap(page))

    def _letterhead(self, page: BandedPage) -> None:
        """Addresses, dates and numbers next to each other."""
        rng, corpus = self._rng, self._corpus
        count = rng.choice((2, 2, 3))
        style = rng.choice((page.style, page.small))
        gutter = style.glyphs.size_px * 2
        width = (page.width - gutter * (count - 1)) // count
        columns = [page.column(page.left + i * (width + gutter), width) for i in range(count)]
        for column in columns:
            block: Block = rng.choice(
                (
                    FixedLines(tuple(synthetic_text.address(rng, corpus))),
                    synthetic_blocks.pairs_table(rng, corpus, rng.randint(2, 5)),
                    FixedLines(tuple(synthetic_text.any_line(rng, corpus) for _ in range(rng.randint(1, 4)))),
                )
            )
            align = "right" if column is columns[-1] and rng.random() < 0.3 else "left"
            self._set(column, block, replace(style, align=align, ruled=0), page)
        page.close(columns, self._gap(page))

    def _table(self, page: BandedPage) -> None:
        rng, corpus = self._rng, self._corpus
        column = page.column(page.left, page.width)
        style = replace(rng.choice((page.style, page.small)), align="left")
        columns = rng.randint(3, 8)
        table = synthetic_blocks.number_table(rng, corpus, columns, rng.randint(3, 22))
        if rng.random() < 0.4:
            # Positions of an invoice, entries of a list: a number, words, figures.
            table = Table(
                tuple(
                    (str(i + 1), " ".join(corpus.words(rng, rng.randint(1, 5)))[:40].strip(), *row[1:])
                    for i, row in enumerate(table.rows)
                )
            )
        self._set(column, table, style, page)
        page.close([column], self._gap(page))

    def _form(self, page: BandedPage) -> None:
        """Ruled cells, each with a small label and a value below or after it."""
        rng, corpus = self._rng, self._corpus
        size, small = page.small.glyphs.size_px, page.small
        line = round(size * 1.25)
        pad = max(size // 3, 4)
        ruled = rng.random() < 0.8
        for _ in range(rng.randint(1, 6)):
            cells = min(rng.randint(1, 4), max(page.width // (9 * size), 1))
            edges = [page.left + round(page.width * i / cells) for i in range(cells + 1)]
            bottom = page.y + 2 * line + 2 * pad
            if bottom > page.bottom or page.characters < 40:
                break
            top = page.y
            columns = []
            for x0, x1 in pairwise(edges):
                column = Column(page.sheet, x0 + pad, x1 - x0 - 2 * pad, top + pad, bottom, 160)
                maker = rng.choice(
                    (synthetic_text.amount, synthetic_text.date, synthetic_text.phone, synthetic_text.person)
                )
                label, value = rng.choice(LABELS), maker(rng, corpus)
                lines = (f"{label}: {value}",) if rng.random() < 0.3 else (label, value)
                self._set(column, FixedLines(lines[: rng.choice((1, 2, 2, 2))]), small, page)
                columns.append(column)
                if ruled:
                    page.sheet.rule(x0, top, x0 + 1, bottom)
            if ruled:
                page.sheet.rule(page.left, top, page.left + page.width, top + 1)
                page.sheet.rule(page.left, bottom, page.left + page.width + 1, bottom + 1)
                page.sheet.rule(page.left + page.width, top, page.left + page.width + 1, bottom)
            page.close(columns, 0)
            page.y = bottom + (0 if ruled and rng.random() < 0.7 else pad)
        page.y += self._gap(page)

    def _numbered(self, page: BandedPage) -> None:
        """Lines with numbers before them, widely set, as courts and parliaments print."""
        rng = self._rng
        style = replace(page.style, leading=rng.uniform(1.4, 2.0), ruled=0, align="left")
        room = max(round(page.width / style.glyphs.size_px * 1.5), 20)
        words = " ".join(self._corpus.passage(rng).text for _ in range(6)).split()
        rows, start = [], rng.choice((1, 1, rng.randint(1, 30)))
        for i in range(rng.randint(6, 28)):
            line: list[str] = []
            while words and len(" ".join([*line, words[0]])) < room:
                line.append(words.pop(0))
            rows.append((str(start + i), " ".join(line)))
            if not words:
                break
        column = page.column(page.left, page.width)
        self._set(column, Table(tuple(rows)), style, page)
        page.close([column], self._gap(page))

    def _side_box(self, page: BandedPage) -> None:
        """A wide and a narrow part next to each other; the narrow one framed at times."""
        rng = self._rng
        gutter = round(page.style.glyphs.size_px * rng.uniform(1.5, 3))
        narrow = round(page.width * rng.uniform(0.22, 0.36))
        wide = page.width - narrow - gutter
        bottom = min(self._height(page), page.bottom)
        first_narrow = rng.random() < 0.4
        widths = (narrow, wide) if first_narrow else (wide, narrow)
        share = max(page.characters // 2, 60)
        columns = [
            page.column(page.left, widths[0], bottom, share),
            page.column(page.left + widths[0] + gutter, widths[1], bottom, share),
        ]
        top = page.y
        for column in columns:
            fill(column, islice(self._blocks(page), 12), page.small if column.width == narrow else page.style, rng)
        box = columns[0 if first_narrow else 1]
        if rng.random() < 0.5:
            x0, x1, away = box.x - gutter // 3, box.x + box.width + gutter // 3, max(gutter // 4, 3)
            y0, y1 = max(top - away, 0), box.y + away
            for sides in ((x0, y0, x1, y0 + 2), (x0, y1, x1, y1 + 2), (x0, y0, x0 + 2, y1), (x1, y0, x1 + 2, y1)):
                page.sheet.rule(*sides)
        page.close(columns, self._gap(page))

    def _picture(self, page: BandedPage) -> None:
        """Clouds where a photo would be, and a caption at times."""
        rng = self._rng
        high = rng.randint(60, max(min(400, (page.bottom - page.y) // 2), 61))
        wide = rng.randint(page.width // 4, page.width)
        if page.y + high + 30 > page.bottom:
            return
        x = page.left + rng.choice((0, (page.width - wide) // 2))
        page.sheet.place(clouds(rng, wide, high), x, page.y)
        page.y += high + 6
        if rng.random() < 0.7:
            column = page.column(page.left, page.width, min(page.y + 5 * page.small.glyphs.size_px, page.bottom))
            caption = f"{rng.choice(('Figure', 'Fig.', 'Abb.', 'Photo', 'Plate'))} {rng.randint(1, 40)}"
            self._set(column, Paragraph(f"{caption}. {self._corpus.passage(rng).text[:160]}"), page.small, page)
            page.close([column], self._gap(page))
        page.y += page.small.glyphs.size_px

    def _spaced(self, page: BandedPage) -> None:
        """A few words in letters set apart, as magazines print names of sections and captions."""
        rng = self._rng
        style = rng.choice((page.style, page.small))
        size = style.glyphs.size_px
        words = self._corpus.words(rng, rng.randint(1, 8))
        line = " ".join(words) if rng.random() < 0.5 else " ".join(words).upper()
        style = replace(
            style, spacing=max(round(size * rng.uniform(0.1, 0.8)), 1), align=rng.choice(("left", "center", "right"))
        )
        column = page.column(page.left, page.width)
        self._set(column, FixedLines((line,)), style, page)
        page.close([column], self._gap(page))

    def _foot(self, page: BandedPage) -> str:
        """Notes or a page number at the lower edge, read last."""
        rng, size = self._rng, page.small.glyphs.size_px
        lines = rng.choice((1, 1, 2, 3))
        high = round(size * 1.25 * lines) + size
        page.bottom -= high + size
        foot = Column(page.sheet, page.left, page.width, page.bottom + size, page.bottom + size + high)
        if lines == 1:
            number = rng.randint(1, 999)
            block: Block = FixedLines((rng.choice((str(number), f"Page {number}", f"- {number} -")),))
            style = replace(page.small, align=rng.choice(("left", "center", "right")))
        else:
            block, style = Paragraph(f"{rng.randint(1, 20)} {self._corpus.passage(rng).text[:150]}"), page.small
            page.sheet.rule(
                page.left, page.bottom + size // 2, page.left + page.width // 3, page.bottom + size // 2 + 1
            )
        self._set(foot, block, style, page)
        return foot.text()


def clouds(rng: Random, width_px: int, height_px: int) -> Ink:
    """Smooth grey shapes, uint8 `[height, width]`, dark as a photo or pale."""
    chance = np.random.default_rng(rng.getrandbits(32))
    cells = chance.integers(0, 256, (rng.randint(2, 12), rng.randint(2, 12)), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width_px, height_px), Image.Resampling.BICUBIC))


def blank_page(rng: Random) -> Ink:
    """An image with nothing to read, uint8 `[height, width]`: paper, darkness, noise, clouds, rules, dust."""
    width, height = rng.choice(((640, 640), (600, 200), (1240, 1754), (1280, 640), (640, 1280), (1754, 1240)))
    width, height = round(width * rng.uniform(0.6, 1)), round(height * rng.uniform(0.6, 1))
    chance = np.random.default_rng(rng.getrandbits(32))
    kind = rng.random()
    if kind < 0.3:
        return np.full((height, width), rng.choice((255, 255, 255, 0, rng.randint(0, 255))), np.uint8)
    if kind < 0.45:
        middle, spread = rng.randint(0, 255), rng.uniform(5, 120)
        return np.clip(chance.normal(middle, spread, (height, width)), 0, 255).astype(np.uint8)
    if kind < 0.7:
        return clouds(rng, width, height)
    page = np.full((height, width), 255, np.uint8)
    if kind < 0.85:
        for _ in range(rng.randint(1, 12)):
            y, x, thick = rng.randrange(height), rng.randrange(width), rng.randint(1, 4)
            page[y : y + thick, x : x + rng.randrange(width)] = rng.randint(0, 120)
            if rng.random() < 0.5:
                page[y : y + rng.randrange(height), x : x + thick] = rng.randint(0, 120)
        return page
    page[chance.random((height, width)) < rng.uniform(0.0002, 0.01)] = rng.randint(0, 120)
    edge = rng.randint(0, min(width, height) // 8)
    if edge:  # the dark border of a copier
        page[:edge] = page[:, :edge] = rng.randint(0, 90)
    return page
