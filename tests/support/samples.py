"""Sample folders as a service leaves them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from service.intake.page_copy import CopyTask, copy_page
from service.samples.store import SampleStore
from shared.contract.prompts import Task
from shared.contract.samples import AnswerPage, SampleReading
from tests.support.page_sources import drawn


class SampleFolder:
    """A folder of samples, with a page for each call of `add`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = SampleStore(folder, quota_bytes=10**9, time_to_live=timedelta(days=1))
        self._store.open()

    def add(
        self,
        name: str,
        read: str = "misread",
        correction: str | None = None,
        *,
        task: Task = Task.FREE,
        is_thumbnail: bool = False,
    ) -> str:
        """Keep a page with its name drawn on it; returns its digest."""
        copy = copy_page(drawn(name, mode="RGB"), CopyTask(1, is_thumbnail))
        reading = SampleReading(
            model_id="nano", mode="base", status="ok", text=read, confidence=0.5, finish_reason="stop", timings_ms={},
            read_at="2030-01-01T00:00:00Z",
        )  # fmt: skip
        answer = AnswerPage(id=f"ocr-{name}-{task}", page=1, num_pages=1, task=task)
        self._store.keep(answer, copy, reading, is_thumbnail=is_thumbnail)
        if correction is not None:
            self._store.correct(answer.id, None, correction)
        return copy.sha256
