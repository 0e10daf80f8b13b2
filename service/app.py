"""The composition root: builds every part from the settings, in order, and shuts them down in reverse.

The engine loads while the app already runs: `/livez` answers at once, `/readyz` only when pages can be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import httpx
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Tracer
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.exceptions import HTTPException

from service.access.access import Access
from service.access.key import Key, Scope, digest_of
from service.access.key_ring import KeyRing
from service.access.limits import KeyLimits, WrongKeys
from service.adapters.base_revision import base_revisions
from service.adapters.manager import AdapterManager, AdapterOptions
from service.adapters.metrics import AdapterObserver
from service.adapters.models import ServedModels
from service.adapters.rollback import RollbackRule
from service.admission.gate import Gate
from service.config import EngineKind, SampleImages, ServiceSettings
from service.deps import LifespanState, RequestBounds, Services
from service.engine.config import EngineLimits
from service.engine.protocol import EngineHandle
from service.engine.resolve import choose_source
from service.errors import ConfigurationError, DeepSynthError
from service.intake.pool import ImagePool
from service.jobs.manager import JobManager, JobOptions
from service.jobs.metrics import JobObserver
from service.jobs.origins import parse_origins, parse_secret
from service.monitor import Monitor
from service.ocr.cascade import AUTO, Cascade, RemoteReader
from service.ocr.metrics import TelemetryObserver
from service.ocr.reader import DocumentReader
from service.reader_parts import batch_size, build_engine, build_gate, build_limits, build_pool
from service.routes import (
    adapters,
    chat,
    document_intelligence,
    external_loader,
    health,
    jobs,
    mistral,
    models,
    ocr,
    playground,
    preview,
    samples,
)
from service.routes.middleware import RequestContextMiddleware
from service.routes.ports import AdminPort
from service.routes.problems import on_http_exception, on_known_error, problem_response
from service.routes.second_reader import LocalReader
from service.samples.keeper import SampleKeeper
from service.samples.metrics import SampleObserver
from service.samples.store import SampleStore
from service.telemetry.disk import DiskGauges
from service.telemetry.exposition import Exposition
from service.telemetry.links import LoadSpans
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import UNTRACED, Tracing

logger = logging.getLogger(__name__)

CASCADE_CONNECT_S = 5.0
SAMPLE_NICENESS = 10
"""Of the process that copies pages for samples; requests go first."""
API_KEY_NAME, ADMIN_KEY_NAME = "api-key", "admin-key"
"""What logs and metrics call the keys of the settings."""
Notice = Callable[[], None]


def version() -> str:
    """Version of the installed project; `0` in a checkout that is not installed."""
    try:
        return importlib.metadata.version("deepsynth-ocr")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def build_adapters(settings: ServiceSettings, engine: EngineHandle, observer: AdapterObserver) -> AdapterManager | None:
    """The adapters, not started yet; None without an adapter volume."""
    if settings.adapter_dir is None:
        return None
    options = AdapterOptions(
        volume=settings.adapter_dir,
        state=settings.adapter_state_dir,
        poll_s=settings.adapter_poll_s,
        wait_s=settings.adapter_wait_s,
        rule=RollbackRule(settings.adapter_rollback_pages, settings.adapter_rollback_margin),
    )
    return AdapterManager(engine, options, observer)


def build_access(settings: ServiceSettings) -> Access:
    """Keys and their limits; raises `ConfigurationError` if the key file cannot be read."""
    fixed = []
    if settings.api_key is not None:
        fixed.append(Key(name=API_KEY_NAME, sha256=digest_of(settings.api_key.get_secret_value())))
    if settings.admin_key is not None:
        digest = digest_of(settings.admin_key.get_secret_value())
        fixed.append(Key(name=ADMIN_KEY_NAME, sha256=digest, scopes=frozenset({Scope.ADMIN})))
    return Access(
        ring=KeyRing(fixed, settings.key_file),
        limits=KeyLimits(time.monotonic),
        wrong_keys=WrongKeys(time.monotonic),
        needs_key=settings.needs_key,
    )


def build_jobs(
    settings: ServiceSettings,
    *,
    source: ImagePool,
    engine: EngineHandle,
    models: ServedModels,
    gate: Gate,
    metrics: Metrics,
    reading: TelemetryObserver,
    tracer: Tracer,
    cascade: Cascade | None,
) -> JobManager | None:
    """The jobs, not started yet; None without a folder for them."""
    if settings.job_dir is None:
        return None
    origins, secret = settings.job_webhook_origins, settings.job_webhook_secret
    options = JobOptions(
        folder=settings.job_dir,
        limits=replace(build_limits(settings), max_frames=settings.job_max_pages, max_pdf_pages=settings.job_max_pages),
        num_slots=max(1, int(settings.job_share * batch_size(settings))),
        ttl_s=settings.job_ttl_s,
        max_unfinished=settings.job_max_unfinished,
        max_bytes=settings.job_max_bytes,
        deadline_s=settings.deadline_s,
        owner_header=settings.job_owner_header,
        webhook_origins=frozenset() if origins is None else parse_origins(origins),
        webhook_secret=b"" if secret is None else parse_secret(secret.get_secret_value()),
    )
    return JobManager(
        options,
        source=source,
        engine=engine,
        models=models,
        gate=gate,
        reading=reading,
        observer=JobObserver(metrics, tracer),
        cascade=cascade,
    )


def build_cascade(
    settings: ServiceSettings, models: ServedModels, reader: DocumentReader, observer: TelemetryObserver
) -> tuple[Cascade | None, httpx.AsyncClient | None]:
    """What reads pages again, and the client to close; None without a second reader."""
    if settings.cascade_url is not None:
        key = settings.cascade_key
        client = httpx.AsyncClient(
            base_url=f"{settings.cascade_url.rstrip('/')}/",
            headers={} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"},
            # The deadline bounds the whole; a service that is not there is noticed sooner.
            timeout=httpx.Timeout(settings.deadline_s, connect=CASCADE_CONNECT_S),
            trust_env=False,
        )
        second = RemoteReader(client, settings.cascade_model)
        return Cascade(second, settings.cascade_min_confidence, observer), client
    if settings.cascade_model is not None:
        local = LocalReader(models, reader, settings.cascade_model)
        return Cascade(local, settings.cascade_min_confidence, observer), None
    return None, None


def build_samples(settings: ServiceSettings, metrics: Metrics, tracer: Tracer) -> SampleKeeper | None:
    """What keeps pages, not started yet; None unless both settings allow it."""
    is_allowed = settings.ocr_save_samples and settings.ocr_privacy_allowed
    metrics.gauge("samples_allowed").set(is_allowed)
    if not is_allowed:
        return None
    store = SampleStore(
        settings.sample_dir,
        quota_bytes=settings.sample_quota_bytes,
        time_to_live=timedelta(days=settings.sample_ttl_days),
    )
    copier = ImagePool(
        workers=1,
        memory_bytes=settings.image_memory_bytes,
        timeout_s=settings.image_timeout_s,
        max_file_bytes=settings.max_upload_bytes,
        niceness=SAMPLE_NICENESS,
    )
    return SampleKeeper(
        store,
        copier,
        build_limits(settings),
        SampleObserver(metrics, tracer),
        are_thumbnails=settings.sample_images is SampleImages.THUMBNAIL,
    )


def log_samples(settings: ServiceSettings) -> None:
    """Say at the start whether pages are kept, and if not, what is missing."""
    missing = [
        name
        for name, is_set in {
            "DEEPSYNTH_OCR_SAVE_SAMPLES": settings.ocr_save_samples,
            "DEEPSYNTH_OCR_PRIVACY_ALLOWED": settings.ocr_privacy_allowed,
        }.items()
        if not is_set
    ]
    if not missing:
        fields = {"kept": str(settings.sample_images), "days": settings.sample_ttl_days}
        logger.warning("samples are on: pages are kept unless a request opts out", extra={"fields": fields})
        return
    # With one of the two, someone expects samples.
    level = logging.WARNING if settings.ocr_save_samples else logging.INFO
    said = " and ".join(missing) + (" are" if len(missing) > 1 else " is")
    logger.log(level, "samples are off: no page is kept, as %s not true", said)


def build_exposition(settings: ServiceSettings, metrics: Metrics, monitor: Monitor) -> Exposition:
    """What scrapes read."""
    folders = {
        "adapters": settings.adapter_state_dir,
        "jobs": settings.job_dir,
        "samples": settings.sample_dir if settings.ocr_save_samples and settings.ocr_privacy_allowed else None,
    }
    disks = DiskGauges(metrics, {name: path for name, path in folders.items() if path is not None})

    async def refresh() -> None:
        await monitor.refresh()
        await disks.refresh()

    return Exposition(refresh=refresh, render=metrics.render, max_age_s=settings.metrics_cache_s)


def check_default_model(settings: ServiceSettings, engine: EngineHandle) -> None:
    """Raise a `ConfigurationError` if the default model is neither the loaded model nor possibly an adapter."""
    has_cascade = settings.cascade_url is not None or settings.cascade_model is not None
    known = (None, engine.info.model_id, *([AUTO] if has_cascade else []))
    if settings.adapter_dir is None and settings.default_model not in known:
        raise ConfigurationError(
            f"DEEPSYNTH_DEFAULT_MODEL names {settings.default_model!r}, but {engine.info.model_id!r} is loaded; "
            "unset it, name the loaded model, or set DEEPSYNTH_ADAPTER_DIR if it is an adapter"
        )


class _Composition:
    """All parts of one app; `running` is its lifespan."""

    def __init__(
        self,
        settings: ServiceSettings,
        engine: EngineHandle,
        tracing: Tracing,
        metrics: Metrics,
        on_ready: Notice,
        on_failed: Notice,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._tracing = tracing
        self._metrics = metrics
        self._loads = LoadSpans()
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._has_started = False
        self._access = build_access(settings)
        self._cascade_client: httpx.AsyncClient | None = None
        self._adapters = build_adapters(settings, engine, AdapterObserver(metrics, tracing.tracer, self._loads))

    def build(self) -> tuple[Services, ImagePool]:
        """Build everything that needs a running loop."""
        settings, metrics = self._settings, self._metrics
        gate = build_gate(settings)
        restarts = metrics.counter("decode_children_restarts_total")
        pool = build_pool(settings, lambda reason: restarts.labels(reason).inc())
        observer = TelemetryObserver(metrics, self._tracing.tracer, self._loads)
        has_cascade = settings.cascade_url is not None or settings.cascade_model is not None
        models = ServedModels(
            self._engine, self._adapters, settings.default_model, cascade=AUTO if has_cascade else None
        )
        reader = DocumentReader(
            source=pool, engine=self._engine, gate=gate, limits=build_limits(settings), observer=observer
        )
        cascade, self._cascade_client = build_cascade(settings, models, reader, observer)
        monitor = Monitor(engine=self._engine, gate=gate, metrics=metrics, on_engine_failed=self._on_failed)
        services = Services(
            engine=self._engine,
            models=models,
            adapters=self._adapters,
            access=self._access,
            jobs=build_jobs(
                settings,
                source=pool,
                engine=self._engine,
                models=models,
                gate=gate,
                metrics=metrics,
                reading=observer,
                tracer=self._tracing.tracer,
                cascade=cascade,
            ),
            gate=gate,
            reader=reader,
            cascade=cascade,
            pdf_maker=pool,
            images=pool,
            samples=build_samples(settings, metrics, self._tracing.tracer),
            metrics=metrics,
            monitor=monitor,
            exposition=build_exposition(settings, metrics, monitor),
            observer=observer,
            bounds=RequestBounds(
                max_upload_bytes=settings.max_upload_bytes,
                body_idle_s=settings.body_idle_s,
                body_total_s=settings.body_total_s,
                deadline_s=settings.deadline_s,
                document_deadline_s=settings.document_deadline_s,
                max_new_tokens=settings.max_new_tokens,
                max_frames=settings.max_frames,
                max_pdf_pages=settings.max_pdf_pages,
                blank_pages=settings.blank_pages,
                min_confidence=settings.min_confidence,
                review_threshold=settings.review_threshold,
                min_coverage=settings.min_coverage,
                orientation=settings.orientation,
            ),
            has_started=lambda: self._has_started,
            created_s=int(time.time()),
        )
        return services, pool

    async def start_engine(self, services: Services, pool: ImagePool) -> None:
        """Start the image processes and load the model.

        A failure is logged and reported to `on_failed`, since no one awaits this task.
        """
        try:
            if services.jobs is not None:
                # Before the model is loaded, which takes time: the folder may be unusable.
                await services.jobs.open()
            await pool.start()
            await self._engine.start()
            log_samples(self._settings)
            if services.samples is not None:
                await services.samples.start()
            check_default_model(self._settings, self._engine)
            if self._adapters is not None:
                await self._adapters.start(await self._base_revisions())
        except ConfigurationError as error:
            # Its text is ours, so it is safe to log.
            logger.error("%s", error)  # noqa: TRY400 -- the text suffices
            self._on_failed()
            return
        except DeepSynthError as error:
            logger.error("the service cannot start: %s", error)  # noqa: TRY400 -- no request's content exists yet
            self._on_failed()
            return
        services.monitor.engine_ready(version())
        await services.monitor.refresh()
        if services.jobs is not None:
            services.jobs.start()
        self._has_started = True
        info = self._engine.info
        how = {name: said for name, said in (("canvases", info.canvases), ("steps", info.steps)) if said}
        logger.info("ready", extra={"fields": {"model": info.model_id, "device": info.device, **how}})
        self._on_ready()

    async def _base_revisions(self) -> frozenset[str] | None:
        """The base revision that adapters must match; None for the fake engine, which accepts any."""
        if self._settings.engine is EngineKind.FAKE:
            return None
        source = choose_source(
            model=self._settings.model, device="cpu", dtype="float32", limits=EngineLimits(), cuda=False
        )
        revisions = await asyncio.to_thread(base_revisions, source.checkpoint)
        if not revisions:
            logger.warning("the revision of the base model is unknown, so every adapter will be refused")
        return revisions

    def _loading_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("the engine's start failed", exc_info=task.exception())
            self._on_failed()

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[LifespanState]:
        """The app's lifespan."""
        services, pool = self.build()
        app.state.gate = services.gate
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._tracing.shutdown)
            stack.push_async_callback(pool.stop)
            stack.push_async_callback(self._engine.stop)
            services.monitor.start()
            stack.push_async_callback(services.monitor.stop)
            loading = asyncio.create_task(self.start_engine(services, pool), name="engine-start")
            loading.add_done_callback(self._loading_ended)
            if self._adapters is not None:
                stack.push_async_callback(self._adapters.stop)
            if services.jobs is not None:
                stack.push_async_callback(services.jobs.stop)
            if services.samples is not None:
                stack.push_async_callback(services.samples.stop)
            if self._cascade_client is not None:
                stack.push_async_callback(self._cascade_client.aclose)
            stack.push_async_callback(_end, loading)
            yield {"services": services}
            services.gate.drain()


async def _end(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def create_app(
    settings: ServiceSettings,
    engine: EngineHandle | None = None,
    *,
    span_exporter: SpanExporter | None = None,
    on_ready: Notice = lambda: None,
    on_failed: Notice = lambda: None,
) -> FastAPI:
    """Build the app.

    Args:
        settings: The settings.
        engine: None for the configured engine.
        span_exporter: Gets the spans instead of the collector; for tests.
        on_ready: Called once, when pages can be read.
        on_failed: Called once, if the engine does not start or cannot be restarted.

    Returns:
        The app; its lifespan starts everything.
    """
    metrics = Metrics()
    endpoint = settings.otlp_endpoint if settings.enable_tracing else None
    tracing = Tracing(endpoint=endpoint, version=version(), exporter=span_exporter)
    composition = _Composition(settings, engine or build_engine(settings), tracing, metrics, on_ready, on_failed)
    app = FastAPI(
        title="DeepSynth OCR",
        version=version(),
        lifespan=composition.running,
        # Both pages load scripts from other hosts; docs/api.md and /openapi.json replace them.
        docs_url=None,
        redoc_url=None,
        # A redirect would make clients send the document again, behind a TLS proxy to an http:// address.
        redirect_slashes=False,
    )
    clients = (chat, mistral, document_intelligence, external_loader)
    for part in (ocr, jobs, preview, *clients, health, models, adapters, playground, samples):
        app.include_router(part.router)
    app.include_router(adapters.admin_router)
    app.include_router(samples.export_router)
    app.add_exception_handler(DeepSynthError, on_known_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    if settings.enable_metrics:
        app.include_router(health.metrics_router)
        # Unknown paths share one series; the outer middleware has rejected unknown methods by then.
        Instrumentator(
            registry=metrics.registry, should_group_status_codes=False, should_group_untemplated=True
        ).instrument(app)
    if tracing.provider is not None:
        FastAPIInstrumentor.instrument_app(
            app, tracer_provider=tracing.provider, excluded_urls=UNTRACED, exclude_spans=["receive", "send"]
        )
    hosts = frozenset(each.strip().lower() for each in settings.allowed_hosts.split(",") if each.strip())
    app.add_middleware(
        RequestContextMiddleware,
        metrics=metrics,
        respond=problem_response,
        allowed_hosts=hosts,
        admin_port=divide_routes(settings),
    )
    return app


def divide_routes(settings: ServiceSettings) -> AdminPort | None:
    """Which routes are on the port for operators; None without one."""
    if settings.admin_port is None:
        return None
    return AdminPort(
        settings.admin_port,
        admin=(health.metrics_router, adapters.admin_router, samples.export_router),
        shared=(health.router, adapters.router),
    )
