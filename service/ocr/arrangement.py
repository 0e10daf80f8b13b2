"""What a client wants done with the text of pages that were read.

Tables are written in one form, parts left out, figures cut out, pages joined. The pages are read as always.
"""

from __future__ import annotations

import asyncio
import base64
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

from service.errors import InvalidFieldError
from service.intake.limits import Box
from service.ocr import labels
from service.ocr.confidence import PageConfidence, Span, words_of
from service.ocr.formats.output_format import OutputFormat
from service.ocr.joining import Join, join_pages
from service.ocr.pieces import pieces_of, with_pieces
from service.ocr.reader import PAGE_BREAK, DocumentResult, PageResult
from service.ocr.request import OcrRequest
from service.ocr.tables import TableFormat, convert_tables
from shared.contract.prompts import Task
from shared.images.page_ink import Turn

_WRITES_TABLES = (Task.MARKDOWN, Task.FIGURE)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a client wants the text; by default as the model wrote it."""

    table_format: TableFormat | None = None
    omit: frozenset[str] = frozenset()
    figures: bool = False
    join_pages: bool = False

    @property
    def changes_pages(self) -> bool:
        """Whether the text of single pages differs from the model's."""
        return self.table_format is not None or bool(self.omit) or self.figures


AS_READ = Arrangement()


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture on a page, linked in the page's text by its name."""

    name: str
    page: int
    label: str
    box_px: Box


@dataclass(frozen=True, slots=True)
class Arranged:
    """A document as a client wants it."""

    pages: Sequence[PageResult]
    text: str
    """Of all pages."""
    wanted: Arrangement = AS_READ
    joins: tuple[Join, ...] = ()
    figures: tuple[tuple[Figure, str], ...] = ()
    """Each with its JPEG file as a data URL."""


class FigureCutter(Protocol):
    """Cuts figures out of a document; implemented by `service.ocr.reader.DocumentReader`."""

    async def cut(self, data: bytes, places: Sequence[tuple[int, Box]], turns: Mapping[int, Turn]) -> list[bytes]:
        """A JPEG file for each page number and box; `turns` says how pages were turned to be upright."""


def parse_omit(text: str | None) -> frozenset[str]:
    """Read the option `omit`.

    Args:
        text: Labels such as `header,footer`; None for nothing.

    Returns:
        The labels.

    Raises:
        InvalidFieldError: One of them cannot be left out.
    """
    named = frozenset(part.strip() for part in (text or "").split(",") if part.strip())
    if not named <= set(labels.REPEATED):
        raise InvalidFieldError(public={"field": "omit", "expected": list(labels.REPEATED)})
    return named


def check_arrangement(
    wanted: Arrangement, request: OcrRequest, tasks: Sequence[Task], output: OutputFormat | None
) -> None:
    """Check that a model and an output format can do what an arrangement needs.

    Args:
        wanted: The arrangement.
        request: How the document is read.
        tasks: What the model can do.
        output: The format; None for JSON.

    Raises:
        InvalidFieldError: It would have no effect with this task, this model or this format.
    """
    if output is not None:
        check_output(wanted, output)
    if wanted.table_format is not None and request.task not in _WRITES_TABLES:
        expected = f"not to be sent with the task {request.task}; it is for {' and '.join(_WRITES_TABLES)}"
        raise InvalidFieldError(public={"field": "table_format", "expected": expected})
    for field, is_wanted in (("omit", bool(wanted.omit)), ("figures", wanted.figures)):
        if is_wanted and request.task is not Task.MARKDOWN:
            expected = f"not to be sent with the task {request.task}; it is for {Task.MARKDOWN}"
            raise InvalidFieldError(public={"field": field, "expected": expected})
        if is_wanted and not gives_boxes(tasks):
            raise InvalidFieldError(
                public={"field": field, "expected": "not to be sent to this model, which gives no boxes and labels"}
            )


def check_output(wanted: Arrangement, output: OutputFormat) -> None:
    """Check that an output format has a place for what an arrangement adds.

    Args:
        wanted: The arrangement.
        output: The format.

    Raises:
        InvalidFieldError: It has none.
    """
    for field, is_refused in (
        ("figures", wanted.figures and not output.takes_figures),
        ("join_pages", wanted.join_pages and not output.takes_joined),
    ):
        if is_refused:
            expected = f"not to be sent with the format {output.name}"
            raise InvalidFieldError(public={"field": field, "expected": expected})


def gives_boxes(tasks: Sequence[Task]) -> bool:
    """Whether a model with these tasks labels the parts of a page: the task `ocr` is text with boxes."""
    return Task.OCR in tasks


def arrange_page(page: PageResult, wanted: Arrangement) -> PageResult:
    """A page with its tables in one form, without what is left out, and with a link to each figure."""
    if not wanted.changes_pages or not (page.text or page.regions):
        return page
    names = {(figure.label, figure.box_px): figure.name for figure in figures_of(page)} if wanted.figures else {}
    pieces = []
    kept: list[tuple[int, int, int]] = []
    at = num_solid = 0
    for piece in pieces_of(page.text, page.regions):
        start, at = at, at + len(piece.text)
        if piece.label in wanted.omit:
            continue
        body = text = piece.text.rstrip()
        if wanted.table_format is not None:
            text = convert_tables(text, wanted.table_format)
        keys = [(each.label, each.box_px) for each in piece.regions]
        links = [f"![{names[key]}]({names[key]})" for key in keys if key in names]
        if text == body:
            kept.append((start, at, num_solid + sum(map(_num_solid, links))))
        text = PAGE_BREAK.join(part for part in (*links, text) if part)
        num_solid += _num_solid(text)
        # Tables and figures need blank lines around them.
        pieces.append(piece if text == body else replace(piece, text=f"{PAGE_BREAK}{text}{PAGE_BREAK}"))
    arranged = with_pieces(page, pieces)
    return arranged if page.words is None else replace(arranged, words=_moved(page.words, page, arranged, kept))


def _num_solid(text: str) -> int:
    """Characters other than white space."""
    return sum(not character.isspace() for character in text)


def _moved(
    words: PageConfidence, page: PageResult, arranged: PageResult, kept: Sequence[tuple[int, int, int]]
) -> PageConfidence:
    """The confidences of the words that are left as they were, at their new places.

    Args:
        words: Of the page.
        page: As it was read.
        arranged: With another text; white space may differ everywhere.
        kept: Start and end of each part of the page's text that is left as it was, and how many characters other than
            white space the new text has before it.

    Returns:
        Words of rewritten tables have no confidence, and are left out.
    """
    before = [0, *accumulate(not character.isspace() for character in page.text)]
    places = [place for place, character in enumerate(arranged.text) if not character.isspace()]
    breaks = [place for place, character in enumerate(arranged.text) if character == "\n"]
    starts = [start for start, _, _ in kept]

    def move(spans: Sequence[Span]) -> Iterator[Span]:
        for span in spans:
            part = bisect_right(starts, span.start) - 1
            if part < 0 or span.end > kept[part][1]:
                continue
            start, _, first = kept[part]
            solid = first + before[span.start] - before[start]
            begin, end = places[solid], places[solid + span.end - span.start - 1] + 1
            yield replace(span, start=begin, end=end, line=bisect_left(breaks, begin) + 1)

    moved = tuple(move(words.words))
    return replace(
        words,
        words=moved,
        regions=tuple(words_of(region, moved) for region in arranged.regions),
        doubtful_words=None if words.doubtful_words is None else tuple(move(words.doubtful_words)),
        doubtful_digits=None if words.doubtful_digits is None else tuple(move(words.doubtful_digits)),
    )


def figures_of(page: PageResult) -> list[Figure]:
    """The figures of a page, in the order of reading."""
    regions = [region for region in page.regions if region.label in labels.FIGURES and _has_area(region.box_px)]
    return [
        Figure(f"page-{page.page}-figure-{number}.jpeg", page.page, region.label, region.box_px)
        for number, region in enumerate(regions, 1)
    ]


def _has_area(box_px: Box) -> bool:
    left, top, right, bottom = box_px
    return left < right and top < bottom


async def arrange(document: DocumentResult, wanted: Arrangement, data: bytes, cutter: FigureCutter) -> Arranged:
    """Arrange a document.

    Args:
        document: As it was read.
        wanted: The arrangement.
        data: The file, for its figures.
        cutter: Cuts them out.

    Returns:
        The document.
    """
    pages = [arrange_page(page, wanted) for page in document.pages]
    figures = [figure for page in document.pages for figure in figures_of(page)] if wanted.figures else []
    turns = {page.page: page.turned_degrees for page in document.pages}
    cut = await cutter.cut(data, [(figure.page, figure.box_px) for figure in figures], turns)
    urls = [f"data:image/jpeg;base64,{base64.b64encode(each).decode()}" for each in cut]
    cut_out = tuple(zip(figures, urls, strict=True))
    if not wanted.join_pages:
        return Arranged(pages, replace(document, pages=pages).text, wanted, figures=cut_out)
    text, joins = await asyncio.to_thread(join_pages, pages)
    return Arranged(pages, text, wanted, joins, cut_out)


def embed_figures(markdown: str, urls: Mapping[str, str]) -> str:
    """Replace links to figures in a text.

    Args:
        markdown: With links as `arrange_page` makes them.
        urls: The new target of each, by the figure's name.

    Returns:
        The text.
    """
    for name, url in urls.items():
        markdown = markdown.replace(f"![{name}]({name})", f"![{name}]({url})")
    return markdown
