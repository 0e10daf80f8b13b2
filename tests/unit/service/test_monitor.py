"""What the monitor makes of the engine's life: metrics, and the end of a process whose engine stays down."""

from __future__ import annotations

import dataclasses
import time
from typing import cast

from service.admission.gate import Gate
from service.engine.process.supervision import LossKind
from service.engine.protocol import EngineHandle, EngineLife, EngineState, EngineStats
from service.monitor import Monitor
from service.telemetry.metrics import ENGINE_LOSSES, Metrics


class StubEngine:
    """An engine that has been lost."""

    state = EngineState.FAILED
    life = EngineLife({}, 0, 0, is_down=False, ready_in_s=1.0)


def value(metrics: Metrics, line: str) -> float:
    lines = metrics.render().decode().splitlines()
    return float(next(each for each in lines if each.startswith(f"deepsynth_{line} ")).rpartition(" ")[2])


async def test_losses_are_counted_once_and_an_engine_that_stays_down_ends_the_process_once() -> None:
    engine, metrics, failed = StubEngine(), Metrics(), []
    gate = Gate(capacity=1, page_slots=1, clock=time.monotonic)
    monitor = Monitor(
        engine=cast("EngineHandle", engine), gate=gate, metrics=metrics, on_engine_failed=lambda: failed.append(1)
    )
    await monitor.refresh()
    for losses, num_retried in (({"signal": 2}, 3), ({"signal": 2, "stall": 1}, 3), ({"signal": 2, "stall": 1}, 5)):
        engine.life = EngineLife(losses, num_retried, 1, is_down=False, ready_in_s=0.0)
        await monitor.refresh()
    assert value(metrics, 'worker_restarts_total{reason="signal"}') == 2
    assert value(metrics, 'worker_restarts_total{reason="stall"}') == 1
    assert value(metrics, 'worker_restarts_total{reason="exit"}') == 0
    assert value(metrics, "pages_retried_total") == 5
    assert value(metrics, "poison_pages_total") == 1
    assert failed == []
    engine.life = dataclasses.replace(engine.life, is_down=True)
    for _ in range(3):
        await monitor.refresh()
    assert failed == [1]


def test_every_kind_of_loss_has_a_series() -> None:
    assert set(ENGINE_LOSSES) == set(LossKind)


async def test_what_an_engine_counts_goes_on_after_its_restart() -> None:
    class CountingEngine(StubEngine):
        state = EngineState.READY
        readings = iter(((10, 6, 4), (15, 8, 5), (3, 2, 1)))

        async def stats(self) -> EngineStats:
            steps, drafted, accepted = next(self.readings)
            return EngineStats(EngineState.READY, steps=steps, drafted_tokens=drafted, accepted_tokens=accepted)

    metrics, gate = Metrics(), Gate(capacity=1, page_slots=1, clock=time.monotonic)
    engine = cast("EngineHandle", CountingEngine())
    monitor = Monitor(engine=engine, gate=gate, metrics=metrics, on_engine_failed=lambda: None)
    for _ in range(3):
        await monitor.refresh()
    counted = [value(metrics, name) for name in ("engine_steps_total", "drafted_tokens_total", "accepted_tokens_total")]
    assert counted == [18, 10, 6]
