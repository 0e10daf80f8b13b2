"""JSON bodies of the API, and headers of its own. Docstrings are the descriptions in the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STATUS_HEADER = "x-ocr-status"
"""On answers that are not JSON: its member `status`, which tells a document of which some page failed."""
NO_STORE_HEADER = "X-Deepsynth-No-Store"
"""On requests of which nothing may be kept."""


class Wire(BaseModel):
    """Base of every answer: frozen, its attribute docstrings in the OpenAPI document."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class RegionAnswer(Wire):
    """A labelled box on a page."""

    label: str
    """The model's label."""
    box_px: tuple[int, int, int, int]
    """x1, y1, x2, y2 in the uploaded page's upright pixels."""
    text: str
    """Text read there; may be empty."""
    confidence: float | None = None
    """Mean confidence of its words; null unless `confidence` is `block` or `word`, or where it has none."""
    words_px: tuple[tuple[int, int, int, int], ...] = Field(default=(), exclude=True)
    """Boxes of its words, where they are known; for hOCR, ALTO and searchable PDFs."""


class SpanAnswer(Wire):
    """A part of the page's text. Offsets count Unicode code points."""

    text: str
    start: int
    end: int
    """After its last code point."""
    line: int
    """Line of the page's text, from 1."""
    confidence: float
    """0 to 1: of a word or a digit that it is right, of a line the mean of its words'."""


class PageError(BaseModel):
    """Why a page failed, in the terms of an error answer; further members depend on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    code: str
    title: str
    retryable: bool


PageWarning = Literal["damaged_image", "partly_read", "low_accuracy", "second_reading_failed"]


class PageAnswer(Wire):
    """One page."""

    page: int
    """Number in the document, from 1."""
    status: Literal["ok", "blank", "unreadable", "failed"]
    """`ok`: read. `blank`: nothing is printed on it. `unreadable`: there is something, but no text that could be
    trusted. `failed`: error says why."""
    error: PageError | None = None
    """Why the page failed."""
    model_id: str | None = None
    """The model that read the page; an adapter as `name@version`. Null where the model read nothing."""
    warnings: list[PageWarning] = []
    """`damaged_image`: an image on the page cannot be decoded, so a part of it is missing. `partly_read`: the text
    accounts for less of the page's print than `min_coverage`. `low_accuracy`: many of the words are expected to be
    wrong, as where the page is in a script or a hand that the model does not read. `second_reading_failed`: with the
    model `auto`, the larger model should have read the page and could not."""
    text: str
    width_px: int | None
    """Width of the upright page; of a PDF page as rendered. Null, as the height, where it could not be decoded."""
    height_px: int | None
    turned_degrees: Literal[0, 90, 180, 270] = 0
    """By how much the page was turned clockwise to be upright, after what the file itself says of its orientation."""
    finish_reason: Literal["stop", "length", "repetition"] | None
    """`stop`: read to the end. `length`: cut at max_new_tokens. `repetition`: ended because it repeated itself. Null
    where the model read nothing."""
    confidence: float | None
    """Geometric mean of the chosen tokens' probabilities, times `coverage`, 0 to 1; null where the model read
    nothing."""
    coverage: float | None = None
    """Share of the page's print that the text accounts for, by estimated characters, 0 to 1; null where the text is not
    the page's own, or nothing was read."""
    unread: list[tuple[int, int, int, int]] = []
    """Boxes of print that the text does not account for: x1, y1, x2, y2 in the uploaded page's upright pixels."""
    regions: list[RegionAnswer]
    calibrated: bool | None = None
    """Whether confidences of words are probabilities, measured for this model; else they are its own scores, which are
    often too high. Null, as `word_accuracy`, for models without a calibration unless `confidence` is `block` or `word`
    or `review_threshold` is given, and for pages without text."""
    word_accuracy: float | None = None
    """Share of the words that is expected to be right: the mean of their confidences."""
    lines: list[SpanAnswer] | None = None
    """With `confidence=word`."""
    words: list[SpanAnswer] | None = None
    """With `confidence=word`: all words, which white space separates."""
    doubtful_words: list[SpanAnswer] | None = None
    """With `review_threshold`: words whose confidence is below it."""
    doubtful_digits: list[SpanAnswer] | None = None
    """With `review_threshold`: digits whose own confidence is below it; adjacent ones together, with the lowest."""


class FigureAnswer(Wire):
    """A picture, cut out of its page."""

    name: str
    """As the page's text links it."""
    page: int
    label: str
    """The model's label."""
    box_px: tuple[int, int, int, int]
    """As in `regions`."""
    image: str
    """A JPEG file as a data URL."""


class JoinAnswer(Wire):
    """Something that goes on from one page to the next."""

    page: int
    next_page: int
    kind: Literal["word", "paragraph", "table"]
    """`word`: a paragraph, within a divided word whose hyphen was removed."""


class TimingsAnswer(Wire):
    """Milliseconds spent per stage; summed over pages, which overlap."""

    receive: float
    decode: float
    queue: float
    encode: float
    prefill: float
    generate: float


class UsageAnswer(Wire):
    """Tokens, summed over pages."""

    vision_tokens: int
    prompt_tokens: int
    completion_tokens: int


class OcrAnswer(Wire):
    """What was read."""

    id: str
    status: Literal["ok", "partial"]
    """`partial`: some pages failed."""
    text: str
    """Pages with text, joined by a blank line, or as `joins` says."""
    model_id: str
    """The model that answered; an adapter as `name@version`. With `auto` the pages say who read them."""
    seed: int | None
    """The seed of sampling, given or random; null at temperature 0."""
    finish_reason: Literal["stop", "length", "repetition"]
    """The worst of the pages'."""
    confidence: float | None
    """Geometric mean of the pages', weighted by their tokens, 0 to 1; null where the model read nothing."""
    latency_ms: float
    """From the request's arrival to this answer."""
    timings_ms: TimingsAnswer
    usage: UsageAnswer
    pages: list[PageAnswer]
    joins: list[JoinAnswer] | None = None
    """What was joined across pages in `text`; null unless `join_pages` is true."""
    figures: list[FigureAnswer] | None = None
    """Null unless `figures` is true."""


class WebhookAnswer(Wire):
    """The message that tells of a job's end."""

    url: str
    status: Literal["waiting", "delivered", "failed"]
    """`waiting`: for the job's end, or for another attempt. `failed`: given up."""
    attempts: int


class JobSummary(Wire):
    """A document that is read in the background. Times are in seconds since 1970."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    """`done`: every page is finished. `failed`: so it is, and none could be read; error says why."""
    name: str
    """The file's."""
    model_id: str
    """An adapter as `name@version` once reading has begun."""
    task: str
    created: int
    started: int | None
    ended: int | None
    expires: int | None
    """When it will be erased; null until it has ended."""
    num_pages: int
    num_finished: int
    """Pages with an outcome, failed ones among them."""
    num_failed: int
    error: PageError | None
    """Of a job that failed: that of its first page."""
    webhook: WebhookAnswer | None


class JobPage(Wire):
    """Progress of one page."""

    page: int
    status: Literal["ok", "blank", "unreadable", "failed"] | None
    """Null until it is finished."""


class JobAnswer(JobSummary):
    """A job with each of its pages."""

    pages: list[JobPage]


class JobsAnswer(Wire):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next: str | None
    """The value of `before` for the jobs that follow; null if there are none."""


class JobResult(OcrAnswer):
    """What a job has read: the answer of `POST /ocr`, with those pages alone that are finished."""

    status: Literal["incomplete", "ok", "partial"]  # type: ignore[assignment] # wider than that of POST /ocr
    """`incomplete`: pages are still being read. `partial`: some pages failed."""


class Problem(BaseModel):
    """An error in the format of RFC 9457; further members depend on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    code: str
    retryable: bool
    request_id: str


class ModelCapabilities(Wire):
    """What a model can do, in the words of Mistral's API."""

    completion_chat: bool = True
    vision: bool = True
    ocr: bool = True


class ModelAnswer(Wire):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this service started, in seconds since 1970."""
    owned_by: str = "deepsynth"
    type: Literal["base"] = "base"
    """For clients of Mistral's API, as `capabilities`; adapters have no other kind."""
    capabilities: ModelCapabilities = ModelCapabilities()
    root: str
    """The model that the name serves now; for an adapter `name@version`."""
    parent: str | None
    """The base model of an adapter."""
    family: str
    """What kind of model reads, such as `DeepSeek-OCR-2`; nano is a `DeepSeek-OCR`."""
    tasks: list[str]
    """Values that the field `task` may take with this model."""
    modes: list[str]
    """Values that the field `mode` may take."""
    default_mode: str
    layouts: list[str]
    """Values that the field `layout` may take, `lines` with the tasks `free` and `markdown`."""
    boxes: bool
    """Whether it gives boxes with labels, which the options `omit` and `figures` need."""
    max_new_tokens: int
    """Most tokens that a request may ask for, per page."""
    max_sequence_tokens: int
    """Positions: pages, prompt and answer together."""
    max_pages_together: int
    """Most pages with `pages_together`; 1 if the model reads each page alone."""
    takes_adapters: bool
    """Whether adapters of this model can be loaded; false for adapters themselves."""


class ModelsAnswer(Wire):
    """All served models, in the format of OpenAI's API."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class ChatMessage(Wire):
    """The message with the text."""

    role: Literal["assistant"] = "assistant"
    content: str
    """All pages, joined by a blank line."""
    refusal: None = None


class ChatTopLogprob(Wire):
    """A token that could be chosen."""

    token: str
    logprob: float
    bytes: list[int]
    """UTF-8 of the token, perhaps of a part of a character."""


class ChatTokenLogprob(ChatTopLogprob):
    """A token of the text, or several that share a character, with the sum of their logarithms."""

    top_logprobs: list[ChatTopLogprob]
    """The most probable tokens, as the model has them; of a piece of several tokens the piece itself alone."""


class ChatLogprobs(Wire):
    """The text token by token; what the service adds, such as the break between pages, has the logprob 0."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatChoice(Wire):
    """The one choice."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    """Null unless `logprobs` is true."""
    finish_reason: Literal["stop", "length"]
    """`length`: at least one page is incomplete; `pages` says which and why."""


class PromptTokensDetails(Wire):
    """The prompt's tokens by kind."""

    image_tokens: int
    text_tokens: int


class ChatUsage(Wire):
    """Tokens, summed over pages."""

    prompt_tokens: int
    """Of images and text."""
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatWarning(Wire):
    """What the service did differently from what a client may expect."""

    code: Literal["prompt_ignored", "page_failed", "page_unreadable", "low_accuracy", "repetition"]
    message: str


class ChatAnswer(Wire):
    """A completion in the format of OpenAI's API; `warnings`, `pages`, `joins` and `figures` are extensions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    """The model that answered; an adapter as `name@version`."""
    choices: list[ChatChoice]
    usage: ChatUsage
    warnings: list[ChatWarning]
    pages: list[PageAnswer]
    """As in the answer of `POST /ocr`, as the next two."""
    joins: list[JoinAnswer] | None = None
    figures: list[FigureAnswer] | None = None


class OpenAIError(Wire):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str
    """As in docs/errors.md."""


class OpenAIProblem(Wire):
    """An error in the format of OpenAI's API."""

    error: OpenAIError


class MistralImage(Wire):
    """A figure on a page; coordinates in pixels of `dimensions`."""

    id: str
    """As in the page's Markdown."""
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    image_base64: str | None
    """A JPEG file as a data URL; null unless `include_image_base64` is true."""


class MistralBlockConfidence(Wire):
    """Confidences of a block's words; null where it has none."""

    average_content_confidence_score: float | None
    minimum_content_confidence_score: float | None
    block_type_confidence_score: None = None
    """Not known."""


class MistralBlock(Wire):
    """A labelled box; coordinates in pixels of `dimensions`."""

    type: Literal[
        "title", "text", "caption", "table", "image", "equation", "list", "code", "references", "header", "footer"
    ]
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    content: str
    image_id: str | None = None
    """Of an image: its entry in `images`."""
    table_id: str | None = None
    """Of a table: its entry in `tables`."""
    confidence_scores: MistralBlockConfidence | None = None
    """Null unless `confidence_scores_granularity` is `block`."""


class MistralWordConfidence(Wire):
    """How sure the model is of a word."""

    text: str
    confidence: float
    start_index: int
    """In the page's Markdown, in code points."""


class MistralConfidence(Wire):
    """Probabilities of the page's tokens; with the granularity `word`, confidences of its words."""

    average_page_confidence_score: float
    """Geometric mean of tokens, mean of words."""
    minimum_page_confidence_score: float
    word_confidence_scores: list[MistralWordConfidence] | None = None
    """Null unless `confidence_scores_granularity` is `word`."""


class MistralTable(Wire):
    """A table that was taken out of the page's Markdown."""

    id: str
    """As in the page's Markdown."""
    content: str
    format: Literal["html", "markdown"]
    word_confidence_scores: list[MistralWordConfidence] | None
    """Null unless `confidence_scores_granularity` is `word` and the model wrote the table in this form; `start_index`
    is in `content`."""


class MistralDimensions(Wire):
    """Size of the upright page."""

    dpi: int
    """Of a PDF page, as rendered; 72 for an image, whose resolution is not known."""
    height: int
    width: int


class MistralPage(Wire):
    """One page."""

    index: int
    """In the document, from 0."""
    markdown: str
    images: list[MistralImage]
    tables: list[MistralTable]
    """Empty unless `table_format` is given; a table that cannot be written in that form stays in the Markdown."""
    header: str | None
    """With `extract_header`, if the page has one."""
    footer: str | None
    """With `extract_footer`, if the page has one, page numbers included."""
    dimensions: MistralDimensions | None
    """Null where the page could not be decoded."""
    confidence_scores: MistralConfidence | None
    """Null unless `confidence_scores_granularity` is given, or where the model read nothing."""
    blocks: list[MistralBlock] | None
    """Null if `include_blocks` is false; empty if the model gives no boxes."""
    status: Literal["ok", "blank", "unreadable", "failed"]
    """Extension: as in the answer of `POST /ocr`."""
    error: PageError | None
    """Extension: why the page failed."""


class MistralUsage(Wire):
    """What was read."""

    pages_processed: int
    doc_size_bytes: int


class MistralAnswer(Wire):
    """A document in the format of Mistral's OCR API."""

    pages: list[MistralPage]
    model: str
    """The model that answered; an adapter as `name@version`."""
    document_annotation: str | None = None
    """JSON with `pages_not_read`, a list of index, status, code and title; null if every page was read."""
    usage_info: MistralUsage
    id: str
    """Extension: names the answer in `POST /feedback`."""


class MistralDetail(Wire):
    """What was wrong with a request."""

    loc: list[str | int]
    msg: str
    type: str


class MistralProblem(Wire):
    """An error in the format of Mistral's API."""

    object: Literal["error"] = "error"
    message: str
    type: str
    param: str | None
    code: str
    """As in docs/errors.md."""
    request_id: str
    detail: list[MistralDetail] | None = None
    """With 422 alone."""


class AzureWire(Wire):
    """Base of answers whose members have names as `createdDateTime`."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class AnalyzedSpan(AzureWire):
    """A part of the document's text. Offsets count Unicode code points."""

    offset: int
    length: int


class AnalyzedWord(AzureWire):
    """A word and its place."""

    content: str
    polygon: list[int]
    """x and y of its four corners, clockwise from the top left, on the upright page."""
    span: AnalyzedSpan
    confidence: float


class AnalyzedLine(AzureWire):
    """A line and its place."""

    content: str
    """Without marks of Markdown."""
    polygon: list[int]
    """x and y of its four corners, clockwise from the top left, on the upright page."""
    spans: list[AnalyzedSpan]


class AnalyzedPage(AzureWire):
    """A page of the document."""

    page_number: int
    angle: float
    """Always 0: boxes are on the upright page."""
    width: int
    height: int
    unit: Literal["pixel"] = "pixel"
    spans: list[AnalyzedSpan]
    words: list[AnalyzedWord]
    lines: list[AnalyzedLine]


class AnalyzeWarning(AzureWire):
    """What a reader of the result should know of a page."""

    code: str
    """A page's status or one of its warnings."""
    message: str
    target: str
    """The page."""


class AnalyzedDocument(AzureWire):
    """What was read."""

    api_version: str
    model_id: str
    """Who read it."""
    string_index_type: Literal["unicodeCodePoint"] = "unicodeCodePoint"
    content_format: Literal["text", "markdown"]
    content: str
    pages: list[AnalyzedPage]
    tables: list[None] = []
    """Always empty: tables are in the content."""
    styles: list[None] = []
    """Always empty."""
    warnings: list[AnalyzeWarning]


class AnalyzeFault(AzureWire):
    """An error in the format of Azure's API."""

    code: str
    """As in docs/errors.md."""
    message: str
    target: str | None = None
    """The parameter that it is about."""


class AnalyzeProblem(AzureWire):
    """The body of an error of Azure's API."""

    error: AnalyzeFault


class AnalyzeOperation(AzureWire):
    """How far an analysis is."""

    status: Literal["notStarted", "running", "succeeded", "failed"]
    created_date_time: datetime
    last_updated_date_time: datetime
    error: AnalyzeFault | None = None
    """Why it has failed: also if one page could not be read, as clients would take the rest for the document."""
    analyze_result: AnalyzedDocument | None = None
    """Once it has succeeded."""


class LoadedMetadata(Wire):
    """Where a page is from."""

    source: str
    """The file's name; empty if the client sent none."""
    page: int
    """From 0."""
    page_label: str
    """From 1."""
    total_pages: int
    answer_id: str
    """Names the document's answer in `POST /feedback`."""
    model_id: str
    finish_reason: Literal["stop", "length", "repetition"] | None
    confidence: float | None


class LoadedPage(Wire):
    """A page as Open WebUI takes it."""

    page_content: str
    metadata: LoadedMetadata


class AdapterVersionAnswer(Wire):
    """One version of an adapter."""

    version: int
    state: Literal["seen", "verified", "loaded", "active", "draining", "unloaded", "refused"]
    reason: str | None
    """Why it was refused."""
    detail: str | None
    """Details of the reason; only with the admin key."""
    fault: str | None
    """Why the last preparation failed; it is tried again."""
    documents_running: int
    pages: int
    """Read with it since it was first prepared."""
    load_s: dict[str, float]
    """Seconds per stage of its preparation."""


class UnpublishedFolder(Wire):
    """A folder that looks like a version but was not published."""

    folder: str
    """Below that of its name; `.` for files in the name's own folder."""
    reason: Literal["manifest_missing"]


class AdapterAnswer(Wire):
    """All versions under one name."""

    name: str
    serving: str | None
    """The version that the name serves now, as `name@version`."""
    pinned: int | None
    """The version that an operator chose."""
    on_volume: int | None
    """The version that the volume's pointer names."""
    published: list[int]
    """Complete versions on the volume."""
    unpublished: list[UnpublishedFolder]
    """What lies there without a manifest, and so is not served."""
    versions: list[AdapterVersionAnswer]


class AdaptersAnswer(Wire):
    """Adapters, in the order of their names."""

    enabled: bool
    volume: str
    """`ok`, `off`, or what was wrong with the volume at the last scan: a code, and after a colon which part of it."""
    slots: int
    slots_used: int
    requests_waiting: int
    adapters: list[AdapterAnswer]
    misnamed: list[str]
    """Folders of the volume that are not looked into: their names are none of adapters. 50 at most."""
    next: str | None
    """If there are more: the `after` of the next request."""


class AdapterCommand(BaseModel):
    """What every operator's command says. Titles keep the names that the OpenAPI document was published with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    why: str = Field(min_length=1, max_length=500)
    """The reason, for the audit log."""
    who: str | None = Field(default=None, min_length=1, max_length=100)
    """Who sends the command, for the audit log."""


class PinCommand(AdapterCommand):
    """Make a name serve one version."""

    model_config = ConfigDict(title="PinOrder")

    version: int | None = Field(ge=1, le=999_999_999)
    """The version; null to follow the volume again."""


class RollbackCommand(AdapterCommand):
    """Return to the last good version."""

    model_config = ConfigDict(title="RollbackOrder")


class RefuseCommand(AdapterCommand):
    """Take a version out of service."""

    model_config = ConfigDict(title="RefuseOrder")

    version: int = Field(ge=1, le=999_999_999)


class FeedbackRequest(BaseModel):
    """A corrected page."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(min_length=1, max_length=200)
    """Of the answer."""
    text: str
    """What is printed on the page, all of it, in the form that the task asked for; empty if nothing is."""
    page: int | None = Field(default=None, ge=1)
    """Its number in the document; needed if the answer has several pages."""


class FeedbackAnswer(Wire):
    """A correction that was stored."""

    id: str
    """Of the answer."""
    page: int
    status: Literal["stored"] = "stored"


class ErasedAnswer(Wire):
    """Pages of an answer that were erased."""

    id: str
    """Of the answer."""
    pages: list[int]


class StatusAnswer(Wire):
    """Life."""

    status: str


class ReadyAnswer(Wire):
    """Readiness, and what clients may need to know before they send a document."""

    status: str
    jobs: bool
    """Whether `POST /jobs` takes documents."""
    samples: Literal["off", "full", "thumbnail"]
    """What is kept of pages that are read: nothing, the page, or a small picture of it; with its text."""
