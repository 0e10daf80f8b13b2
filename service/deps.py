"""What routes depend on: the services that the app's lifespan built, and whether they are ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from service.access.access import Access
from service.adapters.manager import AdapterManager
from service.adapters.models import ServedModels
from service.admission.gate import Gate
from service.admission.request import RequestRecord, record_of
from service.engine.protocol import EngineHandle, EngineState
from service.errors import DrainingError, NotReadyError, whole_seconds
from service.intake.pool import ImagePool
from service.jobs.manager import JobManager
from service.monitor import Monitor
from service.ocr.cascade import Cascade
from service.ocr.formats.output_format import PdfMaker
from service.ocr.metrics import TelemetryObserver
from service.ocr.outcome import BlankPages, Orientation
from service.ocr.reader import DocumentReader
from service.samples.keeper import SampleKeeper
from service.telemetry.exposition import Exposition
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """Limits of one request, from the settings."""

    max_upload_bytes: int
    body_idle_s: float
    body_total_s: float
    deadline_s: float
    document_deadline_s: float | None
    max_new_tokens: int
    max_frames: int
    max_pdf_pages: int
    blank_pages: BlankPages
    """What a request that does not say gets; so with the settings below."""
    min_confidence: float
    review_threshold: float | None
    """None: words are not reviewed unless a request asks for it."""
    min_coverage: float
    orientation: Orientation


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a route may use; built once, before the first request."""

    engine: EngineHandle
    models: ServedModels
    adapters: AdapterManager | None
    """None if adapters are not served."""
    access: Access
    jobs: JobManager | None
    """None if this service takes no jobs."""
    gate: Gate
    reader: DocumentReader
    pdf_maker: PdfMaker
    images: ImagePool
    cascade: Cascade | None
    """None if there is no second reader."""
    samples: SampleKeeper | None
    """None if no pages are kept."""
    metrics: Metrics
    monitor: Monitor
    exposition: Exposition
    observer: TelemetryObserver
    bounds: RequestBounds
    has_started: Callable[[], bool]
    """Whether the start has completed, checks included."""
    created_s: int
    """When they were built, in seconds since 1970."""


class LifespanState(TypedDict):
    """The lifespan's state, which Starlette copies to every request."""

    services: Services


# Async although they await nothing: FastAPI runs other functions in a thread.
async def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


async def _record(request: Request) -> RequestRecord:
    return record_of(request.scope)


ServicesDep = Annotated[Services, Depends(_services)]
RecordDep = Annotated[RequestRecord, Depends(_record)]


async def require_ready(services: ServicesDep) -> None:
    """Let requests through only if the engine can read pages; raises `DrainingError` or `NotReadyError`."""
    if services.gate.is_draining:
        raise DrainingError
    if not services.has_started() or services.engine.state is not EngineState.READY:
        raise NotReadyError(retry_after_s=whole_seconds(services.engine.life.ready_in_s))
