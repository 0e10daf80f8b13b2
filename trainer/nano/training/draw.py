"""From a tier's name to ink and tokens: what each drawing process of the pool runs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.corpus.charset import SUPPORTED, shorten_runs
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.fonts.library import FontLibrary
from trainer.nano.pages.codes import StringRenderer
from trainer.nano.pages.court import CourtRenderer
from trainer.nano.pages.invoices import InvoiceRenderer
from trainer.nano.pages.line_canvases import CanvasSample, LineCanvases
from trainer.nano.pages.mosaic import MosaicRenderer, blank_page
from trainer.nano.pages.receipts import ReceiptRenderer
from trainer.nano.pages.render import SCANS, PageRenderer, RenderedPage, Tier
from trainer.nano.pages.tables import TableRenderer
from trainer.nano.pdf.pages import PdfPages, PdfSample
from trainer.nano.training.pool import Drawing
from trainer.nano.training.recipe import PDF_TIERS

CHARSET = {character: index for index, character in enumerate(sorted(SUPPORTED))}
"""Index of each character in marks."""


SMALL_SHARE = 0.4
"""Share of images of several lines that are set in small print, which is learnt last and misread most."""
SMALL_PX = (10, 18)
STRING_TIERS = frozenset({Tier.LINE, Tier.FEW, Tier.BLOCK})
STRING_SHARE = 0.25
"""Share of their images with nothing but strings that cannot be guessed: most of what is left of their errors."""


PAGES_OF_LINES = {
    "block": 0.06, "page": 0.08, "sheet": 0.08, "mosaic": 0.1, "court": 0.06, "invoice": 0.08, "receipt": 0.24,
    "table": 0.08, "pdf-page": 0.22,
}  # fmt: skip
"""Shares of the pages that canvases of lines are cut from."""


class Draw:
    """Draws pages of one source of fonts, texts and PDFs; the same seed draws the same pages."""

    def __init__(
        self, fonts: Path, corpus: Path, pdfs: Path | None, tokenizer: Path, geometry: GeometryConfig, seed: int
    ) -> None:
        library, texts = FontLibrary(fonts), Corpus(corpus)
        self._renderer = MosaicRenderer(library, texts, seed)
        self._strings = StringRenderer(library, texts, seed)
        self._whole = {
            "mosaic": self._renderer.render_mosaic,
            "court": CourtRenderer(library, texts, seed).render_court,
            "invoice": InvoiceRenderer(library, texts, seed).render_invoice,
            "receipt": ReceiptRenderer(library, texts, seed).render_receipt,
            "table": TableRenderer(library, texts, seed).render_table,
        }
        self._pdfs = None if pdfs is None else PdfPages(pdfs, geometry, seed)
        self._canvases = LineCanvases(self._page_of_lines, seed)
        self._tokenizer = OcrTokenizer.from_file(tokenizer)
        self._geometry = geometry
        self._rng = random.Random(seed)

    def __call__(self, tier: str, longest: int) -> Drawing:
        """Draw one page; see `pool.DrawFunction`."""
        page = self._page(tier, longest)
        ink = page.ink
        height, width = ink.shape
        plan = plan_views(width, height, Mode.GUNDAM, self._geometry)
        room = max(plan.tile_columns, 1) * plan.tile_px, max(plan.tile_rows, 1) * plan.tile_px
        scale = min(1.0, room[0] / width, room[1] / height)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC))
        tokens = [*self._tokenizer.encode_plain(shorten_runs(page.text)), self._tokenizer.eos_id]
        marks = [(max(x * scale, 0), max(y * scale, 0), CHARSET[c]) for x, y, c in page.marks if c in CHARSET]
        return Drawing(ink, np.array(marks).reshape(-1, 3), tokens, plan.tile_columns, plan.tile_rows)

    def _page(self, tier: str, longest: int) -> RenderedPage | PdfSample | CanvasSample:
        if tier == "lines":
            return self._canvases.next()
        if tier == "blank":
            return PdfSample(blank_page(self._rng), "", ())
        if tier in self._whole:
            return self._whole[tier]()
        if tier in PDF_TIERS:
            if self._pdfs is None:
                raise ValueError(f"no PDFs were given to draw {tier} from")
            return self._pdfs.whole() if tier == "pdf-page" else self._pdfs.cut()
        return self._render(Tier(tier), longest)

    def _page_of_lines(self) -> RenderedPage | PdfSample:
        """A page to cut into lines."""
        kinds = {kind: share for kind, share in PAGES_OF_LINES.items() if self._pdfs or kind not in PDF_TIERS}
        page = self._page(self._rng.choices([*kinds], [*kinds.values()])[0], 90)
        assert not isinstance(page, CanvasSample)
        return page

    def _render(self, tier: Tier, longest: int) -> RenderedPage:
        has_strings = tier in STRING_TIERS and self._rng.random() < STRING_SHARE
        renderer: PageRenderer = self._strings if has_strings else self._renderer
        if tier == Tier.LINE:
            return renderer.render(tier, max_characters=longest)
        if tier in SCANS:
            return renderer.render(tier)
        is_small = self._rng.random() < SMALL_SHARE
        return renderer.render(tier, size_px=SMALL_PX if is_small else None)


class MakeDraw:
    """Builds a `Draw` inside the process that will use it."""

    def __init__(self, fonts: Path, corpus: Path, pdfs: Path | None, tokenizer: Path, geometry: GeometryConfig) -> None:
        self._arguments = (fonts, corpus, pdfs, tokenizer, geometry)

    def __call__(self, seed: int) -> Draw:
        """Build one with its own seed."""
        return Draw(*self._arguments, seed)
