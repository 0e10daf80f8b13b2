"""`POST /v1/ocr`, as clients of Mistral's OCR API send it. Translates alone.

Pages are read with the task `markdown`. Regions that the model labels as figures become the images of a page; a model
that gives no boxes gives none.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag

from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.engine.protocol import SequenceResult
from service.errors import InvalidFieldError, UnsupportedParameterError
from service.intake.formats import FileFormat, detect_format
from service.ocr import labels
from service.ocr.answer import to_page_answer
from service.ocr.arrangement import gives_boxes
from service.ocr.confidence import Granularity, Span, mean_of
from service.ocr.extraction import Cut, ExtractedTable, Kept, cut_out, labelled, tables_of
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.ocr.request import OcrRequest, parse_request
from service.ocr.tables import TableFormat, convert_tables
from service.routes.auth import use_key
from service.routes.consent import Consent, MayStoreDep, new_consent
from service.routes.data_url import FileBudget
from service.routes.form import refuse_query
from service.routes.json_body import kind_by, receive_json
from service.routes.openapi import json_body, problems
from service.routes.problems import MISTRAL_PATH
from service.routes.reading import read_leased, run_for_client
from service.schemas import (
    MistralAnswer,
    MistralBlock,
    MistralBlockConfidence,
    MistralConfidence,
    MistralDimensions,
    MistralImage,
    MistralPage,
    MistralProblem,
    MistralTable,
    MistralUsage,
    MistralWordConfidence,
)
from shared.contract.prompts import Task
from shared.deepseek_ocr.grounding import Region

router = APIRouter(tags=["clients"], dependencies=[Depends(use_key), Depends(require_ready), Depends(refuse_query)])

UNKNOWN_DPI = 72
BlockType = Literal[
    "title", "text", "caption", "table", "image", "equation", "list", "code", "references", "header", "footer"
]
_BLOCK_TYPES: dict[str, BlockType] = {
    "title": "title",
    "sub_title": "title",
    "image_caption": "caption",
    "figure_caption": "caption",
    "table_caption": "caption",
    "table_footnote": "caption",
    "formula_caption": "caption",
    "table": "table",
    "equation": "equation",
    "formula": "equation",
    "isolate_formula": "equation",
    "list": "list",
    "code": "code",
    "references": "references",
    "header": "header",
    "footer": "footer",
    "page_number": "footer",
    **dict.fromkeys(labels.FIGURES, "image"),
}
"""Labels that the public model is known to give; any other is text."""
_UNSUPPORTED = (
    "bbox_annotation_format",
    "document_annotation_format",
    "document_annotation_prompt",
)
_HEADERS = frozenset({"header"})
_FOOTERS = frozenset({"footer", "page_number"})
_NOT_READ = {PageStatus.FAILED, PageStatus.UNREADABLE}
_RANGE = re.compile(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?")


class _Chunk(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageUrl(_Chunk):
    """An image as a data URL."""

    url: str


class ImageUrlChunk(_Chunk):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl,
        BeforeValidator(
            lambda value: {"url": value} if isinstance(value, str) else value, json_schema_input_type=str | ImageUrl
        ),
    ]


class DocumentUrlChunk(_Chunk):
    """A document as a data URL."""

    type: Literal["document_url"]
    document_url: str
    document_name: str | None = Field(default=None, description="Not used.")


class FileChunk(_Chunk):
    """Not supported: files are not stored."""

    type: Literal["file"]
    file_id: str


Document = Annotated[
    Annotated[DocumentUrlChunk, Tag("<document_url>")]
    | Annotated[ImageUrlChunk, Tag("<image_url>")]
    | Annotated[FileChunk, Tag("<file>")],
    kind_by("type", "document_url", "image_url", "file"),
]


class MistralRequest(BaseModel):
    """A request as Mistral's OCR API has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str | None = Field(default=None, max_length=200)
    """The base model, an adapter's name, or `name@version`; the default model when null."""
    document: Document
    pages: list[Annotated[int, Field(ge=0)]] | str | None = Field(default=None, union_mode="left_to_right")
    """Page numbers from 0, as a list or as text such as `0-2,6`; all when null."""
    include_image_base64: bool | None = None
    """Whether to cut figures out of the pages."""
    image_limit: int | None = Field(default=None, ge=0)
    """Maximum figures of the document."""
    image_min_size: int | None = Field(default=None, ge=0)
    """Minimum width and height of a figure in pixels."""
    include_blocks: bool | None = True
    confidence_scores_granularity: Literal["page", "word", "block"] | None = None
    """Null for no confidences."""
    id: str | None = None
    """Not used."""
    bbox_annotation_format: Any = None
    """Refused unless null."""
    document_annotation_format: Any = None
    """Refused unless null."""
    document_annotation_prompt: str | None = None
    """Refused unless null."""
    table_format: TableFormat | None = None
    """Take tables out of the Markdown, which keeps a link to each, and give them in `tables` in this form."""
    extract_header: bool | None = None
    """Take headers out of the Markdown and give them in `header`; for models with boxes."""
    extract_footer: bool | None = None
    """Take footers and page numbers out of the Markdown and give them in `footer`; for models with boxes."""


def check_parameters(asked: MistralRequest) -> None:
    """Check what this service does not have.

    Args:
        asked: A request.

    Raises:
        UnsupportedParameterError: It asks for something of it.
    """
    for name in _UNSUPPORTED:
        if getattr(asked, name):
            raise UnsupportedParameterError(public={"field": name, "expected": "null"})
    if isinstance(asked.document, FileChunk):
        raise UnsupportedParameterError(public={"field": "document.file_id", "expected": "a data URL instead"})


def pages_from_zero(pages: list[int] | str | None) -> str | None:
    """A selection that counts from 0, as the field `pages` of `POST /ocr` has it.

    Args:
        pages: Numbers, or text such as `0-2,6`.

    Returns:
        Text that counts from 1; None for all pages.

    Raises:
        InvalidFieldError: It is empty, or the text cannot be read.
    """
    if pages is None:
        return None
    parts = [str(page) for page in pages] if isinstance(pages, list) else pages.split(",")
    shifted = []
    for part in parts:
        found = _RANGE.fullmatch(part)
        if found is None:
            break
        shifted.append("-".join(str(int(number) + 1) for number in found.groups() if number))
    if not parts or len(shifted) < len(parts):
        raise InvalidFieldError(public={"field": "pages", "expected": "page numbers from 0, such as 0-2,6"})
    return ",".join(shifted)


@dataclass(frozen=True, slots=True)
class Figure:
    """A region to show as an image; `name` is unique in the document."""

    name: str
    page: int
    region: Region


def find_figures(pages: Sequence[PageResult], limit: int | None, min_size_px: int) -> list[Figure]:
    """The figures of a document in the order of reading.

    Args:
        pages: Its pages.
        limit: Maximum number; None for all.
        min_size_px: Minimum width and height.

    Returns:
        Figures.
    """
    found = (
        (page.page, region)
        for page in pages
        for region in page.regions
        if region.label in labels.FIGURES and _is_at_least(region, max(min_size_px, 1))
    )
    figures = [Figure(f"img-{index}.jpeg", page, region) for index, (page, region) in enumerate(found)]
    return figures[:limit]


def _is_at_least(region: Region, side_px: int) -> bool:
    x1, y1, x2, y2 = region.box_px
    return x2 - x1 >= side_px and y2 - y1 >= side_px


@dataclass(frozen=True, slots=True)
class PageParts:
    """A page's text and what was taken out of it."""

    markdown: str
    kept: tuple[Kept, ...]
    """Where the parts of the Markdown are from, except its links."""
    tables: tuple[ExtractedTable, ...] = ()
    header: str | None = None
    footer: str | None = None


def take_apart(
    page: PageResult,
    figures: Sequence[Figure],
    *,
    table_format: TableFormat | None = None,
    first_table: int = 0,
    header: bool = False,
    footer: bool = False,
) -> PageParts:
    """A page as Mistral's API gives it.

    Clients drop the page's `status`, so a comment tells a page without a reading from an empty one.

    Args:
        page: The page.
        figures: Those of its regions that are linked.
        table_format: The form of tables, if they are to be taken out.
        first_table: Number of its first table.
        header: Whether headers are to be taken out.
        footer: Whether footers and page numbers are.

    Returns:
        Its parts.
    """
    if page.status in _NOT_READ:
        code = f" ({page.error.code})" if page.error is not None else ""
        return PageParts(f"<!-- page {page.page}: {page.status}{code} -->", ())
    headers = labelled(page, _HEADERS) if header else []
    footers = labelled(page, _FOOTERS) if footer else []
    edges = [*headers, *footers]
    tables = [] if table_format is None else tables_of(page, table_format, first_table, edges)
    cuts = [Cut(figure.region.start, figure.region.start, f"![{figure.name}]({figure.name})") for figure in figures]
    cuts += [Cut(table.start, table.end, f"[{table.name}]({table.name})") for table in tables]
    markdown, kept = cut_out(page.text, [*cuts, *edges])
    return PageParts(markdown, kept, tuple(tables), _text_of(page, headers), _text_of(page, footers))


def _text_of(page: PageResult, cuts: Sequence[Cut]) -> str | None:
    return "\n".join(page.text[cut.start : cut.end].strip() for cut in cuts) or None


def annotation(pages: Sequence[PageResult]) -> str | None:
    """What became of the pages that were not read, as JSON in the one member of the document that clients keep."""
    missing = [
        {
            "index": page.page - 1,
            "status": page.status,
            **({} if page.error is None else {"code": page.error.code, "title": page.error.title}),
        }
        for page in pages
        if page.status in _NOT_READ
    ]
    return json.dumps({"pages_not_read": missing}) if missing else None


def _blocks(
    page: PageResult, figures: Sequence[Figure], parts: PageParts, table_format: TableFormat | None
) -> Iterator[MistralBlock]:
    """The page's regions, without figures that are not in `images`."""
    names = {id(figure.region): figure.name for figure in figures}
    words = None
    if page.words is not None and page.words.granularity is Granularity.BLOCK:
        words = page.words.regions
    for index, region in enumerate(page.regions):
        kind = _BLOCK_TYPES.get(region.label, "text")
        name = names.get(id(region))
        if kind == "image" and name is None:
            continue
        content = f"![{name}]({name})" if name else region.text
        table_id = None
        if kind == "table" and table_format is not None:
            content = convert_tables(region.text, table_format)
            inside = range(region.start, region.start + max(len(region.text), 1))
            table_id = next((table.name for table in parts.tables if table.start in inside), None)
        confidence = None if words is None else block_confidence(words[index])
        yield MistralBlock(
            type=kind,
            content=content,
            image_id=name,
            table_id=table_id,
            confidence_scores=confidence,
            **_corners(region),
        )


def _corners(region: Region) -> dict[str, int]:
    return dict(zip(("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y"), region.box_px, strict=True))


def block_confidence(words: Sequence[Span]) -> MistralBlockConfidence:
    """What Mistral's API says of a block's words."""
    mean = mean_of(words)
    return MistralBlockConfidence(
        average_content_confidence_score=None if mean is None else round(mean, 4),
        minimum_content_confidence_score=round(min(word.confidence for word in words), 4) if words else None,
    )


def page_confidence(page: PageResult, result: SequenceResult, kept: Sequence[Kept]) -> MistralConfidence:
    """What Mistral's API says of a page: of its tokens, or with the granularity `word` of its words.

    Args:
        page: The page.
        result: What the model read on it.
        kept: The parts of its text that its Markdown has; words of others, such as tables, are elsewhere.

    Returns:
        The member `confidence_scores`.
    """
    words = page.words
    if words is None or words.granularity is not Granularity.WORD:
        return MistralConfidence(
            average_page_confidence_score=round(result.confidence, 4),
            minimum_page_confidence_score=round(result.min_confidence, 4),
        )
    scores = [score for part in kept for score in _word_scores(page, words.words, part)]
    mean = mean_of(words.words)
    return MistralConfidence(
        average_page_confidence_score=round(result.confidence if mean is None else mean, 4),
        minimum_page_confidence_score=round(
            min((word.confidence for word in words.words), default=result.min_confidence), 4
        ),
        word_confidence_scores=scores,
    )


def _word_scores(page: PageResult, words: Sequence[Span], part: Kept) -> Iterator[MistralWordConfidence]:
    """The words of a part of the page's text, where they are in what is left."""
    for word in words:
        at = part.moved(word.start, word.end)
        if at is not None:
            text = page.text[word.start : word.end]
            yield MistralWordConfidence(text=text, confidence=round(word.confidence, 4), start_index=at)


def _table(page: PageResult, table: ExtractedTable, to: TableFormat) -> MistralTable:
    words = page.words
    scores = None
    if words is not None and words.granularity is Granularity.WORD and table.is_as_read:
        scores = list(_word_scores(page, words.words, Kept(table.start, table.end, 0)))
    return MistralTable(id=table.name, content=table.content, format=to.value, word_confidence_scores=scores)


_RESPONSES = problems(404, reads=True, shape=MistralProblem)


@router.post(MISTRAL_PATH, responses=_RESPONSES, openapi_extra=json_body(MistralRequest))
async def read_as_mistral(
    request: Request, services: ServicesDep, record: RecordDep, may_store: MayStoreDep
) -> MistralAnswer:
    """Read a document, as clients of Mistral's OCR API send it."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    with services.observer.receiving() as received:
        asked, data, ocr_request = await _receive(request, services)
        received(len(data))
    deadline = Deadline(services.bounds.deadline_s, services.bounds.document_deadline_s)
    consent = new_consent(may_store)
    return await run_for_client(request, _read(services, permit, asked, data, ocr_request, deadline, consent))


async def _receive(request: Request, services: Services) -> tuple[MistralRequest, bytes, OcrRequest]:
    asked = await receive_json(request, services.bounds, MistralRequest)
    check_parameters(asked)
    pages = pages_from_zero(asked.pages)
    if isinstance(asked.document, ImageUrlChunk):
        url, field = asked.document.image_url.url, "document.image_url"
    else:
        assert isinstance(asked.document, DocumentUrlChunk)
        url, field = asked.document.document_url, "document.document_url"
    data = await asyncio.to_thread(FileBudget(services.bounds.max_upload_bytes).decode, url, field)
    ocr_request = parse_request(
        data=data,
        info=services.engine.info,
        models=services.models,
        limits=services.reader.limits,
        max_new_tokens_cap=services.bounds.max_new_tokens,
        task=Task.MARKDOWN,
        model_id=asked.model,
        pages=pages,
        blank_pages=services.bounds.blank_pages,
        min_confidence=services.bounds.min_confidence,
        confidence=None
        if asked.confidence_scores_granularity is None
        else Granularity(asked.confidence_scores_granularity),
        min_coverage=services.bounds.min_coverage,
        orientation=services.bounds.orientation,
    )
    _check_boxes(asked, services.models.tasks(ocr_request.model_id))
    # The file's text is not kept while the file is read.
    return asked.model_copy(update={"document": None}), data, ocr_request


def _check_boxes(asked: MistralRequest, tasks: Sequence[Task]) -> None:
    for name in ("extract_header", "extract_footer"):
        if getattr(asked, name) and not gives_boxes(tasks):
            expected = "false with this model, which gives no boxes and labels"
            raise UnsupportedParameterError(public={"field": name, "expected": expected})


async def _read(
    services: Services,
    permit: Permit,
    asked: MistralRequest,
    data: bytes,
    ocr_request: OcrRequest,
    deadline: Deadline,
    consent: Consent,
) -> MistralAnswer:
    document = await read_leased(services, permit, data, ocr_request, deadline, consent)
    figures = find_figures(document.pages, asked.image_limit, asked.image_min_size or 0)
    cut: list[bytes] = []
    if asked.include_image_base64:
        deadline.renew()
        async with deadline.enforced():
            places = [(figure.page, figure.region.box_px) for figure in figures]
            turns = {page.page: page.turned_degrees for page in document.pages}
            cut = await services.reader.cut(data, places, turns)
    images = {figure.name: _data_url(each) for figure, each in zip(figures, cut, strict=False)}
    is_pdf = detect_format(data) is FileFormat.PDF
    dpi = services.reader.limits.pdf_dpi if is_pdf else UNKNOWN_DPI
    pages, num_tables = [], 0
    for page in document.pages:
        shown = [figure for figure in figures if figure.page == page.page]
        parts = take_apart(
            page,
            shown,
            table_format=asked.table_format,
            first_table=num_tables,
            header=bool(asked.extract_header),
            footer=bool(asked.extract_footer),
        )
        num_tables += len(parts.tables)
        pages.append(_page(page, shown, parts, images, asked, dpi))
    return MistralAnswer(
        pages=pages,
        model=document.model_id,
        document_annotation=annotation(document.pages),
        usage_info=MistralUsage(pages_processed=len(document.pages), doc_size_bytes=len(data)),
        id=consent.answer_id,
    )


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _page(
    page: PageResult,
    figures: Sequence[Figure],
    parts: PageParts,
    images: dict[str, str],
    asked: MistralRequest,
    dpi: int,
) -> MistralPage:
    said, dimensions, confidence = to_page_answer(page), None, None
    if page.width_px is not None and page.height_px is not None:
        dimensions = MistralDimensions(dpi=dpi, height=page.height_px, width=page.width_px)
    if asked.confidence_scores_granularity is not None and page.result is not None:
        confidence = page_confidence(page, page.result, parts.kept)
    return MistralPage(
        index=page.page - 1,
        markdown=parts.markdown,
        images=[
            MistralImage(id=figure.name, image_base64=images.get(figure.name), **_corners(figure.region))
            for figure in figures
        ],
        tables=[_table(page, table, asked.table_format) for table in parts.tables] if asked.table_format else [],
        header=parts.header,
        footer=parts.footer,
        dimensions=dimensions,
        confidence_scores=confidence,
        blocks=list(_blocks(page, figures, parts, asked.table_format)) if asked.include_blocks else None,
        status=said.status,
        error=said.error,
    )
