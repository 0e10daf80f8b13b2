"""What a client asks for, checked against the loaded model: models, modes and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from service.engine.protocol import TOGETHER_MODE, EngineInfo, SamplingParams
from service.errors import InvalidFieldError, PagesTogetherError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import IntakeLimits
from service.intake.selection import parse_pages
from service.ocr.confidence import Granularity, Wanted
from service.ocr.outcome import MIN_CONFIDENCE, MIN_COVERAGE, BlankPages, Orientation
from service.ocr.sampling import sampling_params
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import LINE_TASKS, ReadingLayout

QUERY_EXPECTED = "text to look for with the task locate, and only with it"
_Choice = TypeVar("_Choice", Task, Mode)


@dataclass(frozen=True, slots=True)
class OcrRequest:
    """How to read a document; every field has been checked."""

    task: Task
    query: str | None
    mode: Mode
    params: SamplingParams
    model_id: str
    selection: tuple[int, ...] | None
    """Page numbers from 1; None for all pages."""
    reads_blank_pages: bool = False
    """Whether pages without print are read too, and every answer is given as it is."""
    min_confidence: float = MIN_CONFIDENCE
    """Below it, an answer for a page with little print counts as unreadable; 0 to 1."""
    confidence: Wanted = field(default_factory=Wanted)
    min_coverage: float = MIN_COVERAGE
    """Below it, a page counts as partly read; 0 to 1."""
    finds_turned_pages: bool = True
    """Whether pages that are not upright are turned."""
    wants_token_scores: bool = False
    """Whether each token's probability is needed, whatever confidences are given."""
    pages_together: bool = False
    """Whether the model reads all pages in one pass."""
    layout: ReadingLayout = ReadingLayout.AUTO
    is_limited: bool = True
    """Whether the client gave the maximum of tokens, which is the page's then, by whatever canvases it is read."""


class ModelNames(Protocol):
    """Knows which models are served; implemented by `service.adapters.models.ServedModels`."""

    def check(self, model_id: str | None) -> str:
        """The name of the model to use; a `DeepSynthError` if it is not served."""

    def tasks(self, model_id: str) -> tuple[Task, ...]:
        """What a model can do, by the name that `check` gave."""


def parse_request(
    *,
    data: bytes,
    info: EngineInfo,
    models: ModelNames,
    limits: IntakeLimits,
    max_new_tokens_cap: int,
    task: str = Task.FREE,
    query: str | None = None,
    mode: str | None = None,
    model_id: str | None = None,
    max_new_tokens: int | None = None,
    pages: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    blank_pages: BlankPages = BlankPages.SKIP,
    min_confidence: float = MIN_CONFIDENCE,
    confidence: Granularity | None = None,
    review_threshold: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    orientation: Orientation = Orientation.AUTO,
    pages_together: bool = False,
    layout: ReadingLayout = ReadingLayout.AUTO,
) -> OcrRequest:
    """Check a request against the loaded model.

    Args:
        data: The file; its format decides how many pages may be selected.
        info: The loaded engine.
        models: The served models.
        limits: Bounds on documents.
        max_new_tokens_cap: Maximum tokens per page.
        task: What to do with each page; checked here, so that every refusal lists what this model can do.
        query: What to look for, with the task `locate`.
        mode: Resolution; None for the model's default.
        model_id: None for the default model.
        max_new_tokens: None for the maximum.
        pages: Selection such as `1-3,7`; None for all.
        temperature: None for greedy.
        seed: None for a random one.
        blank_pages: Whether the model reads pages that show no print.
        min_confidence: Below it, an answer for a page with little print is not given.
        confidence: How finely confidences are given; None for pages alone.
        review_threshold: Words with a lower confidence are listed; None for no list.
        min_coverage: Share of a page's print; a text that accounts for less gets a warning.
        orientation: Whether pages that are not upright are turned.
        pages_together: Whether the model is to read all pages in one pass.
        layout: Whether pages are read as a whole or by their lines.

    Returns:
        The request. Errors of `models.check` pass through.

    Raises:
        InvalidFieldError: The model has no such task or mode, the query does not fit the task, or a number is out of
            its range.
        PagesTogetherError: The model reads each page alone.
    """
    model_id = models.check(model_id)
    chosen_task = _one_of("task", task, models.tasks(model_id))
    chosen_mode = _mode(mode, info, is_together=pages_together)
    try:
        prompt_for(chosen_task, query, info.prompts)
    except ValueError as error:
        raise InvalidFieldError(public={"field": "query", "expected": QUERY_EXPECTED}) from error
    cap = min(max_new_tokens_cap, info.max_new_tokens)
    if max_new_tokens is not None and not 1 <= max_new_tokens <= cap:
        raise InvalidFieldError(public={"field": "max_new_tokens", "expected": f"a number from 1 to {cap}"})
    most_pages = limits.max_pdf_pages if detect_format(data) is FileFormat.PDF else limits.max_frames
    return OcrRequest(
        task=chosen_task,
        query=query,
        mode=chosen_mode,
        params=sampling_params(max_new_tokens or cap, temperature, seed),
        model_id=model_id,
        selection=None if pages is None else parse_pages(pages, most_pages),
        reads_blank_pages=blank_pages is BlankPages.READ,
        min_confidence=min_confidence,
        confidence=Wanted(confidence or Granularity.PAGE, review_threshold),
        min_coverage=min_coverage,
        finds_turned_pages=orientation is Orientation.AUTO,
        pages_together=pages_together,
        layout=_layout(layout, info, chosen_task, is_together=pages_together),
        is_limited=max_new_tokens is not None,
    )


def _layout(layout: ReadingLayout, info: EngineInfo, task: Task, *, is_together: bool) -> ReadingLayout:
    """The layout of a request; pages read together, and tasks that do not write a page's text, take pages whole."""
    is_possible = task in LINE_TASKS and not is_together
    if layout is ReadingLayout.LINES and not (info.geometry.reads_lines and is_possible):
        wanted = [str(each) for each in (ReadingLayout.AUTO, ReadingLayout.PAGE)]
        raise InvalidFieldError(public={"field": "layout", "expected": wanted})
    return layout if is_possible else ReadingLayout.PAGE


def _mode(mode: str | None, info: EngineInfo, *, is_together: bool) -> Mode:
    """The mode of a request; the model's own where it names none."""
    if not is_together:
        return info.geometry.default_mode if mode is None else _one_of("mode", mode, info.geometry.modes)
    if not info.reads_pages_together:
        raise PagesTogetherError
    if mode not in (None, TOGETHER_MODE):
        raise InvalidFieldError(public={"field": "mode", "expected": f"{TOGETHER_MODE}, with pages_together"})
    return TOGETHER_MODE


def _one_of(field: str, value: str, choices: Sequence[_Choice]) -> _Choice:
    for choice in choices:
        if choice == value:
            return choice
    raise InvalidFieldError(public={"field": field, "expected": [str(choice) for choice in choices]})
