"""Pages and cut-outs of born-digital PDFs as clean ink with their truth: layouts that were not drawn for nano."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types
from PIL import Image

from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views
from trainer.nano.fonts.glyphs import Ink
from trainer.nano.pdf.text import Box, PageText, RefusedPageError, read_page

INDEX_NAME: Final = "pages.json"
POINTS: Final = 72
MIN_LINE_PX: Final = 12
"""Least height of a page's small lines: an em of some ten pixels."""
OPEN_DOCUMENTS: Final = 24
MAX_TRIES: Final = 40


@dataclass(frozen=True, slots=True)
class PdfSample:
    """An image of ink and what is written on it, as `trainer.nano.pages.render.RenderedPage` has them.

    Attributes:
        ink: [height, width], 255 is paper.
        text: the truth.
        marks: x, y and character.
    """

    ink: Ink
    text: str
    marks: tuple[tuple[float, float, str], ...]


class PdfPages:
    """Draws from a folder that `pdf_pack` wrote; the same seed gives the same images."""

    def __init__(self, folder: Path, geometry: GeometryConfig, seed: int) -> None:
        index: dict[str, list[int]] = json.loads((folder / INDEX_NAME).read_text())["files"]
        self._folder = folder
        self._geometry = geometry
        self._rng = Random(seed)
        self._files = sorted(index)
        self._pages = index
        # A long manual has one layout, and many short papers have many.
        self._weights = [math.sqrt(len(index[name])) for name in self._files]
        self._open: OrderedDict[str, pdfium.PdfDocument] = OrderedDict()

    def whole(self) -> PdfSample:
        """A whole page at 100 to 300 dpi, as large as nano's tiles hold."""
        return self._draw(self._whole)

    def cut(self) -> PdfSample:
        """A part of a page: some lines, a column, a corner of a table."""
        return self._draw(self._cut)

    def _draw(self, attempt: Callable[[pdfium.PdfPage, PageText], PdfSample | None]) -> PdfSample:
        for _ in range(MAX_TRIES):
            name = self._rng.choices(self._files, self._weights)[0]
            page = self._document(name)[self._rng.choice(self._pages[name])]
            try:
                sample = attempt(page, read_page(page))
            except RefusedPageError:
                sample = None
            finally:
                page.close()
            if sample is not None:
                return sample
        raise RuntimeError(f"no page of {self._folder} could be drawn in {MAX_TRIES} tries")

    def _document(self, name: str) -> pdfium.PdfDocument:
        document = self._open.pop(name, None)
        if document is None:
            document = pdfium.PdfDocument(self._folder / name)
            if len(self._open) >= OPEN_DOCUMENTS:
                self._open.popitem(last=False)[1].close()
        self._open[name] = document
        return document

    def _whole(self, page: pdfium.PdfPage, content: PageText) -> PdfSample | None:
        rng = self._rng
        window = Box(0, 0, content.width, content.height)
        if rng.random() < 0.3:
            # Scans seldom show a page's whole margins.
            around = content.box
            window = Box(
                rng.uniform(0, max(around.x0 - 14, 0)),
                rng.uniform(0, max(around.y0 - 14, 0)),
                rng.uniform(min(around.x1 + 14, content.width), content.width),
                rng.uniform(min(around.y1 + 14, content.height), content.height),
            )
        kind = rng.random()
        if kind < 0.4:
            dpi = 150 * rng.uniform(0.95, 1.05)
        elif kind < 0.6:
            dpi = rng.choice((200.0, 300.0))
        else:
            dpi = 100 * 2.2 ** rng.random()
        scale = dpi / POINTS
        shrink = self._shrink(window, scale)
        if content.small_line * scale * shrink < MIN_LINE_PX:
            return None
        if shrink < 1 and rng.random() < 0.5:
            return self._shrunk(page, content, window, scale, shrink)
        return self._sample(page, content, window, scale * shrink)

    def _shrink(self, window: Box, scale: float) -> float:
        """How much a window's image must shrink onto nano's tiles."""
        width, height = (max(round(side * scale), 1) for side in (window.x1 - window.x0, window.y1 - window.y0))
        plan = plan_views(width, height, Mode.GUNDAM, self._geometry)
        room = max(plan.tile_columns, 1) * plan.tile_px, max(plan.tile_rows, 1) * plan.tile_px
        return min(1.0, room[0] / width, room[1] / height)

    def _shrunk(self, page: pdfium.PdfPage, content: PageText, window: Box, scale: float, shrink: float) -> PdfSample:
        """A scan in black and white at full size, shrunk as readers shrink it."""
        large = self._sample(page, content, window, scale)
        ink = np.where(large.ink > self._rng.uniform(90, 180), 255, 0).astype(np.uint8)
        height, width = ink.shape
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC))
        return PdfSample(ink, large.text, tuple((x * shrink, y * shrink, c) for x, y, c in large.marks))

    def _cut(self, page: pdfium.PdfPage, content: PageText) -> PdfSample | None:
        rng = self._rng
        line_px = MIN_LINE_PX * 3.2 ** rng.random()
        scale = line_px / content.small_line
        wide = rng.choice((rng.uniform(260, 660), rng.uniform(500, 1280), rng.uniform(900, 1900)))
        high = rng.choice((rng.uniform(60, 300), rng.uniform(200, 640), rng.uniform(500, 1280)))
        if wide > 1280:
            high = min(high, 640)
        word = rng.choice(content.words).box
        x0 = rng.choice((word.x0 - 3, word.x1 - rng.random() * wide / scale))
        y0 = word.y0 - rng.random() * high / scale
        window = Box(
            max(x0, 0.0), max(y0, 0.0), min(x0 + wide / scale, content.width), min(y0 + high / scale, content.height)
        )
        if window.x1 - window.x0 < 40 / scale or window.y1 - window.y0 < 20 / scale:
            return None
        sample = self._sample(page, content, window, scale)
        return self._padded(sample) if sample.text else None

    def _padded(self, sample: PdfSample) -> PdfSample:
        """Room around a cut-out: degradation turns it, and what leaves the image would stay in the truth."""
        height, width = sample.ink.shape
        above, left = (
            round(self._rng.uniform(0.01, 0.04) * side + self._rng.uniform(4, 20)) for side in (width, height)
        )
        paper = int(np.median(sample.ink))
        ink = np.pad(sample.ink, ((above, above), (left, left)), constant_values=paper)
        return PdfSample(ink, sample.text, tuple((x + left, y + above, c) for x, y, c in sample.marks))

    def _sample(self, page: pdfium.PdfPage, content: PageText, window: Box, scale: float) -> PdfSample:
        ink = np.array(
            page.render(
                scale=scale,
                grayscale=True,
                crop=(window.x0, content.height - window.y1, content.width - window.x1, window.y0),
            ).to_numpy()
        )
        if ink.ndim == 3:
            ink = ink[:, :, 0]
        for picture in content.pictures:
            self._cover(ink, picture, window, scale)
        marks: list[tuple[float, float, str]] = []
        for word in content.words:
            if word.text and window.holds(word.box):
                marks += [((x - window.x0) * scale, (y - window.y0) * scale, c) for x, y, c in word.marks]
            elif window.shared(word.box):
                _paint_over(ink, _pixels(word.box, window, scale, ink))
        height, width = ink.shape
        marks = [mark for mark in marks if 0 <= mark[0] < width and 0 <= mark[1] < height]
        return PdfSample(ink, content.text(window), tuple(marks))

    def _cover(self, ink: Ink, picture: Box, window: Box, scale: float) -> None:
        """Lay clouds over a picture: what it shows may be text, and is not in the truth."""
        y0, y1, x0, x1 = _pixels(picture, window, scale, ink)
        if y1 - y0 < 2 or x1 - x0 < 2:
            return
        chance = np.random.default_rng(self._rng.getrandbits(32))
        cells = chance.integers(0, 256, (max((y1 - y0) // 40, 2), max((x1 - x0) // 40, 2)), dtype=np.uint8)
        clouds = Image.fromarray(cells).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        ink[y0:y1, x0:x1] = np.asarray(clouds)


def _pixels(box: Box, window: Box, scale: float, ink: Ink) -> tuple[int, int, int, int]:
    """Rows and columns of an image that a box covers: y0, y1, x0, x1."""
    height, width = ink.shape
    x0, x1 = (min(max(round((x - window.x0) * scale), 0), width) for x in (box.x0, box.x1))
    y0, y1 = (min(max(round((y - window.y0) * scale), 0), height) for y in (box.y0, box.y1))
    return y0, y1, x0, x1


def _paint_over(ink: Ink, region: tuple[int, int, int, int]) -> None:
    """Hide a word behind the paper's own grey."""
    y0, y1, x0, x1 = region
    if y1 > y0 and x1 > x0:
        y0, y1, x0, x1 = max(y0 - 1, 0), y1 + 1, max(x0 - 1, 0), x1 + 1
        ink[y0:y1, x0:x1] = np.median(np.concatenate([ink[y0, x0:x1], ink[min(y1, len(ink)) - 1, x0:x1]]))
