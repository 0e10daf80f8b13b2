"""From what a client asked for to an order the reader can carry out: models, modes and bounds checked."""

from __future__ import annotations

from typing import Protocol

from service.engine.protocol import EngineInfo
from service.errors import InvalidFieldError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import IntakeLimits
from service.intake.selection import parse_pages
from service.ocr.reader import ReadOrder
from service.ocr.sampling import sampling_params
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode


class ModelNames(Protocol):
    """Whoever knows which models are served; `service.adapters.models.ServedModels` does."""

    def check(self, model_id: str | None) -> str:
        """The name to read with, or a `DeepSynthError` that says why there is none."""


def make_order(
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
) -> ReadOrder:
    """Check a wish against what is loaded.

    Args:
        data: The file; its format decides how many pages may be chosen.
        info: The engine.
        models: What may be named.
        limits: Bounds on documents.
        max_new_tokens_cap: Most tokens a page may take.
        task: What to do with the page.
        query: What to look for.
        mode: Resolution mode; None for the model's own.
        model_id: Model to answer; None for the default.
        max_new_tokens: Wanted bound; None for the most.
        pages: Selection such as `1-3,7`; None for all.
        temperature: None for greedy.
        seed: None for one that is drawn.

    Returns:
        The order. A model that is not served is `models`' to refuse.

    Raises:
        InvalidFieldError: The model has no such mode, or a number is out of its range.
    """
    model_id = models.check(model_id)
    if mode is not None and mode not in info.geometry.modes:
        raise InvalidFieldError(public={"field": "mode", "expected": [str(each) for each in info.geometry.modes]})
    cap = min(max_new_tokens_cap, info.max_new_tokens)
    if max_new_tokens is not None and not 1 <= max_new_tokens <= cap:
        raise InvalidFieldError(public={"field": "max_new_tokens", "expected": f"a number from 1 to {cap}"})
    most_pages = limits.max_pdf_pages if detect_format(data) is FileFormat.PDF else limits.max_frames
    return ReadOrder(
        task=task,
        query=query,
        mode=mode or info.geometry.default_mode,
        params=sampling_params(max_new_tokens or cap, temperature, seed),
        model_id=model_id,
        selection=None if pages is None else parse_pages(pages, most_pages),
    )
