"""What a client asks for, checked against the loaded model: models, modes and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.engine.protocol import TOGETHER_MODE, EngineInfo, SamplingParams
from service.errors import InvalidFieldError, PagesTogetherError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import IntakeLimits
from service.intake.selection import parse_pages
from service.ocr.outcome import MIN_CONFIDENCE, BlankPages
from service.ocr.sampling import sampling_params
from shared.contract.prompts import Task, tasks_of
from shared.deepseek_ocr.geometry import Mode


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
    pages_together: bool = False
    """Whether the model reads all pages in one pass."""


class ModelNames(Protocol):
    """Knows which models are served; implemented by `service.adapters.models.ServedModels`."""

    def check(self, model_id: str | None) -> str:
        """The name of the model to use; a `DeepSynthError` if it is not served."""


def parse_request(
    *,
    data: bytes,
    info: EngineInfo,
    models: ModelNames,
    limits: IntakeLimits,
    max_new_tokens_cap: int,
    task: Task = Task.FREE,
    query: str | None = None,
    mode: Mode | None = None,
    model_id: str | None = None,
    max_new_tokens: int | None = None,
    pages: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    blank_pages: BlankPages = BlankPages.SKIP,
    min_confidence: float = MIN_CONFIDENCE,
    pages_together: bool = False,
) -> OcrRequest:
    """Check a request against the loaded model.

    Args:
        data: The file; its format decides how many pages may be selected.
        info: The loaded engine.
        models: The served models.
        limits: Bounds on documents.
        max_new_tokens_cap: Maximum tokens per page.
        task: What to do with each page.
        query: What to look for, with the task `locate`.
        mode: Resolution; None for the model's default.
        model_id: None for the default model.
        max_new_tokens: None for the maximum.
        pages: Selection such as `1-3,7`; None for all.
        temperature: None for greedy.
        seed: None for a random one.
        blank_pages: Whether the model reads pages that show no print.
        min_confidence: Below it, an answer for a page with little print is not given.
        pages_together: Whether the model is to read all pages in one pass.

    Returns:
        The request. Errors of `models.check` pass through.

    Raises:
        InvalidFieldError: The model has no such task or mode, or a number is out of its range.
        PagesTogetherError: The model reads each page alone.
    """
    model_id = models.check(model_id)
    if task not in tasks_of(info.prompts):
        raise InvalidFieldError(public={"field": "task", "expected": [str(each) for each in tasks_of(info.prompts)]})
    if pages_together:
        if not info.reads_pages_together:
            raise PagesTogetherError
        if mode not in (None, TOGETHER_MODE):
            raise InvalidFieldError(public={"field": "mode", "expected": f"{TOGETHER_MODE}, with pages_together"})
        mode = TOGETHER_MODE
    if mode is not None and mode not in info.geometry.modes:
        raise InvalidFieldError(public={"field": "mode", "expected": [str(each) for each in info.geometry.modes]})
    cap = min(max_new_tokens_cap, info.max_new_tokens)
    if max_new_tokens is not None and not 1 <= max_new_tokens <= cap:
        raise InvalidFieldError(public={"field": "max_new_tokens", "expected": f"a number from 1 to {cap}"})
    most_pages = limits.max_pdf_pages if detect_format(data) is FileFormat.PDF else limits.max_frames
    return OcrRequest(
        task=task,
        query=query,
        mode=mode or info.geometry.default_mode,
        params=sampling_params(max_new_tokens or cap, temperature, seed),
        model_id=model_id,
        selection=None if pages is None else parse_pages(pages, most_pages),
        reads_blank_pages=blank_pages is BlankPages.READ,
        min_confidence=min_confidence,
        pages_together=pages_together,
    )
