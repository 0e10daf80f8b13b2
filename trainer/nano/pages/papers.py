"""Whole pages of one kind, drawn row by row: what the court papers, invoices and tables of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.paper_words import STAMPS
from trainer.nano.fonts.library import FontFace
from trainer.nano.pages.layout import Column, Sheet, TextStyle, place_line
from trainer.nano.pages.mosaic import BandedPage, MosaicRenderer
from trainer.nano.pages.render import MAX_TRIES, RenderedPage, Tier
from trainer.nano.pages.rows import Rows

LETTER: Final = (1275, 1650)
A4: Final = (1240, 1754)
MOST_CHARACTERS: Final = 3200


class PaperRenderer(MosaicRenderer):
    """Renders pages of one kind from the same faces and texts as the tiers."""

    def _render(
        self,
        fill: Callable[[BandedPage], None],
        sizes: Sequence[tuple[int, int]],
        tier: Tier,
        em: tuple[int, int],
        kind: str | None = None,
    ) -> RenderedPage:
        rng = self._rng
        for _ in range(MAX_TRIES):
            width, height = rng.choice(sizes)
            scale = 1.25 if max(width, height) > 2000 else 0.8 if max(width, height) < 1450 and width >= 900 else 1.0
            face, size = self._face_and_size(tier, (max(round(em[0] * scale), 11), round(em[1] * scale)), kind)
            style, faces = self._style(face, size)
            bold = self._bold(face)
            style = replace(style, spacing=0, strokes=0.0, align="left", hyphenate=False, leading=rng.uniform(1.1, 1.5))
            style = replace(style, heading=self._glyphs(bold, size, shaped=False, fine=False))
            small_size = max(round(size * rng.uniform(0.7, 0.85)), 11)
            small = replace(style, glyphs=self._glyphs(face, small_size, shaped=False, fine=False))
            margin = rng.randint(width // 30, width // 9)
            page = BandedPage(
                Sheet.blank(width, height), margin, width - 2 * margin, rng.randint(margin // 2, margin),
                height - rng.randint(margin // 2, margin), MOST_CHARACTERS, [], style, small,
                frozenset.intersection(*(frozenset(each.characters) | {" "} for each in [*faces, bold])),
            )  # fmt: skip
            fill(page)
            text = "\n\n".join(page.texts)
            if text and page.sheet.is_border_blank():
                end = height if rng.random() < 0.7 else min(page.y + margin, height)
                used = np.flatnonzero(page.sheet.page().any(axis=1))
                ink = 255 - page.sheet.page()[: max(end, int(used[-1]) + 3)]
                return RenderedPage(ink, text, tier, (face.file, bold.file), (size,), tuple(page.sheet.marks))
        raise RuntimeError(f"no page could be set in {MAX_TRIES} tries: check the fonts and the corpus")

    def _bold(self, face: FontFace) -> FontFace:
        return next((other for other in self._fonts.companions(face) if other.style == "bold"), face)

    def _rows(self, page: BandedPage, style: TextStyle, step_px: int | None = None) -> Rows:
        return Rows(page, style, self._rng, step_px or round(style.glyphs.size_px * style.leading))

    def _words(self, most: int, language: str | None = None) -> str:
        return " ".join(self._corpus.words(self._rng, self._rng.randint(1, most), language))

    def _plain(self, page: BandedPage) -> TextStyle:
        """The page's own or its smaller style."""
        return self._rng.choice((page.style, page.small))

    def _stamp(self, page: BandedPage) -> None:
        """A framed stamp in a band of its own, a little turned at times, in pale ink."""
        rng, glyphs = self._rng, page.style.heading
        lines = [rng.choice(STAMPS), synthetic_text.date(rng)]
        lines += [f"{rng.choice(('By', 'Clerk', 'Deputy Clerk', 'No.'))} {synthetic_text.person(rng)}"] * (
            rng.random() < 0.4
        )
        lines = [line for line in lines if page.drawable.issuperset(line)]
        step = round(glyphs.size_px * 1.35)
        width = max((glyphs.width(line) for line in lines), default=0) + 2 * glyphs.size_px
        height = step * len(lines) + glyphs.size_px
        if not lines or width + 40 > page.width or page.y + height + 40 > page.bottom:
            return
        sheet = Sheet.blank(width, height, 40)
        for i, line in enumerate(lines):
            column = Column(sheet, 0, width, glyphs.size_px // 2 + i * step, height)
            place_line(column, line, glyphs, page.small, rng, 0, width, "center")
        if rng.random() < 0.7:
            for box in (
                (0, 0, width, 3),
                (0, height - 3, width, height),
                (0, 0, 3, height),
                (width - 3, 0, width, height),
            ):
                sheet.rule(*box)
        image = Image.fromarray(sheet.ink).rotate(rng.choice((0.0, rng.uniform(-4, 4))), Image.Resampling.BICUBIC)
        ink = np.asarray(image).astype(np.float32) * rng.uniform(0.45, 1.0)
        x = page.left + rng.randint(0, page.width - width - 40)
        y = page.y + glyphs.size_px
        page.sheet.place(ink.astype(np.uint8), x - 40, y - 40)
        page.sheet.marks += [(x + mark_x, y + mark_y, character) for mark_x, mark_y, character in sheet.marks]
        page.texts.append("\n".join(lines))
        page.y = y + height + glyphs.size_px
