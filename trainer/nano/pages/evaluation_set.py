"""The evaluation set: pages from held-out faces and texts with their exact truth; also contact sheets.

Layout of a set: `<tier>/<number>.png`, `<tier>/<number>.txt`, `index.jsonl`, one line per page, and `page-tests.jsonl`:
tests made of the truths, for `evaluate --page-tests`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from trainer.data.render.degrade import Grey, degrade
from trainer.evaluation.page_test_file import write_page_tests
from trainer.evaluation.page_tests import derive_tests
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.fonts.library import FontLibrary
from trainer.nano.pages.codes import CodeRenderer
from trainer.nano.pages.render import PageRenderer, RenderedPage, Tier
from trainer.nano.pages.tables import TableRenderer

INDEX_NAME: Final = "index.jsonl"
EVALUATION_TIERS: Final = ("line", "block", "page", "degraded-line", "degraded-block")
TABLE_TIER: Final = "table"
"""Whole pages with tables as they are printed, drawn only if asked for: the published set has none."""
CODE_TIER: Final = "code"
"""Lines of codes, numbers and random strings, drawn only if asked for."""
_ASKED_FOR: Final[dict[str, tuple[type[PageRenderer], Callable[[Any], RenderedPage], str]]] = {
    TABLE_TIER: (TableRenderer, TableRenderer.render_table, "page"),
    CODE_TIER: (CodeRenderer, CodeRenderer.render_code, "line"),
}
"""Renderer, its method, and the layout of its pages."""
TESTS_NAME: Final = "page-tests.jsonl"
DEFAULT_PER_TIER: Final = {"line": 300, "block": 60, "page": 20, "degraded-line": 300, "degraded-block": 60}
# Em sizes; a page scanned at 100 dpi has lines and blocks as small as 14 px.
_SIZES: Final = {"line": (14, 40), "block": (14, 40), "page": (14, 30)}
MAX_SIDE_PX: Final = 640


@dataclass(frozen=True, slots=True)
class EvaluationPage:
    """A page of the set and how it was made.

    Attributes:
        tier: one of `EVALUATION_TIERS`, `TABLE_TIER` or `CODE_TIER`.
        image: uint8 [H, W].
        text: the truth.
        fonts: file names of the faces.
        sizes_px: their em sizes.
        effects: what spoilt it; empty for clean pages.
    """

    tier: str
    image: Grey
    text: str
    fonts: tuple[str, ...]
    sizes_px: tuple[int, ...]
    effects: tuple[str, ...] = ()


def build_evaluation_set(
    fonts_dir: Path, corpus_dir: Path, out_dir: Path, seed: int = 7, per_tier: dict[str, int] | None = None
) -> dict[str, int]:
    """Render the evaluation set; the same arguments give the same files.

    Args:
        fonts_dir: the packed held-out faces.
        corpus_dir: the packed held-out texts.
        out_dir: replaced if it exists.
        seed: of all random choices.
        per_tier: pages by tier; None for `DEFAULT_PER_TIER`.

    Returns:
        Characters of truth by tier.
    """
    library, corpus = FontLibrary(fonts_dir), Corpus(corpus_dir)
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts: dict[str, int] = {}
    rows, tests = [], {}
    for position, (tier, count) in enumerate((per_tier or DEFAULT_PER_TIER).items()):
        (partial / tier).mkdir(parents=True)
        renderer = _renderer_of(tier)(library, corpus, seed * 1000 + position)
        rng = np.random.default_rng(seed * 1000 + position)
        counts[tier] = 0
        for number in range(count):
            page = make_page(renderer, tier, rng)
            rows.append(_write_page(partial, f"{tier}/{number:04d}", page))
            tests[f"{tier}/{number:04d}.png"] = derive_tests(page.text)
            counts[tier] += len(page.text)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (partial / INDEX_NAME).write_text(lines, encoding="utf-8")
    write_page_tests(partial / TESTS_NAME, tests)
    shutil.rmtree(out_dir, ignore_errors=True)
    partial.rename(out_dir)
    return counts


def make_page(renderer: PageRenderer, tier: str, rng: np.random.Generator) -> EvaluationPage:
    """Render one page of a tier with its renderer; `rng` draws its degradation."""
    if tier in _ASKED_FOR:
        drawn = _ASKED_FOR[tier][1](renderer)
        return EvaluationPage(tier, drawn.ink, drawn.text, drawn.fonts, drawn.sizes_px)
    clean_tier = tier.removeprefix("degraded-")
    page = renderer.render(Tier(clean_tier), size_px=_SIZES[clean_tier])
    while clean_tier == "page" and not 1000 <= page.ink.shape[1] <= 1300:
        page = renderer.render(Tier(clean_tier), size_px=_SIZES[clean_tier])
    image = page.ink
    effects: tuple[str, ...] = ()
    if clean_tier != tier:
        image, effects = degrade(image, rng)
        image = _within(image, MAX_SIDE_PX)
    return EvaluationPage(tier, image, page.text, page.fonts, page.sizes_px, effects)


def _renderer_of(tier: str) -> type[PageRenderer]:
    return _ASKED_FOR[tier][0] if tier in _ASKED_FOR else PageRenderer


def contact_sheet(pages: Sequence[RenderedPage | EvaluationPage], columns: int, scale: float = 1.0) -> Image.Image:
    """Lay out pages in rows of `columns`, scaled, as a grey image for inspection."""
    images = [Image.fromarray(page.ink if isinstance(page, RenderedPage) else page.image) for page in pages]
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    width = max(image.width for image in images) + 8
    heights = [max(image.height for image in row) + 8 for row in rows]
    sheet = Image.new("L", (width * columns, sum(heights)), 128)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        for index, image in enumerate(row):
            sheet.paste(image, (index * width + 4, y + 4))
        y += height
    return sheet.resize((max(int(sheet.width * scale), 1), max(int(sheet.height * scale), 1)), Image.Resampling.BOX)


def _within(image: Grey, side_px: int) -> Grey:
    height, width = image.shape
    share = side_px / max(height, width)
    if share >= 1:
        return image
    return np.asarray(
        Image.fromarray(image).resize(
            (max(int(width * share), 1), max(int(height * share), 1)), Image.Resampling.BICUBIC
        )
    )


def _write_page(folder: Path, stem: str, page: EvaluationPage) -> dict[str, object]:
    Image.fromarray(page.image).save(folder / f"{stem}.png")
    (folder / f"{stem}.txt").write_text(page.text + "\n", encoding="utf-8")
    return {
        "image": f"{stem}.png",
        "text": f"{stem}.txt",
        "tier": page.tier,
        **({"layout": _ASKED_FOR[page.tier][2]} if page.tier in _ASKED_FOR else {}),
        "fonts": page.fonts,
        "sizes_px": page.sizes_px,
        "effects": page.effects,
        "width_px": page.image.shape[1],
        "height_px": page.image.shape[0],
    }
