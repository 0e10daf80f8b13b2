from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from service.engine.protocol import EngineState, SamplingParams
from service.errors import DecodeKilledError, DeepSynthError, EngineLostError, ModelNotFoundError, UndecodableError
from service.jobs.job import Job, JobState
from service.jobs.runner import MAX_PASSES, JobRunner
from service.ocr.outcome import PageStatus
from service.ocr.reader import DocumentResult, PageResult, PageSink
from service.ocr.request import OcrRequest
from shared.contract.answer import FinishReason
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode

REQUEST = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(10), "invoices", None)
JOB = Job("a", None, JobState.WAITING, "a.pdf", REQUEST, None, 0.1, 1.0, None, None, None, 0, None, {})


@dataclass
class Bench:
    """A reader, models, an engine and a store of results, all of them told what to do."""

    faults: dict[int, list[DeepSynthError]] = field(default_factory=dict)
    """What a page meets, attempt by attempt."""
    opening: list[DeepSynthError] = field(default_factory=list)
    """What opening the file meets, attempt by attempt."""
    served: str = "invoices@2"
    state: EngineState = EngineState.READY
    asked: list[OcrRequest] = field(default_factory=list)
    begun: list[Job] = field(default_factory=list)
    saved: list[PageResult] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    num_paused: int = 0

    @contextlib.asynccontextmanager
    async def lease(self, model_id: str) -> AsyncIterator[Any]:
        if model_id not in ("invoices", self.served):
            raise ModelNotFoundError

        class Lease:
            model_id = self.served

            def finished(self, reasons: Iterable[FinishReason]) -> None:
                assert list(reasons) == []

        yield Lease()

    async def read(self, data: bytes, request: OcrRequest, permit: None, *, on_page: PageSink) -> DocumentResult:
        self.asked.append(request)
        if self.opening:
            raise self.opening.pop(0)
        pages = []
        for page in request.selection or ():
            faults = self.faults.get(page, [])
            error = faults.pop(0) if faults else None
            pages.append(PageResult(page, PageStatus.BLANK if error is None else PageStatus.FAILED, error=error))
            on_page(pages[-1])
        errors = [page.error for page in pages if page.error is not None]
        if len(errors) == len(pages):
            raise errors[0]
        return DocumentResult(request.model_id, pages)

    async def begin(self, job: Job) -> None:
        self.begun.append(job)

    async def pause(self, job: Job) -> None:
        self.num_paused += 1

    async def document(self, job: Job) -> bytes:
        return b""

    def save(self, job: Job, page: PageResult) -> asyncio.Future[None]:
        self.saved.append(page)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.state = EngineState.READY

    async def run(self, **changes: Any) -> dict[int, str]:
        """Outcomes by page: `ok`, or the code of an error."""
        statuses = changes.pop("statuses", dict.fromkeys((1, 2, 3)))
        runner = JobRunner(reader=self, models=self, engine=self, results=self, sleep=self.sleep)
        await runner.run(replace(JOB, statuses=statuses, **changes))
        assert len({page.page for page in self.saved}) == len(self.saved)
        return {page.page: "ok" if page.error is None else page.error.code for page in self.saved}


async def test_unread_pages_alone_are_read_with_the_version_of_the_start() -> None:
    it = Bench()
    assert await it.run(statuses={1: PageStatus.OK, 2: None, 5: None}) == {2: "ok", 5: "ok"}
    assert [job.request.model_id for job in it.begun] == ["invoices@2"]
    assert [(request.selection, request.model_id) for request in it.asked] == [((2, 5), "invoices@2")]


async def test_version_that_is_gone_after_a_restart_is_not_replaced_by_another() -> None:
    it = Bench(served="invoices@3")
    stored = replace(REQUEST, model_id="invoices@2")
    assert await it.run(request=stored, statuses={1: PageStatus.OK, 2: None}) == {2: "model_not_found"}
    assert not it.asked


async def test_page_that_meets_a_passing_fault_is_read_again() -> None:
    it = Bench(faults={2: [EngineLostError(), EngineLostError()], 3: [UndecodableError()]})
    assert await it.run() == {1: "ok", 2: "ok", 3: "undecodable_file"}
    assert [request.selection for request in it.asked] == [(1, 2, 3), (2,), (2,)]
    # Otherwise a fault of the engine would count as an end of the process.
    assert it.num_paused == 2


async def test_fault_that_does_not_pass_is_the_pages_outcome() -> None:
    it = Bench(faults={2: [EngineLostError() for _ in range(10)]})
    assert await it.run() == {1: "ok", 3: "ok", 2: "engine_lost"}
    assert len(it.asked) == MAX_PASSES


async def test_file_that_cannot_be_opened_is_tried_again_where_that_may_help() -> None:
    assert await Bench(opening=[DecodeKilledError()]).run() == {1: "ok", 2: "ok", 3: "ok"}
    it = Bench(opening=[UndecodableError()])
    assert set((await it.run()).values()) == {"undecodable_file"}
    assert len(it.asked) == 1


async def test_reading_waits_for_the_engine() -> None:
    it = Bench(state=EngineState.LOADING)
    assert await it.run() == {1: "ok", 2: "ok", 3: "ok"}
    assert len(it.pauses) == 1


async def test_pages_that_end_the_process_each_time_are_given_up() -> None:
    it = Bench()
    assert set((await it.run(num_fruitless=3)).values()) == {"job_interrupted"}
    assert not it.asked


async def test_nothing_is_read_where_only_the_end_was_not_stored() -> None:
    it = Bench()
    assert await it.run(statuses={1: PageStatus.OK}, num_fruitless=3) == {}
    assert not it.asked
