"""Metrics and traces of adapters; the only writer of the adapter metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context

from service.adapters.rollback import Outcome
from service.telemetry.links import LoadSpans
from service.telemetry.metrics import ADAPTER_OUTCOMES, OTHER_MODEL, Metrics
from shared.contract.identity import AdapterRef


class LoadObserver:
    """Observes one version from the volume to the end of its canary page."""

    def __init__(self, metrics: Metrics, tracer: Tracer, span: Span, stages_s: dict[str, float]) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._span = span
        self._stages_s = stages_s
        self.result = "fault"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around one stage; its span is a child of the load's."""
        began_s = time.monotonic()
        context = set_span_in_context(self._span)
        with self._tracer.start_as_current_span(
            f"deepsynth.adapter.{name}", context, record_exception=False, set_status_on_exception=False
        ):
            yield
        # Only stages that succeeded: the time to a refusal says nothing about loading.
        self._stages_s[name] = time.monotonic() - began_s
        self._metrics.histogram("adapter_load_seconds").labels(name).observe(self._stages_s[name])

    def passed(self, total_s: float) -> None:
        """The version may be served."""
        self.result = "ok"
        self._stages_s["total"] = total_s
        self._metrics.histogram("adapter_load_seconds").labels("total").observe(total_s)

    def refused(self, reason: str) -> None:
        """The version was refused."""
        self.result = "refused"
        self._span.set_attribute("error.type", reason)

    def note_size(self, num_bytes: int) -> None:
        """The weights' size."""
        self._span.set_attribute("deepsynth.adapter.bytes", num_bytes)


class AdapterObserver:
    """Observes the parts of `service.adapters`."""

    def __init__(self, metrics: Metrics, tracer: Tracer, loads: LoadSpans | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._loads = loads or LoadSpans()
        self._num_evicted = 0

    @contextlib.contextmanager
    def loading(self, reference: AdapterRef, stages_s: dict[str, float]) -> Iterator[LoadObserver]:
        """Around preparing one version; `stages_s` is filled with seconds by stage."""
        with self._tracer.start_as_current_span(
            "deepsynth.adapter.load", Context(), record_exception=False, set_status_on_exception=False
        ) as span:
            span.set_attributes(
                {"deepsynth.adapter.name": reference.name, "deepsynth.adapter.version": reference.version}
            )
            self._loads.note(str(reference), span)
            load = LoadObserver(self._metrics, self._tracer, span, stages_s)
            try:
                yield load
            finally:
                span.set_attribute("deepsynth.adapter.result", load.result)
                if load.result == "fault":
                    span.set_status(Status(StatusCode.ERROR))
                self._metrics.counter("adapter_loads_total").labels(load.result).inc()

    def refused(self, reason: str) -> None:
        """A version was refused."""
        self._metrics.counter("adapter_refusals_total").labels(reason).inc()

    def rolled_back(self, cause: str) -> None:
        """A version was rolled back."""
        self._metrics.counter("adapter_rollbacks_total").labels(cause).inc()

    def page(self, name: str, outcome: Outcome) -> None:
        """A page was read with an adapter."""
        self._metrics.counter("adapter_pages_total").labels(self._metrics.model_label(name), outcome).inc()

    def volume(self, *, is_up: bool) -> None:
        """Whether the last scan of the volume succeeded."""
        self._metrics.gauge("adapter_volume_up").set(is_up)

    def served(self, name: str, version: int | None, created: datetime | None) -> None:
        """The version that a name serves, and when it was published."""
        label = self._metrics.model_label(name)
        if label == OTHER_MODEL:
            return
        age_s = (datetime.now(UTC) - created).total_seconds() if created else 0.0
        self._metrics.gauge("adapter_served_version").labels(label).set(version or 0)
        self._metrics.gauge("adapter_served_age_seconds").labels(label).set(max(age_s, 0.0))
        for outcome in ADAPTER_OUTCOMES:
            self._metrics.counter("adapter_pages_total").labels(label, outcome)

    def slots(self, *, total: int, loaded: Collection[str], waiting: Collection[str], evicted: int) -> None:
        """Update the gauges of the slots.

        Args:
            total: Slots.
            loaded: What is in them, each as `name@version`.
            waiting: What requests wait for, once a request.
            evicted: Adapters evicted since the start.
        """
        values: Mapping[str, float] = {
            "adapter_slots": total,
            "adapter_slots_used": len(loaded),
            "adapter_requests_waiting": len(waiting),
        }
        self._metrics.gateway.set_adapters(most=total, running=_names(loaded), waiting=_names(waiting))
        for name, value in values.items():
            self._metrics.gauge(name).set(value)
        self._metrics.counter("adapter_evictions_total").inc(evicted - self._num_evicted)
        self._num_evicted = evicted


def _names(model_ids: Collection[str]) -> set[str]:
    return {model_id.partition("@")[0] for model_id in model_ids}
