"""`POST /v1/chat/completions`, as clients of OpenAI's and Mistral's APIs send it: a chat becomes one document to read.

Translates alone. Images and files of the user's messages, in order, are the pages of one document. Text names the task;
other text is not followed, and a warning in the answer says so.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag
from starlette.responses import Response

from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.engine.protocol import MAX_ALTERNATIVES, MAX_TEMPERATURE
from service.errors import DeepSynthError, InvalidFieldError, TooManyPagesError, UnsupportedParameterError
from service.ocr.answer import to_figures, to_joins, to_page_answer, well_formed
from service.ocr.arrangement import AS_READ, Arranged, Arrangement, arrange, arrange_page, check_arrangement, parse_omit
from service.ocr.cascade import AUTO
from service.ocr.confidence import Granularity
from service.ocr.live_text import LiveText
from service.ocr.logprobs import Piece, document_pieces
from service.ocr.outcome import BlankPages, Orientation, PageStatus
from service.ocr.reader import DocumentResult
from service.ocr.request import OcrRequest, parse_request
from service.ocr.sampling import MAX_GIVEN_SEED, MIN_GIVEN_SEED
from service.ocr.tables import TableFormat
from service.routes.auth import use_key
from service.routes.consent import Consent, MayStoreDep, new_consent
from service.routes.data_url import FileBudget
from service.routes.form import refuse_query, unknown_field
from service.routes.json_body import kind_by, receive_json
from service.routes.openapi import json_body, problems
from service.routes.problems import CHAT_PATH, openai_error
from service.routes.reading import read_leased, run_for_client
from service.routes.stream import Emit, EventStream
from service.schemas import (
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    ChatTopLogprob,
    ChatUsage,
    ChatWarning,
    OpenAIProblem,
    PromptTokensDetails,
)
from shared.contract.answer import FinishReason
from shared.contract.prompts import MAX_QUERY_CHARS, Task, recognise
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import ReadingLayout

router = APIRouter(tags=["clients"], dependencies=[Depends(use_key), Depends(require_ready), Depends(refuse_query)])

_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""Parameters of OpenAI's API that change no answer of this service."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guardrails": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "presence_penalty": (0,),
    "prompt_mode": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safe_prompt": (False,),
    "stop": ([], ""),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameters that would change it, with the values, besides null, that do not."""
PROMPT_IGNORED = ChatWarning(
    code="prompt_ignored",
    message="Text that names no task is not followed. Name one of free, markdown, ocr, figure, describe, or write "
    "'Locate ... in the image.'; docs/api.md has their prompts.",
)
PAGE_FAILED = ChatWarning(code="page_failed", message="A page could not be read and is missing; pages says why.")
PAGE_UNREADABLE = ChatWarning(
    code="page_unreadable", message="A page shows something, but no text that could be trusted; pages says which."
)
LOW_ACCURACY = ChatWarning(
    code="low_accuracy",
    message="Many words of a page are expected to be wrong: its script or its hand may be none that the model reads; "
    "pages says which.",
)
REPETITION = ChatWarning(
    code="repetition", message="A page ended because its text repeated itself; finish_reason is length."
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class TextPart(_Part):
    """Text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """An image, or a PDF, as a data URL."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = Field(default=None, description="Not used.")


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl,
        BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value),
    ]


class FileData(_Part):
    """A file's bytes."""

    file_data: str | None = Field(default=None, description="A data URL, or base64 alone.")
    file_id: str | None = Field(default=None, description="Not supported: files are not stored.")
    filename: str | None = Field(default=None, description="Not used.")


class FilePart(_Part):
    """A document; Mistral's clients give an id in place of `file`."""

    type: Literal["file"]
    file: FileData | None = None
    file_id: str | None = Field(default=None, description="Not supported: files are not stored.")


class DocumentPart(_Part):
    """A document, as Mistral's clients send it."""

    type: Literal["document_url"]
    document_url: str = Field(description="A data URL.")
    document_name: str | None = Field(default=None, description="Not used.")


def _parts(value: Any) -> Any:
    """Content in one form: text alone becomes a part, and no content no parts."""
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[FilePart, Tag("<file>")]
    | Annotated[DocumentPart, Tag("<document_url>")],
    kind_by("type", "text", "image_url", "file", "document_url"),
]


class UserMessage(_Part):
    """Pages to read, and text that says what to do with them."""

    role: Literal["user"]
    content: Annotated[list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])]


class SystemMessage(_Part):
    """Text that may name a task."""

    role: Literal["system", "developer"]
    content: Annotated[list[TextPart], BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])]


class AssistantMessage(_Part):
    """An earlier answer; not used."""

    role: Literal["assistant"]


Message = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    kind_by("role", "user", "system", "developer", "assistant"),
]


class StreamOptions(_Part):
    """Options of a stream."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A request as OpenAI's or Mistral's API has it, with options of `POST /ocr` as extensions."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    model: str = Field(min_length=1, max_length=200)
    """The base model, an adapter's name, or `name@version`; see /v1/models."""
    messages: list[Message] = Field(min_length=1)
    """Images and files of the user's messages are the pages of one document, in order."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens per page."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The older name of `max_completion_tokens`."""
    temperature: float | None = Field(default=None, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)
    """0 when not given."""
    seed: int | None = Field(default=None, ge=MIN_GIVEN_SEED, le=MAX_GIVEN_SEED)
    random_seed: int | None = Field(default=None, ge=MIN_GIVEN_SEED, le=MAX_GIVEN_SEED)
    """Mistral's name of `seed`."""
    task: str | None = Field(default=None, json_schema_extra={"enum": [*Task, None]})
    """Extension: what to do with each page, whatever the text says."""
    query: str | None = Field(default=None, max_length=MAX_QUERY_CHARS)
    """Extension: what to look for, with the task `locate`."""
    mode: str | None = Field(default=None, json_schema_extra={"enum": [*Mode, None]})
    """Extension: resolution mode."""
    pages: str | None = Field(default=None, max_length=200)
    """Extension: pages of the one file, such as `1-3,7`."""
    confidence: Granularity | None = None
    """Extension: how fine the confidences in `pages` are."""
    review_threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Extension: `pages` lists words and digits whose confidence is below it; the service's setting when null."""
    blank_pages: BlankPages | None = None
    """Extension: `skip` or `read` pages that show no print; the service's setting when not given."""
    min_confidence: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Extension: answers below it, for pages with little print, are not given; the service's setting when not given."""
    min_coverage: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Extension: pages of whose print the text accounts for less get the warning `partly_read`."""
    orientation: Orientation | None = None
    """Extension: `auto` turns pages that are not upright, `as-is` does not; the service's setting when not given."""
    table_format: TableFormat | None = None
    """Extension: how tables in Markdown are written."""
    omit: str | None = Field(default=None, max_length=200)
    """Extension: parts of Markdown to leave out: `header`, `footer`, `page_number`, several with commas."""
    figures: bool | None = None
    """Extension: cut out the figures of the one file."""
    join_pages: bool | None = None
    """Extension: join what goes on across pages; not with a stream."""
    pages_together: bool = False
    """Extension: read all pages in one pass, where the model can."""
    layout: ReadingLayout | None = None
    """Extension: read pages whole (`page`), by their `lines`, or as suits the model (`auto`, also when null)."""
    logprobs: bool | None = None
    """Whether to give the probability of each token of the text."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_ALTERNATIVES)
    """How many of the most probable tokens at each place to give; at temperature 0 the first is the one chosen."""

    @property
    def arrangement(self) -> Arrangement:
        """How the text is wanted; an `InvalidFieldError` if `omit` cannot be read."""
        return Arrangement(self.table_format, parse_omit(self.omit), bool(self.figures), bool(self.join_pages))


def check_parameters(chat: ChatRequest) -> None:
    """Check what the model of a request leaves open.

    Args:
        chat: A request.

    Raises:
        UnsupportedParameterError: It has a parameter that would change the answer.
        InvalidFieldError: It has one that neither API knows, or two that contradict each other.
    """
    for name, value in (chat.model_extra or {}).items():
        if name in _NEUTRAL:
            neutral = _NEUTRAL[name]
            if value is not None and value not in neutral:
                raise UnsupportedParameterError(
                    public={"field": name, "expected": " or ".join(["null", *(json.dumps(each) for each in neutral)])}
                )
        elif name not in _HARMLESS:
            raise unknown_field(name, sorted([*ChatRequest.model_fields, *_HARMLESS, *_NEUTRAL]))
    if chat.max_tokens is not None and chat.max_completion_tokens not in (None, chat.max_tokens):
        raise InvalidFieldError(
            public={"field": "max_tokens", "expected": "the same as max_completion_tokens, or null"}
        )
    if chat.random_seed is not None and chat.seed not in (None, chat.random_seed):
        raise InvalidFieldError(public={"field": "random_seed", "expected": "the same as seed, or null"})
    if chat.stream_options is not None and not chat.stream:
        raise InvalidFieldError(public={"field": "stream_options", "expected": "null, unless stream is true"})
    if chat.join_pages and chat.stream:
        raise InvalidFieldError(public={"field": "join_pages", "expected": "null, unless stream is false"})
    _check_logprobs(chat)


def _check_logprobs(chat: ChatRequest) -> None:
    if chat.top_logprobs and not chat.logprobs:
        raise InvalidFieldError(public={"field": "top_logprobs", "expected": "null, unless logprobs is true"})
    is_changed = chat.arrangement != AS_READ
    if chat.logprobs and (is_changed or chat.model == AUTO):
        expected = "null with table_format, omit, figures, join_pages or the model auto"
        raise UnsupportedParameterError(public={"field": "logprobs", "expected": expected})
    if chat.logprobs and chat.layout is ReadingLayout.LINES:
        # The breaks between lines are the service's, and tokens at the ends of lines are cut.
        raise InvalidFieldError(public={"field": "layout", "expected": "auto or page with logprobs"})


def choose_task(chat: ChatRequest) -> tuple[str, str | None, tuple[ChatWarning, ...]]:
    """What a chat asks for: its `task`, else the last text that names one, else the default.

    Args:
        chat: A request.

    Returns:
        The task, its query, and what to tell the client.
    """
    texts = [
        part.text
        for message in chat.messages
        if not isinstance(message, AssistantMessage)
        for part in message.content
        if isinstance(part, TextPart) and part.text.strip()
    ]
    named = [recognise(text) for text in texts]
    warnings = (PROMPT_IGNORED,) if None in named else ()
    if chat.task is not None:
        return chat.task, chat.query, warnings
    chosen = [each for each in named if each is not None]
    if not chosen:
        return Task.FREE, chat.query, warnings
    return chosen[-1][0], chat.query or chosen[-1][1], warnings


def decode_files(chat: ChatRequest, budget: FileBudget, most_files: int) -> list[bytes]:
    """The files of a chat, in order.

    Args:
        chat: A request.
        budget: Bounds their bytes.
        most_files: Bounds their number.

    Returns:
        At least one file.

    Raises:
        InvalidFieldError: There is none.
        TooManyPagesError: There are too many.
        UnsupportedParameterError: One is named by an id.
    """
    places: list[tuple[str, str, bool]] = []
    for number, message in enumerate(chat.messages):
        if not isinstance(message, UserMessage):
            continue
        for index, part in enumerate(message.content):
            place = f"messages.{number}.content.{index}"
            if isinstance(part, ImagePart):
                places.append((part.image_url.url, f"{place}.image_url.url", False))
            elif isinstance(part, FilePart):
                if part.file is None or part.file.file_data is None:
                    field = f"{place}.file.file_id" if part.file is not None else f"{place}.file_id"
                    expected = "file_data, or a document_url part with a data URL, instead"
                    raise UnsupportedParameterError(public={"field": field, "expected": expected})
                places.append((part.file.file_data, f"{place}.file.file_data", True))
            elif isinstance(part, DocumentPart):
                places.append((part.document_url, f"{place}.document_url", False))
    if not places:
        expected = "an image_url, file or document_url part with a data URL in a user's message"
        raise InvalidFieldError(public={"field": "messages", "expected": expected})
    if len(places) > most_files:
        raise TooManyPagesError(public={"limit": most_files})
    for name in ("pages", "figures"):
        if getattr(chat, name) and len(places) > 1:
            raise InvalidFieldError(public={"field": name, "expected": "null with several files"})
    return [budget.decode(url, field, may_be_bare=bare) for url, field, bare in places]


@dataclass(frozen=True, slots=True)
class _Chat:
    """A request once its files are decoded; the strings that contained them are gone."""

    files: list[bytes]
    ocr_request: OcrRequest
    warnings: tuple[ChatWarning, ...]
    streams: bool
    includes_usage: bool
    stores: bool
    """False if the request has `store: false`."""
    wanted: Arrangement
    top_logprobs: int | None
    """None: no logprobs are wanted."""


async def _receive(request: Request, services: Services) -> _Chat:
    chat = await receive_json(request, services.bounds, ChatRequest)
    check_parameters(chat)
    task, query, warnings = choose_task(chat)
    budget = FileBudget(services.bounds.max_upload_bytes)
    files = await asyncio.to_thread(decode_files, chat, budget, services.bounds.max_frames)
    ocr_request = parse_request(
        data=files[0],
        info=services.engine.info,
        models=services.models,
        limits=services.reader.limits,
        max_new_tokens_cap=services.bounds.max_new_tokens,
        task=task,
        query=query,
        mode=chat.mode,
        model_id=chat.model,
        max_new_tokens=chat.max_completion_tokens or chat.max_tokens,
        pages=chat.pages,
        temperature=chat.temperature,
        seed=chat.random_seed if chat.seed is None else chat.seed,
        blank_pages=chat.blank_pages or services.bounds.blank_pages,
        min_confidence=services.bounds.min_confidence if chat.min_confidence is None else chat.min_confidence,
        confidence=chat.confidence,
        review_threshold=services.bounds.review_threshold if chat.review_threshold is None else chat.review_threshold,
        min_coverage=services.bounds.min_coverage if chat.min_coverage is None else chat.min_coverage,
        orientation=chat.orientation or services.bounds.orientation,
        pages_together=chat.pages_together,
        layout=chat.layout or ReadingLayout.AUTO,
    )
    check_arrangement(chat.arrangement, ocr_request, services.models.tasks(ocr_request.model_id), None)
    top_logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    params = replace(ocr_request.params, num_alternatives=top_logprobs or 0)
    ocr_request = replace(ocr_request, wants_token_scores=bool(chat.logprobs), params=params)
    includes_usage = bool(chat.stream_options and chat.stream_options.include_usage)
    stores = (chat.model_extra or {}).get("store") is not False
    return _Chat(
        files, ocr_request, warnings, bool(chat.stream), includes_usage, stores, chat.arrangement, top_logprobs
    )


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    **problems(404, reads=True, shape=OpenAIProblem),
}


def _openapi() -> dict[str, Any]:
    extra = json_body(ChatRequest)
    schema = extra["requestBody"]["content"]["application/json"]["schema"]
    for name in sorted(_HARMLESS):
        schema["properties"][name] = {"description": "Taken and not used."}
    for name, neutral in _NEUTRAL.items():
        schema["properties"][name] = {"enum": [None, *neutral], "description": "Other values are refused."}
    schema["additionalProperties"] = False
    return extra


@router.post(CHAT_PATH, response_model=ChatAnswer, responses=_RESPONSES, openapi_extra=_openapi())
async def complete_chat(
    request: Request, services: ServicesDep, record: RecordDep, may_store: MayStoreDep
) -> Response | ChatAnswer:
    """Read the images and files of a chat, as clients of OpenAI's and Mistral's APIs send them."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    with services.observer.receiving() as received:
        chat = await _receive(request, services)
        received(sum(map(len, chat.files)))
    deadline = Deadline(services.bounds.deadline_s, services.bounds.document_deadline_s)
    consent = new_consent(may_store and chat.stores, "chatcmpl")
    if chat.streams:
        work = partial(_stream, services, permit, chat, deadline, consent)
        return EventStream(work, error_event=_error_event, record=record)
    return await run_for_client(request, _complete(services, permit, chat, deadline, consent))


async def _complete(
    services: Services, permit: Permit, chat: _Chat, deadline: Deadline, consent: Consent
) -> ChatAnswer:
    document = await read_leased(services, permit, chat.files, chat.ocr_request, deadline, consent)
    arranged = await _arranged(services, chat, document, deadline)
    return ChatAnswer(
        id=consent.answer_id,
        created=int(time.time()),
        model=document.model_id,
        choices=[
            ChatChoice(
                message=ChatMessage(content=arranged.text),
                logprobs=_logprobs(document, chat),
                finish_reason=_finish(document),
            )
        ],
        usage=_usage(document),
        warnings=_warnings(document, chat),
        pages=[to_page_answer(page) for page in arranged.pages],
        joins=to_joins(arranged),
        figures=to_figures(arranged),
    )


async def _arranged(services: Services, chat: _Chat, document: DocumentResult, deadline: Deadline) -> Arranged:
    deadline.renew()
    async with deadline.enforced():
        # Figures are of one file.
        return await arrange(document, chat.wanted, chat.files[0], services.reader)


def _logprobs(document: DocumentResult, chat: _Chat) -> ChatLogprobs | None:
    if chat.top_logprobs is None:
        return None
    content = []
    for piece in document_pieces(document.pages, chat.ocr_request.task):
        text = well_formed(piece.text)
        token = ChatTopLogprob(token=text, logprob=piece.log_probability, bytes=list(text.encode()))
        tops = _top_logprobs(token, piece) if chat.top_logprobs else []
        content.append(ChatTokenLogprob(**dict(token), top_logprobs=tops))
    return ChatLogprobs(content=content)


def _top_logprobs(token: ChatTopLogprob, piece: Piece) -> list[ChatTopLogprob]:
    """What could have been chosen, the chosen token as the text has it; alone if it is more than one token."""
    if not piece.alternatives:
        return [token]
    logs = [log for _, log in piece.alternatives]
    chosen = logs.index(piece.log_probability) if piece.log_probability in logs else None
    return [
        token if index == chosen else ChatTopLogprob(token=text.decode(errors="replace"), logprob=log, bytes=list(text))
        for index, (text, log) in enumerate(piece.alternatives)
    ]


def _finish(document: DocumentResult) -> Literal["stop", "length"]:
    is_whole = document.finish_reason is FinishReason.STOP and not document.is_partial
    return "stop" if is_whole else "length"


def _warnings(document: DocumentResult, chat: _Chat) -> list[ChatWarning]:
    statuses = {page.status for page in document.pages}
    found = {
        PAGE_FAILED: PageStatus.FAILED in statuses,
        PAGE_UNREADABLE: PageStatus.UNREADABLE in statuses,
        LOW_ACCURACY: any(page.words is not None and page.words.has_low_accuracy for page in document.pages),
        REPETITION: document.finish_reason is FinishReason.REPETITION,
    }
    return [*chat.warnings, *(warning for warning, applies in found.items() if applies)]


def _usage(document: DocumentResult) -> ChatUsage:
    results = document.results
    image, text = sum(each.vision_tokens for each in results), sum(each.prompt_tokens for each in results)
    completion = sum(each.completion_tokens for each in results)
    return ChatUsage(
        prompt_tokens=image + text,
        completion_tokens=completion,
        total_tokens=image + text + completion,
        prompt_tokens_details=PromptTokensDetails(image_tokens=image, text_tokens=text),
    )


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _error_event(error: DeepSynthError, request_id: str) -> bytes:
    return _event(openai_error(error, request_id))


class _Chunks:
    """Emits the chunks of one completion."""

    def __init__(self, emit: Emit, chat: _Chat, answer_id: str) -> None:
        self._emit = emit
        self._common = {"id": answer_id, "object": "chat.completion.chunk", "created": int(time.time())}
        self._includes_usage = chat.includes_usage
        self._has_begun = False

    def name_model(self, model_id: str) -> None:
        self._common["model"] = model_id

    def content(self, text: str) -> None:
        if text or not self._has_begun:
            role = {} if self._has_begun else {"role": "assistant"}
            self._has_begun = True
            self._choice({**role, "content": text}, None)

    def finish(
        self, document: DocumentResult, arranged: Arranged, logprobs: ChatLogprobs | None, warnings: list[ChatWarning]
    ) -> None:
        if not self._has_begun:
            self.content("")
        if logprobs is not None:
            # Of the whole text at once: the engine knows them at a page's end.
            self._choice({}, None, logprobs.model_dump())
        figures = to_figures(arranged)
        extensions: dict[str, Any] = {} if figures is None else {"figures": [each.model_dump() for each in figures]}
        self._choice(
            {},
            _finish(document),
            warnings=[each.model_dump() for each in warnings],
            pages=[to_page_answer(page).model_dump() for page in arranged.pages],
            **extensions,
        )
        if self._includes_usage:
            self._emit(_event({**self._common, "choices": [], "usage": _usage(document).model_dump()}))
        self._emit(b"data: [DONE]\n\n")

    def _choice(
        self,
        delta: dict[str, str],
        finish_reason: str | None,
        logprobs: dict[str, Any] | None = None,
        **extensions: Any,
    ) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._includes_usage else {}
        self._emit(_event({**self._common, "choices": [choice], **usage, **extensions}))


async def _stream(
    services: Services, permit: Permit, chat: _Chat, deadline: Deadline, consent: Consent, emit: Emit
) -> None:
    chunks = _Chunks(emit, chat, consent.answer_id)
    live = LiveText(chat.ocr_request.task, chat.ocr_request.selection, services.engine.info.prompts)

    is_whole = chat.ocr_request.model_id == AUTO or chat.wanted.changes_pages

    def show(text: str) -> None:
        if text:
            chunks.content(text)

    document = await read_leased(
        services,
        permit,
        chat.files,
        chat.ocr_request,
        deadline,
        consent,
        # Text that was sent cannot be taken back when a larger model reads the page again, or when it is arranged.
        on_delta=None if is_whole else lambda page, text: show(live.delta(page, text)),
        on_page=lambda page: show(live.ended(arrange_page(page, chat.wanted))),
        on_model=chunks.name_model,
    )
    arranged = await _arranged(services, chat, document, deadline)
    chunks.finish(document, arranged, _logprobs(document, chat), _warnings(document, chat))
