"""OpenTelemetry spans: off by default, with attributes from an allow list only.

HTTP spans come from opentelemetry-instrumentation-fastapi, spans of reading from `service.ocr.metrics`. Both pass
through `AllowListExporter`, so that no file name, query, header or exception text is exported.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NoOpTracer, SpanContext, Tracer
from opentelemetry.util.types import AttributeValue

from service.telemetry.spans import SCOPE

SERVICE_NAME = "deepsynth-ocr"
_RENAMED = {
    "http.method": "http.request.method",
    "http.status_code": "http.response.status_code",
    "http.scheme": "url.scheme",
    "http.flavor": "network.protocol.version",
}
"""Old names that the instrumentation still writes, and their names in the stable conventions."""
ALLOWED = frozenset(
    {
        *_RENAMED.values(),
        "http.route",
        "error.type",
        "exception.type",
        "deepsynth.adapter.name",
        "deepsynth.adapter.version",
        "deepsynth.adapter.bytes",
        "deepsynth.adapter.result",
        "deepsynth.batch.pages",
        "deepsynth.upload.bytes",
        "deepsynth.format",
        "deepsynth.image.format",
        "deepsynth.image.width_px",
        "deepsynth.image.height_px",
        "deepsynth.page.number",
        "deepsynth.page.count",
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
    }
)
UNTRACED = "livez,readyz,metrics"
SHUTDOWN_S = 3.0


def _filtered(attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    renamed = {_RENAMED.get(name, name): value for name, value in (attributes or {}).items()}
    return {name: value for name, value in renamed.items() if name in ALLOWED}


class AllowListExporter(SpanExporter):
    """Exports spans with the attributes of the allow list and no others."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Filter and export."""
        return self._inner.export([_stripped(span) for span in spans])

    def shutdown(self) -> None:
        """Shut down the inner exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the inner exporter."""
        return self._inner.force_flush(timeout_millis)


def _without_state(context: SpanContext | None) -> SpanContext | None:
    """The context without `tracestate`, in which a client can send anything."""
    if context is None:
        return None
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


def _link(link: Link) -> Link:
    context = link.context
    return Link(SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags))


def _stripped(span: ReadableSpan) -> ReadableSpan:
    route = (span.attributes or {}).get("http.route")
    is_server = span.kind.name == "SERVER"
    # The name of an unmatched path would otherwise contain what the client sent.
    name = span.name if not is_server or route else str((span.attributes or {}).get("http.method", "HTTP"))
    return ReadableSpan(
        name=name,
        context=_without_state(span.context),
        parent=_without_state(span.parent),
        resource=span.resource,
        attributes=_filtered(span.attributes),
        events=[Event(event.name, _filtered(event.attributes), event.timestamp) for event in span.events],
        links=[_link(link) for link in span.links],
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )


class Tracing:
    """The app's tracer provider, or none."""

    def __init__(self, *, endpoint: str | None, version: str, exporter: SpanExporter | None = None) -> None:
        """Set up tracing.

        Args:
            endpoint: OTLP traces URL; None for no tracing, unless there is an exporter.
            version: Version of the service.
            exporter: Gets each span at once instead; for tests.
        """
        self._provider: TracerProvider | None = None
        if endpoint is None and exporter is None:
            return
        resource = Resource({"service.name": SERVICE_NAME, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(AllowListExporter(exporter)))
        elif endpoint is not None:
            # Imported here because it is slow to import and tracing is off by default.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            otlp = AllowListExporter(OTLPSpanExporter(endpoint=endpoint, timeout=5))
            self._provider.add_span_processor(BatchSpanProcessor(otlp))

    @property
    def tracer(self) -> Tracer:
        """Creates spans; does nothing if tracing is off."""
        return NoOpTracer() if self._provider is None else self._provider.get_tracer(SCOPE.name)

    @property
    def provider(self) -> TracerProvider | None:
        """For the HTTP instrumentation; None if tracing is off."""
        return self._provider

    def shutdown(self) -> None:
        """Send remaining spans; blocks for `SHUTDOWN_S` at most, whatever the collector does."""
        if self._provider is not None:
            # Exporters repeat what fails for much longer. A daemon thread ends with the process.
            flushing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
            flushing.start()
            flushing.join(SHUTDOWN_S)
