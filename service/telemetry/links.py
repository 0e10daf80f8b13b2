"""Spans with several causes: pages that the engine reads together, and the load of the adapter that reads a page.

Neither belongs to one request, so each is the root of a trace of its own, and links say what belongs together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, Tracer

MAX_BATCH_PAGES = 128
"""Pages of a batch's span: OpenTelemetry's default for the links of one span."""
MAX_BATCH_S = 10.0
"""How long pages may join a batch's span; a busy engine never has a moment without pages."""
MAX_LOADS = 256
"""Remembered loads of adapters."""


@dataclass(slots=True)
class Batch:
    """An open span of pages that are in work at the same time."""

    span: Span
    began_s: float
    num_pages: int = 0
    num_open: int = 0
    output_tokens: int = 0


class BatchSpans:
    """Spans `deepsynth.batch`, each linked with the spans of its pages, and they with it.

    Pages join and leave the engine's batch one by one. A span begins with the first page, takes those that come while
    others of it are in work, for `MAX_BATCH_S` and up to `MAX_BATCH_PAGES`, and ends with the last of them.
    """

    def __init__(self, tracer: Tracer, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracer = tracer
        self._clock = clock
        self._newest: Batch | None = None

    def join(self, page: Span) -> Batch | None:
        """Link a page's span; None if it is not recorded."""
        if not page.is_recording():
            return None
        now_s, batch = self._clock(), self._newest
        if batch is None or batch.num_pages >= MAX_BATCH_PAGES or now_s - batch.began_s > MAX_BATCH_S:
            span = self._tracer.start_span("deepsynth.batch", context=Context())
            batch = self._newest = Batch(span, now_s)
        batch.num_pages += 1
        batch.num_open += 1
        batch.span.add_link(page.get_span_context())
        page.add_link(batch.span.get_span_context())
        return batch

    def leave(self, batch: Batch | None, output_tokens: int) -> None:
        """A page of a batch has ended; the last one ends the span."""
        if batch is None:
            return
        batch.num_open -= 1
        batch.output_tokens += output_tokens
        if batch.num_open == 0:
            batch.span.set_attributes(
                {"deepsynth.batch.pages": batch.num_pages, "gen_ai.usage.output_tokens": batch.output_tokens}
            )
            batch.span.end()
            if batch is self._newest:
                self._newest = None


class LoadSpans:
    """The last load of each adapter version, for links from the pages that it reads."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[str, SpanContext] = OrderedDict()

    def note(self, model_id: str, span: Span) -> None:
        """Remember the load of `name@version`."""
        if span.is_recording():
            self._contexts[model_id] = span.get_span_context()
            if len(self._contexts) > MAX_LOADS:
                self._contexts.popitem(last=False)

    def link(self, model_id: str, page: Span) -> None:
        """Link a page's span with the load of its model, if that is an adapter whose load is remembered."""
        context = self._contexts.get(model_id)
        if context is not None:
            page.add_link(context)
