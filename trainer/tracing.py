"""OpenTelemetry spans around slow steps; off by default, and then no OpenTelemetry package is imported.

Where spans are sent is set by the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others). A span holds names and
numbers, never a folder, a text or a host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from trainer.config import SettingsError

SERVICE_NAME = "deepsynth-ocr-trainer"
Value = str | int | float | bool


class Span(Protocol):
    """A running span."""

    def set_attribute(self, name: str, value: Value) -> None:
        """Add an attribute."""


class _NoSpan:
    def set_attribute(self, name: str, value: Value) -> None:
        """Ignored: tracing is off."""


_tracers: list[Any] = []
"""The tracer of this process, at most one."""


def start_tracing(exporter: Any | None = None) -> None:
    """Start recording and sending spans.

    Args:
        exporter: gets each span at once; None to send them in batches by OTLP over HTTP.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    if _tracers:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError as error:
        raise SettingsError("tracing needs OpenTelemetry; install the extra trainer-tracing") from error
    # At its end the process sends what is left: the provider sees to that itself.
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}))
    provider.add_span_processor(SimpleSpanProcessor(exporter) if exporter else BatchSpanProcessor(OTLPSpanExporter()))
    _tracers[:] = [provider.get_tracer(SERVICE_NAME)]


def stop_tracing() -> None:
    """Stop recording spans."""
    _tracers.clear()


@contextmanager
def span(name: str, attributes: Mapping[str, Value] | None = None) -> Iterator[Span]:
    """Record how long the block takes and whether it fails; does nothing while tracing is off."""
    if not _tracers:
        yield _NoSpan()
        return
    # An exception's text may hold folders, so only its type is noted.
    with _tracers[0].start_as_current_span(
        name, attributes=dict(attributes or {}), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            raise
