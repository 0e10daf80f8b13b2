"""Reads one job: those of its pages that have no result yet, in one pass or, after a fault that may pass, in more.

What it finds out about a page is stored at once, so the process may end at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from service.adapters.models import ServedModels
from service.engine.protocol import EngineHandle, EngineState
from service.errors import DeepSynthError, JobInterruptedError, ModelNotFoundError
from service.jobs.job import Job
from service.ocr.cascade import AUTO, Cascade
from service.ocr.outcome import PageStatus
from service.ocr.reader import DocumentReader, PageResult

MAX_PASSES = 3
"""After so many, a page keeps the fault that it met last."""
MAX_FRUITLESS = 3
"""How often the process may end without a page being finished, before it is taken to end because of them."""
PAUSE_S = 1.0
"""Between two looks at an engine that is not ready, and before another pass."""


class Results(Protocol):
    """Where a job's progress is stored; implemented by `service.jobs.manager.JobManager`."""

    async def begin(self, job: Job) -> None:
        """Reading begins or goes on, with this request."""

    async def pause(self, job: Job) -> None:
        """Reading ended before the last page, and the process did not."""

    async def document(self, job: Job) -> bytes:
        """The uploaded file."""

    def save(self, job: Job, page: PageResult) -> asyncio.Future[None]:
        """Store a finished page; done when it is."""


class JobRunner:
    """Reads jobs, each with a call of `run`."""

    def __init__(
        self,
        *,
        reader: DocumentReader,
        models: ServedModels,
        engine: EngineHandle,
        results: Results,
        cascade: Cascade | None = None,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._reader = reader
        self._models = models
        self._engine = engine
        self._results = results
        self._cascade = cascade
        self._sleep = sleep

    async def run(self, job: Job) -> None:
        """Read a job until each of its pages is finished; pages that cannot be read have failed."""
        unread = set(job.unread)
        if not unread:
            # The process ended after the last page was stored.
            return
        if job.num_fruitless >= MAX_FRUITLESS:
            await self._fail(job, unread, JobInterruptedError())
            return
        if job.request.model_id == AUTO and self._cascade is None:
            # The service was started again without a second reader.
            await self._fail(job, unread, ModelNotFoundError())
            return
        for number in range(1, MAX_PASSES + 1):
            while self._engine.state is not EngineState.READY:
                await self._sleep(PAUSE_S)
            try:
                job = await self._read(job, unread, is_last=number == MAX_PASSES)
            except DeepSynthError as error:
                # The file cannot be opened, the model is gone, or every page failed, which is stored by now.
                if not error.retryable or number == MAX_PASSES:
                    await self._fail(job, unread, error)
            if not unread:
                return
            await self._results.pause(job)
            await self._sleep(PAUSE_S * number)

    async def _read(self, job: Job, unread: set[int], *, is_last: bool) -> Job:
        """One pass over the unread pages, which removes those that are finished."""
        stored: list[asyncio.Future[None]] = []

        def finish(page: PageResult) -> None:
            if page.error is None or not page.error.retryable or is_last:
                unread.remove(page.page)
                stored.append(self._results.save(job, page))

        cascade = self._cascade if job.request.model_id == AUTO else None
        try:
            async with self._models.lease(job.request.model_id) as lease:
                if cascade is None:
                    # From now on this version, also after a restart.
                    job = replace(job, request=replace(job.request, model_id=lease.model_id))
                await self._results.begin(job)
                data = await self._results.document(job)
                request = replace(job.request, model_id=lease.model_id, selection=tuple(sorted(unread)))
                # Pages to be read again are stored after that: until then, a restart reads them from the beginning.
                sink = finish if cascade is None else cascade.settled(finish)
                document = await self._reader.read(data, request, None, on_page=sink)
                lease.finished(result.finish_reason for result in document.results)
            if cascade is not None:
                # Jobs are not kept as samples, and have no deadline.
                await cascade.read_again(document, [data], request, None, None, finish, may_store=False)
        finally:
            # Also when this is cancelled: what is on its way to the disk is not waited for twice.
            if stored:
                await asyncio.gather(*stored)
        return job

    async def _fail(self, job: Job, unread: set[int], error: DeepSynthError) -> None:
        pages: Sequence[int] = sorted(unread)
        unread.clear()
        for page in pages:
            await self._results.save(job, PageResult(page, PageStatus.FAILED, error=error))
