"""What a client wants done with the text of pages that were read.

Tables are written in one form, parts left out, figures cut out, pages joined. The pages are read as always.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from service.errors import InvalidFieldError
from service.intake.limits import Box
from service.ocr import labels
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
    for piece in pieces_of(page.text, page.regions):
        if piece.label in wanted.omit:
            continue
        body = text = piece.text.rstrip()
        if wanted.table_format is not None:
            text = convert_tables(text, wanted.table_format)
        keys = [(each.label, each.box_px) for each in piece.regions]
        links = [f"![{names[key]}]({names[key]})" for key in keys if key in names]
        text = PAGE_BREAK.join(part for part in (*links, text) if part)
        # Tables and figures need blank lines around them.
        pieces.append(piece if text == body else replace(piece, text=f"{PAGE_BREAK}{text}{PAGE_BREAK}"))
    # Their places are those of the text as it was read.
    return replace(with_pieces(page, pieces), words=None)


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
