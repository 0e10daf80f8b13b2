"""The pages that were read worst, with their images: selected, stored next to a record, and loaded for a report.

A page is one JSON object a line in `worst.jsonl`, including its image, scaled down. Knows
nothing of HTML.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.evaluation.results import ResultError
from trainer.evaluation.run import ScoredPage
from trainer.evaluation.samples import open_page

LONGEST_SIDE_PX = 1400
"""Long side of an image in pixels: enough to read a page, small enough to send."""
IMAGE_QUALITY = 80
WORST_NAME = "worst.jsonl"
_IMAGE_URL = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """One reader's result on a page."""

    reader: str
    text: str
    cer: float
    ended: bool


@dataclass(frozen=True, slots=True)
class WorstPage:
    """A page with its readings, in the readers' order."""

    name: str
    tier: str
    truth: str
    image_url: str
    """`data:image/webp;base64,...`."""
    readings: tuple[ReaderResult, ...]


def worst_pages(pages: Sequence[ScoredPage], number: int) -> list[ScoredPage]:
    """Pages on which the first reader makes the most errors per character; none without errors or a truth."""
    wrong = [page for page in pages if page.scores and page.scores[0].chars.edits]
    return sorted(wrong, key=lambda page: page.scores[0].chars.rate, reverse=True)[:number]


def with_images(pages: Sequence[ScoredPage], reader_names: Sequence[str]) -> list[WorstPage]:
    """Pages with their images embedded and readings named, for storage."""
    return [
        WorstPage(
            page.sample.name,
            page.sample.tier,
            page.sample.truth,
            _image_url(page.sample.image_path),
            tuple(
                ReaderResult(name, reading.text, score.chars.rate, reading.ended)
                for name, reading, score in zip(reader_names, page.readings, page.scores, strict=True)
            ),
        )
        for page in pages
    ]


def save_worst(path: Path, pages: Sequence[WorstPage]) -> None:
    """Write one object a page, the worst first."""
    lines = [json.dumps(asdict(page), ensure_ascii=False) + "\n" for page in pages]
    path.write_text("".join(lines), encoding="utf-8")


def load_worst(path: Path) -> list[WorstPage]:
    """Read what `save_worst` wrote; empty without a file. Raises `ResultError` if it is another kind of file."""
    if not path.is_file():
        return []
    pages = []
    try:
        # Texts may hold the other signs that `splitlines` parts lines at.
        for line in filter(str.strip, path.read_text(encoding="utf-8").split("\n")):
            entry = json.loads(line)
            readings = tuple(ReaderResult(**reading) for reading in entry.pop("readings"))
            pages.append(WorstPage(**entry, readings=readings))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ResultError(f"{path} has no pages of an evaluation: {error!r}") from error
    if not all(_IMAGE_URL.fullmatch(page.image_url) for page in pages):
        raise ResultError(f"{path} has an image of a format that evaluations do not write")
    return pages


def _image_url(path: Path) -> str:
    image = open_page(path)
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=IMAGE_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
