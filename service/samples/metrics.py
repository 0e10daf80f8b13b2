"""Counts, spans and log lines of samples; the only writer of their metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from opentelemetry.trace import NonRecordingSpan, SpanContext, Tracer, set_span_in_context

from service.telemetry.metrics import Metrics
from service.telemetry.spans import operation
from shared.contract.durable import DISK_FULL

logger = logging.getLogger(__name__)


class Lost(StrEnum):
    """Why a page was not kept, or a correction not stored."""

    BUSY = "busy"
    QUOTA = "quota"
    DISK_FULL = "disk_full"
    DISK = "disk"
    IMAGE = "image"
    FAULT = "fault"


class SampleObserver:
    """Counts what becomes of samples."""

    def __init__(self, metrics: Metrics, tracer: Tracer) -> None:
        self._metrics = metrics
        self._tracer = tracer

    @contextmanager
    def persisting(self, request: SpanContext) -> Iterator[None]:
        """Around keeping an answered document, in the trace of its request, which has ended by then."""
        began_s = time.monotonic()
        with operation(self._tracer, "deepsynth.persist", set_span_in_context(NonRecordingSpan(request))):
            yield
        self._metrics.histogram("stage_duration_seconds").labels("persist").observe(time.monotonic() - began_s)

    def done(self, what: str, num: int = 1) -> None:
        """Count samples that were `stored`, `corrected`, `read` or `erased`."""
        self._metrics.counter("samples_total").labels(what).inc(num)

    def lost(self, reason: Lost, num_pages: int = 1, detail: str | None = None) -> None:
        """Count and log pages that are not kept, with the reason alone."""
        self._metrics.counter("samples_lost_total").labels(reason).inc(num_pages)
        logger.warning(
            "samples were not kept", extra={"fields": {"reason": str(reason), "pages": num_pages, "detail": detail}}
        )

    def lost_to(self, error: OSError) -> None:
        """Count and log a page that could not be written."""
        self.lost(Lost.DISK_FULL if error.errno in DISK_FULL else Lost.DISK, detail=error.strerror)

    def not_erased(self, error: OSError) -> None:
        """Count and log samples that could not be erased."""
        self._metrics.counter("sample_erasures_failed_total").inc()
        logger.error("samples could not be erased: %s", error.strerror)

    def not_read(self, error: OSError) -> None:
        """Log samples that could not be exported."""
        logger.error("samples could not be exported: %s", error.strerror)

    def size(self, num_samples: int, num_bytes: int) -> None:
        """Set how much is kept."""
        self._metrics.gauge("samples_kept").set(num_samples)
        self._metrics.gauge("sample_bytes").set(num_bytes)
