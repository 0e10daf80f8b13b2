"""A background task that measures the event loop's lag and updates the gauges of engine and admission."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

from service.admission.gate import Gate
from service.engine.protocol import EngineHandle, EngineState
from service.telemetry.metrics import Metrics

PERIOD_S = 0.5
STATS_TIMEOUT_S = 1.0


class Monitor:
    """Runs as long as the app; a scrape calls `refresh` for the newest values."""

    def __init__(
        self,
        *,
        engine: EngineHandle,
        gate: Gate,
        metrics: Metrics,
        on_engine_failed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._metrics = metrics
        self._on_engine_failed = on_engine_failed
        self._has_reported_failure = False
        self._counted: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._num_retried = self._num_refused = 0
        self._device = "cpu"
        self._task: asyncio.Task[None] | None = None
        metrics.gauge("queue_capacity").set(gate.capacity)

    def engine_ready(self, version: str) -> None:
        """Record what was loaded and create the series whose labels depend on the model."""
        info = self._engine.info
        self._device = info.device
        for status in ("ok", "failed", "cancelled"):
            self._metrics.counter("inference_total").labels(self._metrics.model_label(info.model_id), status)
        self._metrics.gauge("build_info").labels(version, info.model_id, info.device, info.dtype).set(1)
        self._metrics.gauge("gpu_memory_bytes").labels(info.device).set(0)

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name="monitor")

    async def stop(self) -> None:
        """Stop the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        lag = self._metrics.histogram("event_loop_lag_seconds")
        while True:
            start_s = time.monotonic()
            await asyncio.sleep(PERIOD_S)
            lag.observe(max(time.monotonic() - start_s - PERIOD_S, 0.0))
            await self.refresh()

    async def refresh(self) -> None:
        """Update every gauge."""
        state = self._engine.state
        self._metrics.gauge("worker_up").set(state is EngineState.READY)
        for each in EngineState:
            self._metrics.gauge("worker_state").labels(each).set(each is state)
        self._metrics.gauge("queue_depth").set(self._gate.num_waiting)
        self._metrics.gauge("requests_running").set(self._gate.num_running)
        self._metrics.gateway.set_requests(waiting=self._gate.num_waiting, running=self._gate.num_running)
        if state is EngineState.READY:
            # A stuck engine must not block the metrics.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATS_TIMEOUT_S):
                    await self._read_engine()
        self._read_life()

    def _read_life(self) -> None:
        life = self._engine.life
        for kind, count in life.losses.items():
            self._metrics.counter("worker_restarts_total").labels(kind).inc(count - self._losses[kind])
        self._losses = Counter(life.losses)
        self._metrics.counter("pages_retried_total").inc(life.num_retried - self._num_retried)
        self._metrics.counter("poison_pages_total").inc(life.num_refused - self._num_refused)
        self._num_retried, self._num_refused = life.num_retried, life.num_refused
        if life.is_down and not self._has_reported_failure:
            self._has_reported_failure = True
            self._on_engine_failed()

    async def _read_engine(self) -> None:
        stats = await self._engine.stats()
        self._metrics.gauge("sequences_waiting").set(stats.waiting)
        self._metrics.gauge("sequences_running").set(stats.running)
        self._metrics.gauge("worker_seconds_since_progress").set(stats.seconds_since_progress)
        self._metrics.gauge("gpu_memory_bytes").labels(self._device).set(stats.device_memory_bytes)
        for size in stats.batch_sizes:
            self._metrics.histogram("batch_size").observe(size)
        counted = {
            "engine_steps_total": stats.steps,
            "drafted_tokens_total": stats.drafted_tokens,
            "accepted_tokens_total": stats.accepted_tokens,
        }
        # The engine counts from its own start, which resets all.
        before = self._counted if stats.steps >= self._counted["engine_steps_total"] else Counter[str]()
        for name, count in counted.items():
            self._metrics.counter(name).inc(max(0, count - before[name]))
        self._counted = Counter(counted)
