"""Every metric of the service, declared once: name, kind, meaning, labels, buckets.

Labels have a fixed set of values, whose series start at 0: rates do not miss the first event, and clients cannot
create series. `docs/metrics.md` is generated from `TABLE`. HTTP metrics come from prometheus-fastapi-instrumentator, on
the same registry.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.errors import error_classes
from service.telemetry.gateway import GatewayMetrics
from shared.contract.refusals import Reason

PREFIX = "deepsynth_"
OTHER_MODEL = "_other"
DURATION_BUCKETS = tuple(0.01 * 2**power for power in range(14))
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
BYTES_BUCKETS = tuple(1024.0 * 4**power for power in range(9))
PIXEL_BUCKETS = tuple(10_000.0 * 4**power for power in range(8))

STAGES = ("receive", "decode", "queue", "encode", "prefill", "generate", "render", "persist")
# Repeated here, since telemetry must not import the modules that define them; a test compares.
FINISH_REASONS = ("stop", "length", "repetition")
PAGE_STATUSES = ("ok", "blank", "unreadable", "failed")
ENGINE_STATES = ("loading", "ready", "draining", "failed")
ENGINE_LOSSES = ("exit", "signal", "exception", "stall", "stopped", "startup")
FORMATS = ("png", "jpeg", "webp", "tiff", "gif", "bmp", "jpeg2000", "avif", "heic", "pdf")
INFERENCE_STATUSES = ("ok", "failed", "cancelled")
OUTCOMES = ("ok", "client_error", "rejected", "timeout", "server_error", "unavailable", "client_disconnect")
REJECTIONS = tuple(dict.fromkeys(cls.rejection for cls in error_classes().values() if cls.rejection))
KEY_REJECTIONS = (
    "key_required",
    "key_invalid",
    "key_scope",
    "key_rate_limited",
    "key_concurrency",
    "too_many_wrong_keys",
    "admin_key_required",
)
ADAPTER_RESULTS = ("ok", "refused", "fault")
ADAPTER_STAGES = ("verify", "place", "canary", "total")
ADAPTER_REFUSALS = (*map(str, Reason), "canary_failed", "refused_by_operator", "rolled_back")
ADAPTER_OUTCOMES = ("fine", "loop", "failure")
ROLLBACK_CAUSES = ("operator", "automatic")
JOB_STATES = ("waiting", "running", "done", "failed")
JOB_OUTCOMES = ("done", "failed", "cancelled")
WEBHOOK_RESULTS = ("delivered", "retried", "failed", "refused")
CASCADE_OUTCOMES = ("read_again", "failed")
SAMPLE_CHANGES = ("stored", "corrected", "read", "erased")
SAMPLE_LOSSES = ("busy", "quota", "disk_full", "disk", "image", "fault")
MAX_MODEL_LABELS = 32
"""Models and adapters with series of their own; pages of further ones count as `_other`."""
RESTART_REASONS = (
    "died_idle",
    "decode_timeout",
    "decode_out_of_memory",
    "decode_crash",
    "decode_killed",
    "decode_unavailable",
    "abandoned",
)


class Kind(StrEnum):
    """Prometheus's types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric; `labels` maps a label to its values, empty if they depend on the loaded model."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: Sequence[float] = ()


def _counter(name: str, text: str, **labels: Sequence[str]) -> MetricSpec:
    return MetricSpec(PREFIX + name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, **labels: Sequence[str]) -> MetricSpec:
    return MetricSpec(PREFIX + name, Kind.GAUGE, text, labels)


def _histogram(name: str, text: str, buckets: Sequence[float], **labels: Sequence[str]) -> MetricSpec:
    return MetricSpec(PREFIX + name, Kind.HISTOGRAM, text, labels, buckets)


TABLE: tuple[MetricSpec, ...] = (
    _histogram("inference_latency_seconds", "Time from submitting a page to its last token.", DURATION_BUCKETS),
    _counter(
        "inference_total",
        "Pages submitted to the engine, by base model or adapter (without version).",
        model_id=(),
        status=INFERENCE_STATUSES,
    ),
    _gauge("gpu_memory_bytes", "Device memory that the engine uses, in bytes; 0 on a CPU.", device=()),
    _counter("requests_total", "OCR requests by outcome; code is ok or an error code.", outcome=(), code=()),
    _histogram(
        "request_duration_seconds", "Time from a request's first byte to its end.", DURATION_BUCKETS, outcome=OUTCOMES
    ),
    _histogram("stage_duration_seconds", "Time per stage of requests and pages.", DURATION_BUCKETS, stage=STAGES),
    _histogram("queue_wait_seconds", "Time a page waited for a slot and in the engine's queue.", TTFT_BUCKETS),
    _histogram("time_to_first_token_seconds", "Time from submitting a page to its first text.", TTFT_BUCKETS),
    _histogram("time_per_output_token_seconds", "Decode time of a page per generated token.", TPOT_BUCKETS),
    _gauge("queue_depth", "Admitted requests without a page in work yet."),
    _gauge("queue_capacity", "Maximum concurrent requests, waiting and running."),
    _gauge("requests_running", "Requests with a page in work."),
    _gauge("sequences_waiting", "Pages in the engine's queue."),
    _gauge("sequences_running", "Pages being decoded by the engine."),
    _histogram("batch_size", "Pages in a decode step.", BATCH_BUCKETS),
    _counter("engine_steps_total", "Engine steps."),
    _counter("drafted_tokens_total", "Drafted tokens that decode steps checked; only nano on a CPU drafts."),
    _counter("accepted_tokens_total", "Drafted tokens that were right, each of which saved its page a step."),
    _counter("pages_total", "Finished pages."),
    _counter("input_tokens_total", "Vision and prompt tokens of finished pages."),
    _counter("output_tokens_total", "Generated tokens of finished pages."),
    _counter("output_characters_total", "Characters of finished pages."),
    _counter("finished_total", "Finished pages, by finish reason.", finish_reason=FINISH_REASONS),
    _counter("page_outcomes_total", "Pages of answered requests and of jobs, by outcome.", status=PAGE_STATUSES),
    _counter("blank_input_total", "Pages without print."),
    _histogram("image_pixels", "Pixels of decoded pages.", PIXEL_BUCKETS, format=FORMATS),
    _histogram("upload_bytes", "Bytes of uploaded files.", BYTES_BUCKETS),
    _counter("image_rejected_total", "Rejected files, by reason.", reason=REJECTIONS),
    _counter("decode_children_restarts_total", "Replaced image processes, by reason.", reason=RESTART_REASONS),
    _counter("key_requests_total", "Documents accepted, by the name of the caller's key.", key=()),
    _counter("key_rejections_total", "Requests refused because of their key, by error code.", code=KEY_REJECTIONS),
    _gauge("worker_up", "1 while the engine is ready."),
    _gauge("worker_state", "1 for the engine's current state.", state=ENGINE_STATES),
    _gauge("worker_seconds_since_progress", "Seconds since the engine's last step while it has work."),
    _counter("worker_restarts_total", "Losses of the engine and failed restarts, by kind.", reason=ENGINE_LOSSES),
    _counter("pages_retried_total", "Pages that were lost with the engine and read again."),
    _counter("poison_pages_total", "Pages refused because they were in work at two deaths of the engine."),
    _histogram("event_loop_lag_seconds", "How late the event loop runs a timer.", LAG_BUCKETS),
    _gauge("adapter_slots", "Slots for adapters."),
    _gauge("adapter_slots_used", "Loaded adapters."),
    _gauge("adapter_requests_waiting", "Requests that wait for their adapter to be loaded."),
    _gauge("adapter_volume_up", "1 while the adapter volume can be read."),
    _gauge("adapter_served_version", "Version that an adapter's name serves.", adapter=()),
    _gauge("adapter_served_age_seconds", "Seconds since the served version was published.", adapter=()),
    _counter("adapter_pages_total", "Pages read with an adapter, by outcome.", adapter=(), outcome=()),
    _counter("adapter_loads_total", "Versions loaded from the volume, by result.", result=ADAPTER_RESULTS),
    _histogram(
        "adapter_load_seconds",
        "Time to bring a version into service, by stage; total runs from discovery to the end of the canary page.",
        DURATION_BUCKETS,
        stage=ADAPTER_STAGES,
    ),
    _counter("adapter_refusals_total", "Refused versions, by reason.", reason=ADAPTER_REFUSALS),
    _counter("adapter_evictions_total", "Adapters evicted for another."),
    _counter("adapter_rollbacks_total", "Rollbacks, by cause.", cause=ROLLBACK_CAUSES),
    _gauge("jobs", "Jobs that are kept, by state.", state=JOB_STATES),
    _gauge("job_bytes", "Bytes of documents and results that are kept for jobs."),
    _counter("jobs_ended_total", "Jobs by how they ended; cancelled ones were erased before.", outcome=JOB_OUTCOMES),
    _counter("job_pages_total", "Pages finished by jobs, by outcome.", status=PAGE_STATUSES),
    _counter(
        "job_webhooks_total",
        "Attempts at sending webhooks, by result; failed and refused ones are not tried again.",
        result=WEBHOOK_RESULTS,
    ),
    _counter("cascade_pages_total", "Pages that were to be read again by a larger model.", outcome=CASCADE_OUTCOMES),
    _gauge("samples_allowed", "1 where the settings allow that pages are kept."),
    _gauge("samples_kept", "Kept pages."),
    _gauge("sample_bytes", "Bytes that kept pages and their records take of the disk, in blocks of 4 KiB."),
    _counter("samples_total", "Pages that were kept, corrected, exported or erased.", what=SAMPLE_CHANGES),
    _counter(
        "samples_lost_total",
        "Pages that could not be kept, and corrections that could not be stored, by reason.",
        reason=SAMPLE_LOSSES,
    ),
    _counter("sample_erasures_failed_total", "Attempts at erasing samples that failed; expired ones are tried again."),
    _gauge("disk_free_bytes", "Free bytes of the disk with a folder of the service.", folder=()),
    _gauge("disk_size_bytes", "Size of the disk with a folder of the service.", folder=()),
    _gauge("build_info", "1, with what is running as labels.", version=(), model_id=(), device=(), dtype=()),
)


class Metrics:
    """The metrics of `TABLE`, on their own registry, so that two services in one process do not collide."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.gateway = GatewayMetrics()
        self.registry.register(self.gateway)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._model_labels: set[str] = set()
        for spec in TABLE:
            self._make(spec)
        requests = self.counter("requests_total")
        requests.labels("ok", "ok")
        for cls in error_classes().values():
            requests.labels(cls.outcome, cls.code)

    def _make(self, spec: MetricSpec) -> None:
        labels = tuple(spec.labels)
        metric: Counter | Gauge | Histogram
        match spec.kind:
            case Kind.COUNTER:
                metric = self._counters[spec.name] = Counter(spec.name, spec.help, labels, registry=self.registry)
            case Kind.GAUGE:
                metric = self._gauges[spec.name] = Gauge(spec.name, spec.help, labels, registry=self.registry)
            case Kind.HISTOGRAM:
                metric = self._histograms[spec.name] = Histogram(
                    spec.name, spec.help, labels, registry=self.registry, buckets=spec.buckets
                )
        if labels:
            # Empty if a label's values are not known yet; then no series is created.
            for values in itertools.product(*spec.labels.values()):
                metric.labels(*values)

    def model_label(self, model_id: str) -> str:
        """The label of a model or `name@version` that is served: the bare name, or `_other` if there are too many."""
        name = model_id.partition("@")[0]
        if name not in self._model_labels and len(self._model_labels) >= MAX_MODEL_LABELS:
            return OTHER_MODEL
        self._model_labels.add(name)
        return name

    def counter(self, name: str) -> Counter:
        """A counter by its name without the prefix."""
        return self._counters[PREFIX + name]

    def gauge(self, name: str) -> Gauge:
        """A gauge by its name without the prefix."""
        return self._gauges[PREFIX + name]

    def histogram(self, name: str) -> Histogram:
        """A histogram by its name without the prefix."""
        return self._histograms[PREFIX + name]

    def render(self) -> bytes:
        """The exposition in Prometheus's text format."""
        return generate_latest(self.registry)
