"""A document that was read, as output formats take it."""

from __future__ import annotations

from dataclasses import dataclass

from service.intake.limits import IntakeLimits
from service.schemas import OcrAnswer
from shared.contract.prompts import Task

_MARKDOWN_TASKS = {Task.MARKDOWN, Task.FIGURE}


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """An answer and where it came from."""

    answer: OcrAnswer
    task: Task
    data: bytes
    """The uploaded file."""
    name: str
    """Its name, safe to show and to store."""
    limits: IntakeLimits

    @property
    def is_joined(self) -> bool:
        """Whether the document's text is one text, in which pages may be joined."""
        return self.answer.joins is not None

    @property
    def is_markdown(self) -> bool:
        """Whether the model was asked for Markdown, which may have HTML tables in it."""
        return self.task in _MARKDOWN_TASKS
