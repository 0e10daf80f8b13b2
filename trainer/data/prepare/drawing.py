"""`--convert-to-images`: draws the text to read on pages, clean or degraded like scans.

Where the text to produce is the text to read, every page is a sample with its own lines. Where it is
another (an article and its summary), all pages together are one sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from trainer.data.errors import RowCode, RowError
from trainer.data.prepare.conversion import PreparedSample
from trainer.data.render.degrade import degrade
from trainer.data.render.faces import FaceSet
from trainer.data.render.pages import DrawnPage, PageStyle, draw_pages
from trainer.data.sources.columns import Columns, row_split, text_of
from trainer.data.sources.images import PageImage, check_image, encode_png
from trainer.data.sources.protocol import Row
from trainer.data.sources.splits import text_key


@dataclass(frozen=True)
class DrawConverter:
    """Draws a row's text; the same row and seed give the same pages.

    Attributes:
        columns: resolved names.
        fonts: folders of fonts.
        image_root: folder that text files may not leave.
        style: geometry of pages.
        degraded_share: share of degraded pages.
        max_pages: maximum pages of one text.
        seed: of faces, sizes and degradation.
        language: of Han characters; None to guess it for each text.
    """

    columns: Columns
    fonts: tuple[Path, ...] = ()
    image_root: Path | None = None
    style: PageStyle = field(default_factory=PageStyle)
    degraded_share: float = 0.0
    max_pages: int = 16
    seed: int = 0
    language: str | None = None

    @cached_property
    def faces(self) -> FaceSet:
        """The fonts, loaded once by each process."""
        return FaceSet(self.fonts)

    @property
    def several_images(self) -> bool:
        """Whether a sample has all pages of its text."""
        return self.columns.read != self.columns.text

    def convert(self, row: Row) -> list[PreparedSample]:
        """See `Converter`."""
        is_file = self.columns.text_is_file
        answer = text_of(row, str(self.columns.text), self.image_root, is_file=is_file)
        read = text_of(row, str(self.columns.read), self.image_root, is_file=is_file) if self.several_images else answer
        split = row_split(row, self.columns)
        group = text_key(read) or hashlib.sha256(read.encode()).digest()
        rng = Random(f"{self.seed}/{row.number}/{group.hex()}")
        pages = list(islice(draw_pages(read, self.faces, self.style, rng, self.language), self.max_pages + 1))
        if len(pages) > self.max_pages:
            raise RowError(RowCode.TOO_MANY_PAGES, f"its text needs more than {self.max_pages} pages: see --max-pages")
        if not pages:
            raise RowError(RowCode.TEXT_EMPTY, "its text has no printable characters")
        images = tuple(self._finished(page, rng) for page in pages)
        fonts = pages[0].fonts
        if self.several_images:
            return [PreparedSample(row.number, 1, row.name, images, answer, split, group, fonts)]
        return [
            PreparedSample(row.number, number, row.name, (image,), page.text, split, group, fonts)
            for number, (page, image) in enumerate(zip(pages, images, strict=True), 1)
        ]

    def _finished(self, page: DrawnPage, rng: Random) -> PageImage:
        image = page.image
        if rng.random() < self.degraded_share:
            spoilt, _ = degrade(np.asarray(image), np.random.default_rng(rng.getrandbits(64)))
            image = Image.fromarray(spoilt)
        return check_image(encode_png(image))
