"""How each span of the service is opened: errors are noted by their code or type, never by their text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import Tracer as RecordingTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    INVALID_SPAN,
    NoOpTracer,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
)
from opentelemetry.util.types import AttributeValue

from service.errors import DeepSynthError

SCOPE = InstrumentationScope("deepsynth")
_UNSET = Status()
_UNTRACED: contextlib.AbstractContextManager[Span] = contextlib.nullcontext(INVALID_SPAN)


def operation(tracer: Tracer, name: str, context: Context | None = None) -> contextlib.AbstractContextManager[Span]:
    """Around an operation.

    Args:
        tracer: Makes the span.
        name: The span's.
        context: Has the parent; None for the current span, an empty one for a trace of its own.

    Returns:
        A context with the span, which is current in the block.
    """
    # Where nothing is traced, its contexts would cost as much as a request's metrics.
    return _UNTRACED if isinstance(tracer, NoOpTracer) else _recorded(tracer, name, context)


@contextlib.contextmanager
def _recorded(tracer: Tracer, name: str, context: Context | None) -> Iterator[Span]:
    # Exceptions are not recorded, since their text may quote a page.
    with tracer.start_as_current_span(name, context, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", _type_of(error))
            span.set_status(_status_of(error))
            raise


class Noted(Protocol):
    """Takes attributes of a span."""

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes."""


def step(tracer: Tracer, name: str) -> contextlib.AbstractContextManager[Noted]:
    """Around an operation that has no operations inside, at less than half the cost of one that may have.

    Its span is never current: it is made when it has ended, from its times.

    Args:
        tracer: Makes the span.
        name: The span's.

    Returns:
        A context that takes attributes.
    """
    parent = get_current_span()
    if not isinstance(tracer, RecordingTracer) or not parent.get_span_context().is_valid:
        return operation(tracer, name)
    return _Step(tracer, name, parent) if parent.is_recording() else _UNTRACED


def record(
    tracer: Tracer,
    name: str,
    parent: Span,
    begin_ns: int,
    end_ns: int,
    attributes: Mapping[str, AttributeValue] | None = None,
    status: Status = _UNSET,
) -> None:
    """Make the span of what has ended.

    Args:
        tracer: Makes the span.
        name: The span's.
        parent: Of the span; nothing is made if it is not recorded.
        begin_ns: Unix time.
        end_ns: Unix time.
        attributes: The span's.
        status: The span's.
    """
    if not isinstance(tracer, RecordingTracer) or not parent.is_recording():
        return
    above = parent.get_span_context()
    context = SpanContext(above.trace_id, tracer.id_generator.generate_span_id(), False, above.trace_flags)
    tracer.span_processor.on_end(
        ReadableSpan(
            name,
            context,
            above,
            tracer.resource,
            attributes or {},
            status=status,
            start_time=begin_ns,
            end_time=end_ns,
            instrumentation_scope=SCOPE,
        )
    )


class _Step:
    __slots__ = ("_attributes", "_begin_ns", "_name", "_parent", "_tracer")

    def __init__(self, tracer: Tracer, name: str, parent: Span) -> None:
        self._tracer, self._name, self._parent = tracer, name, parent
        self._attributes: dict[str, AttributeValue] = {}
        self._begin_ns = 0

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._attributes.update(attributes)

    def __enter__(self) -> Noted:
        self._begin_ns = time.time_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _UNSET
        if isinstance(error, Exception):
            self._attributes["error.type"] = _type_of(error)
            status = _status_of(error)
        record(self._tracer, self._name, self._parent, self._begin_ns, time.time_ns(), self._attributes, status)


def _type_of(error: Exception) -> str:
    return error.code if isinstance(error, DeepSynthError) else type(error).__name__


def _status_of(error: Exception) -> Status:
    is_ours = not isinstance(error, DeepSynthError) or error.status >= 500
    return Status(StatusCode.ERROR) if is_ours else _UNSET
