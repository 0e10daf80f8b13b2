"""Metrics, spans and log lines of jobs; the only writer of these metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from service.jobs.job import Job, JobState
from service.jobs.store import Counts
from service.ocr.outcome import PageStatus
from service.telemetry.metrics import Metrics
from service.telemetry.spans import operation

_log = logging.getLogger(__name__)


class JobObserver:
    """Observes the jobs of one service."""

    def __init__(self, metrics: Metrics, tracer: Tracer) -> None:
        self._metrics = metrics
        self._tracer = tracer

    @contextmanager
    def reading(self, job: Job) -> Iterator[None]:
        """Around reading a job: a trace of its own, as it outlives the request that submitted it."""
        with operation(self._tracer, "deepsynth.job", Context()) as span:
            span.set_attribute("deepsynth.page.count", len(job.unread))
            yield

    @contextmanager
    def persisting(self) -> Iterator[None]:
        """Around storing a page."""
        began_s = time.monotonic()
        with operation(self._tracer, "deepsynth.persist"):
            yield
        self._metrics.histogram("stage_duration_seconds").labels("persist").observe(time.monotonic() - began_s)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around an attempt at sending a webhook."""
        with operation(self._tracer, "deepsynth.webhook", Context()):
            yield

    def kept(self, counts: Counts) -> None:
        """Update the gauges."""
        for state, num in counts.by_state.items():
            self._metrics.gauge("jobs").labels(state).set(num)
        self._metrics.gauge("job_bytes").set(counts.kept_bytes)

    def accepted(self, job_id: str, num_pages: int, num_bytes: int) -> None:
        """Log a new job."""
        _log.info("job accepted", extra={"fields": {"job": job_id, "pages": num_pages, "bytes": num_bytes}})

    def begun(self, job: Job) -> None:
        """Log that reading begins or goes on."""
        fields = {"job": job.id, "pages": len(job.statuses), "unread": len(job.unread)}
        _log.info("job begun" if job.started_s is None else "job resumed", extra={"fields": fields})

    def page_finished(self, status: PageStatus) -> None:
        """Count a page that was stored."""
        self._metrics.counter("job_pages_total").labels(status).inc()

    def ended(self, job: Job, state: JobState, now_s: float) -> None:
        """Count and log a job that is done or has failed."""
        self._metrics.counter("jobs_ended_total").labels(state).inc()
        fields = {
            "job": job.id,
            "state": state,
            "pages": len(job.statuses),
            "duration_s": round(now_s - job.created_s, 3),
        }
        _log.info("job ended", extra={"fields": fields})

    def erased(self, job_id: str, reason: str, *, is_cancelled: bool) -> None:
        """Count and log a job that was erased, by its client or after its time."""
        if is_cancelled:
            self._metrics.counter("jobs_ended_total").labels("cancelled").inc()
        _log.info("job erased", extra={"fields": {"job": job_id, "reason": reason, "cancelled": is_cancelled}})

    def webhook(self, job_id: str, result: str, status: int | None) -> None:
        """Count and log an attempt at sending a webhook; `status` is None where there was no response."""
        self._metrics.counter("job_webhooks_total").labels(result).inc()
        _log.info("job webhook", extra={"fields": {"job": job_id, "result": result, "status": status}})
