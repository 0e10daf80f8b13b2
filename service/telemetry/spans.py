"""How each span of the service is opened: errors are noted by their code or type, never by their text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NoOpTracer, Span, Status, StatusCode, Tracer

from service.errors import DeepSynthError

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
        except DeepSynthError as error:
            span.set_attribute("error.type", error.code)
            if error.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            raise
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
