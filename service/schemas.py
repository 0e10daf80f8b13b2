"""JSON bodies of the API. Their docstrings are the descriptions in the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class PageError(BaseModel):
    """Why a page failed, in the terms of an error answer; further members depend on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    code: str
    title: str
    retryable: bool


class PageAnswer(Wire):
    """One page."""

    page: int
    """Number in the document, from 1."""
    status: Literal["ok", "blank", "unreadable", "failed"]
    """`ok`: read. `blank`: nothing is printed on it. `unreadable`: there is something, but no text that could be
    trusted. `failed`: error says why."""
    error: PageError | None = None
    """Why the page failed."""
    warnings: list[Literal["damaged_image"]] = []
    """`damaged_image`: an image on the page cannot be decoded, so a part of it is missing."""
    text: str
    width_px: int | None
    """Width of the upright page; of a PDF page as rendered. Null, as the height, where it could not be decoded."""
    height_px: int | None
    finish_reason: Literal["stop", "length", "repetition"] | None
    """`stop`: read to the end. `length`: cut at max_new_tokens. `repetition`: ended because it repeated itself. Null
    where the model read nothing."""
    confidence: float | None
    """Geometric mean of the chosen tokens' probabilities, 0 to 1; null where the model read nothing."""
    regions: list[RegionAnswer]


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
    """Pages with text, joined by a blank line."""
    model_id: str
    """The model that answered; an adapter as `name@version`."""
    seed: int | None
    """The seed of sampling, given or random; null at temperature 0."""
    finish_reason: Literal["stop", "length", "repetition"]
    """The worst of the pages'."""
    confidence: float | None
    """Geometric mean over all tokens, 0 to 1; null where the model read nothing."""
    latency_ms: float
    """From the request's arrival to this answer."""
    timings_ms: TimingsAnswer
    usage: UsageAnswer
    pages: list[PageAnswer]


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


class ModelAnswer(Wire):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this service started, in seconds since 1970."""
    owned_by: str = "deepsynth"
    root: str
    """The model that the name serves now; for an adapter `name@version`."""
    parent: str | None
    """The base model of an adapter."""
    family: str
    """What kind of model reads, such as `DeepSeek-OCR-2`; nano is a `DeepSeek-OCR`."""
    modes: list[str]
    """Values that the field `mode` may take."""
    default_mode: str
    max_new_tokens: int
    """Most tokens that a request may ask for, per page."""
    tasks: list[str]
    """Values that the field `task` may take."""
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


class ChatChoice(Wire):
    """The one choice."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: None = None
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

    code: Literal["prompt_ignored", "page_failed", "page_unreadable", "repetition"]
    message: str


class ChatAnswer(Wire):
    """A completion in the format of OpenAI's API; `warnings` and `pages` are extensions."""

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
    """As in the answer of `POST /ocr`."""


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


class MistralConfidence(Wire):
    """Probabilities of the page's tokens."""

    average_page_confidence_score: float
    """Their geometric mean."""
    minimum_page_confidence_score: float


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
    dimensions: MistralDimensions | None
    """Null where the page could not be decoded."""
    confidence_scores: MistralConfidence | None
    """Null unless `confidence_scores_granularity` is `page`, or where the model read nothing."""
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
    document_annotation: None = None
    usage_info: MistralUsage


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


class LoadedMetadata(Wire):
    """Where a page is from."""

    source: str
    """The file's name; empty if the client sent none."""
    page: int
    """From 0."""
    page_label: str
    """From 1."""
    total_pages: int
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
    versions: list[AdapterVersionAnswer]


class AdaptersAnswer(Wire):
    """Every adapter."""

    enabled: bool
    volume: str
    """`ok`, `off`, or what was wrong with the volume at the last scan."""
    slots: int
    slots_used: int
    requests_waiting: int
    adapters: list[AdapterAnswer]


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


class StatusAnswer(Wire):
    """Life or readiness."""

    status: str
