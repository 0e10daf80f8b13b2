"""Jobs as the rest of the service sees them: submitted, looked at, erased.

Builds and connects the parts of this package. Runs on the event loop; the store has one thread of its own, which does
one thing after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from service.adapters.models import ServedModels
from service.admission.gate import Gate
from service.admission.slots import SharedSlots
from service.engine.protocol import EngineHandle
from service.errors import InternalError, InvalidFieldError, JobNotFoundError, NotReadyError
from service.intake.document import Document
from service.intake.limits import IntakeLimits
from service.jobs.job import Job, JobState, NewJob
from service.jobs.metrics import JobObserver
from service.jobs.runner import JobRunner
from service.jobs.store import JobStore
from service.jobs.webhook import WebhookSender
from service.ocr.arrangement import AS_READ, Arrangement, FigureCutter
from service.ocr.cascade import Cascade
from service.ocr.metrics import TelemetryObserver
from service.ocr.reader import DocumentReader, DocumentResult, PageResult, PageSource
from service.ocr.request import OcrRequest

MAX_RUNNING = 2
"""Jobs at the same time, so that a short one does not wait for the end of a long one."""
MAX_SWEEP_S = 60.0
"""Most seconds between two looks for jobs whose time is over."""
FAULT_PAUSE_S = 10.0
"""After a fault of the disk, or of this package."""
WEBHOOKS_AT_ONCE = 8

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Settings of jobs."""

    folder: Path
    limits: IntakeLimits
    num_slots: int
    """Pages in work at once, over all jobs."""
    ttl_s: float
    """How long a job is kept after its end."""
    max_unfinished: int
    max_bytes: int
    deadline_s: float
    """How long pages in work may take once the process is being stopped."""
    owner_header: str | None
    """A header that tells clients apart; None: their keys do."""
    webhook_origins: frozenset[str] = frozenset()
    webhook_secret: bytes = b""


class JobManager:
    """The jobs of one service.

    Args:
        options: Settings.
        source: Turns files into pages.
        engine: Reads pages.
        models: The served models.
        gate: Of the requests; jobs take a share of its page slots, and end when it drains.
        reading: Counts pages and times of reading.
        observer: Counts jobs.
        cascade: Reads doubtful pages of jobs for the model `auto` again; None without a second reader.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        options: JobOptions,
        *,
        source: PageSource,
        engine: EngineHandle,
        models: ServedModels,
        gate: Gate,
        reading: TelemetryObserver,
        observer: JobObserver,
        cascade: Cascade | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self._source = source
        self._gate = gate
        self._observer = observer
        self._clock = clock
        self._store = JobStore(options.folder, max_unfinished=options.max_unfinished, max_bytes=options.max_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._slots = SharedSlots(gate.page_slots, options.num_slots)
        reader = DocumentReader(
            source=source, engine=engine, gate=gate, limits=options.limits, observer=reading, slots=self._slots
        )
        self.cutter: FigureCutter = reader
        self._runner = JobRunner(reader=reader, models=models, engine=engine, results=self, cascade=cascade)
        self._webhooks = WebhookSender(
            origins=options.webhook_origins,
            secret=options.webhook_secret,
            ttl_s=options.ttl_s,
            observer=observer,
            clock=clock,
        )
        self._is_open = False
        self._running: dict[str, asyncio.Task[None]] = {}
        self._work_changed = asyncio.Event()
        self._webhooks_changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the folder; a `ConfigurationError` says why it cannot be used."""
        await self._call(self._store.open)
        self._is_open = True
        await self._show()

    def start(self) -> None:
        """Go on with jobs that were interrupted, then read those that wait; call it once pages can be read."""
        self._stopping = asyncio.create_task(self._stop_when_draining(), name="jobs-stop")
        for name, loop in (
            ("jobs-schedule", self._schedule),
            ("jobs-sweep", self._sweep),
            ("jobs-webhooks", self._send_webhooks),
        ):
            self._loops.append(asyncio.create_task(self._repeated(loop), name=name))

    async def stop(self) -> None:
        """Let pages in work be finished, for a while, and close the folder; the rest is read after a restart."""
        self._slots.close()
        if self._stopping is not None:
            if not self._gate.is_draining:
                # The app was broken off, without a signal.
                self._stopping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._stopping
        await _cancel(self._loops)
        await _cancel(list(self._running.values()))
        await self._webhooks.close()
        await self._call(self._store.close)
        self._thread.shutdown()

    async def _stop_when_draining(self) -> None:
        """Begin no further page once requests are rejected; those in work have as long as requests have."""
        await self._gate.until_draining()
        self._slots.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.deadline_s):
                await self._slots.until_unused()

    @property
    def is_reading(self) -> bool:
        """Whether a job is being read."""
        return bool(self._running)

    async def check_room(self, owner: str | None) -> None:
        """Check that a job may be submitted, before its document is received; raises what `submit` does."""
        self._require_open()
        await self._call(self._store.check_room, owner)

    def check_webhook(self, url: str) -> None:
        """Check an address; a `WebhookNotAllowedError` if no message may go there."""
        self._webhooks.check(url)

    async def submit(
        self,
        data: bytes,
        request: OcrRequest,
        *,
        owner: str | None,
        name: str,
        format_name: str | None,
        receive_s: float,
        webhook_url: str | None,
        wanted: Arrangement = AS_READ,
    ) -> Job:
        """Open a document, so that one that cannot be read is refused at once, and store it.

        Args:
            data: The file.
            request: A checked request.
            owner: Who may look at it; None: who knows its id.
            name: The file's.
            format_name: Output format of its result.
            receive_s: How long the upload took.
            webhook_url: A checked address.
            wanted: How the text is wanted; checked.

        Returns:
            The job. A `DeepSynthError` says why there is none.
        """
        document = Document(data, self.options.limits, request.selection)
        try:
            pages = (await self._source.open(document)).pages
        finally:
            self._source.close(document)
        job = NewJob(
            id=f"job-{secrets.token_hex(16)}",
            owner=owner,
            name=name,
            request=request,
            pages=pages,
            format_name=format_name,
            receive_s=receive_s,
            created_s=self._clock(),
            webhook_url=webhook_url,
            wanted=wanted,
        )
        await self._call(self._store.add, job, data)
        self._observer.accepted(job.id, len(pages), len(data))
        self._work_changed.set()
        await self._show()
        return await self.find(job.id, owner)

    async def find(self, job_id: str, owner: str | None) -> Job:
        """A job.

        Args:
            job_id: Its id.
            owner: Who asks.

        Returns:
            The job.

        Raises:
            JobNotFoundError: There is none, its time is over, or it is someone else's.
        """
        self._require_open()
        job = await self._call(self._store.find, job_id)
        if job is None or job.owner not in (None, owner) or self._is_over(job):
            raise JobNotFoundError
        return job

    async def listed(self, owner: str, limit: int, before: str | None) -> list[Job]:
        """Jobs of one owner, newest first; with `before`, those that were submitted before that one.

        Args:
            owner: Who asks.
            limit: Maximum number of jobs.
            before: Id of a job.

        Returns:
            The jobs.

        Raises:
            InvalidFieldError: There is no such job.
        """
        self._require_open()
        if before is not None:
            try:
                await self.find(before, owner)
            except JobNotFoundError as error:
                raise InvalidFieldError(public={"field": "before", "expected": "the id of a job"}) from error
        jobs = await self._call(self._store.listed, owner, limit, before)
        return [job for job in jobs if not self._is_over(job)]

    async def result(self, job: Job) -> DocumentResult:
        """The pages that are finished. Raises the error of a job that failed."""
        if job.error is not None:
            raise job.error
        pages = await self._call(self._store.results, job.id)
        return DocumentResult(job.request.model_id, pages, job.request.params.seed)

    async def document(self, job: Job) -> bytes:
        """The uploaded file."""
        try:
            return await self._call(self._store.document, job.id)
        except FileNotFoundError as error:
            raise InternalError("the document of a job is missing") from error

    async def erase(self, job: Job, reason: str = "asked to") -> None:
        """Stop reading a job, and erase its document and its results."""
        await self._cancel(job.id)
        await self._call(self._store.erase, job.id)
        # It may have been chosen for reading in the meantime.
        await self._cancel(job.id)
        self._observer.erased(job.id, reason, is_cancelled=not job.has_ended)
        self._work_changed.set()
        await self._show()

    async def begin(self, job: Job) -> None:
        """Store that reading begins or goes on."""
        self._observer.begun(job)
        await self._call(self._store.begin, job, self._clock())
        await self._show()

    async def pause(self, job: Job) -> None:
        """Store that reading ended before the last page, and the process did not."""
        await self._call(self._store.pause, job.id)

    def save(self, job: Job, page: PageResult) -> asyncio.Future[None]:
        """Store a finished page, after those that came before it."""

        async def save() -> None:
            with self._observer.persisting():
                await stored
            self._observer.page_finished(page.status)

        # Handed over at once: a task would do so later, in an order of its own.
        stored = asyncio.get_running_loop().run_in_executor(self._thread, self._store.save_page, job.id, page)
        return asyncio.ensure_future(save())

    async def _repeated(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A loop of this class, begun again after a fault, which is logged."""
        while True:
            try:
                await loop()
            except Exception:  # noqa: BLE001 -- logged; the other jobs go on
                _log.exception("jobs: fault in the background")
            await asyncio.sleep(FAULT_PAUSE_S)

    async def _schedule(self) -> None:
        while True:
            self._work_changed.clear()
            while len(self._running) < min(MAX_RUNNING, self.options.num_slots):
                job = await self._call(self._store.next_to_read, frozenset(self._running))
                if job is None:
                    break
                self._start(job)
            await self._work_changed.wait()

    def _start(self, job: Job) -> None:
        def ended(_: asyncio.Task[None]) -> None:
            del self._running[job.id]
            self._work_changed.set()

        self._running[job.id] = asyncio.create_task(self._run(job), name=job.id)
        self._running[job.id].add_done_callback(ended)

    async def _run(self, job: Job) -> None:
        try:
            with self._observer.reading(job):
                await self._runner.run(job)
                await self._finish(job)
        except asyncio.CancelledError:
            await self.pause(job)
            raise
        except Exception as error:  # noqa: BLE001 -- logged; the other jobs go on
            _log.exception("jobs: a job could not go on, and will be tried again", extra={"fields": {"job": job.id}})
            if isinstance(error, (OSError, sqlite3.Error)):
                # A full disk, most likely, which is not the fault of the job.
                with contextlib.suppress(OSError, sqlite3.Error):
                    await self.pause(job)
            await asyncio.sleep(FAULT_PAUSE_S)

    async def _finish(self, job: Job) -> None:
        pages = await self._call(self._store.results, job.id)
        errors = [page.error for page in pages if page.error is not None]
        has_failed = len(errors) == len(pages)
        state, error = (JobState.FAILED, errors[0]) if has_failed else (JobState.DONE, None)
        now_s = self._clock()
        await self._call(self._store.end, job.id, state, error, now_s)
        self._observer.ended(job, state, now_s)
        self._webhooks_changed.set()
        await self._show()

    async def _sweep(self) -> None:
        while True:
            for job_id in await self._call(self._store.ended_before, self._clock() - self.options.ttl_s):
                job = await self._call(self._store.find, job_id)
                if job is not None:
                    await self.erase(job, "time to live")
            await asyncio.sleep(min(self.options.ttl_s, MAX_SWEEP_S))

    async def _send_webhooks(self) -> None:
        while True:
            self._webhooks_changed.clear()
            due = await self._call(self._store.webhooks_due, self._clock(), WEBHOOKS_AT_ONCE)
            if due:
                await asyncio.gather(*(self._send_webhook(job) for job in due))
                continue
            next_s = await self._call(self._store.next_webhook_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if next_s is None else max(next_s - self._clock(), 0)):
                    await self._webhooks_changed.wait()

    async def _send_webhook(self, job: Job) -> None:
        with self._observer.sending():
            status, due_s = await self._webhooks.send(job)
        await self._call(self._store.note_webhook, job.id, status, due_s)

    async def _cancel(self, job_id: str) -> None:
        task = self._running.get(job_id)
        if task is not None:
            await _cancel([task])

    def _is_over(self, job: Job) -> bool:
        return job.ended_s is not None and job.ended_s + self.options.ttl_s < self._clock()

    def _require_open(self) -> None:
        if not self._is_open:
            raise NotReadyError

    async def _show(self) -> None:
        self._observer.kept(await self._call(self._store.counts))

    async def _call(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Use the store in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
