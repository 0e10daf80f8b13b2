"""The fake engine in a thread, with strings attached: tests hold it, kill it, and see what it was asked to do."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from service.engine.fake import FakeEngine
from service.engine.process.engines import ThreadEngine
from service.engine.process.supervisor import ENGINE_LOST
from service.engine.protocol import (
    Engine,
    EngineInfo,
    EngineState,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
)


class HeldEngine:
    """Passes everything on to a fake engine, except steps while it is held."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.num_until_held: int | None = None
        """Sequences that may still end; None for any number."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def step(self) -> list[SequenceEvent]:
        if self.num_until_held is not None and self.num_until_held <= 0:
            time.sleep(0.001)
            return []
        events = self._engine.step()
        if self.num_until_held is not None:
            self.num_until_held -= sum(not isinstance(event, SequenceDelta) for event in events)
        return events


class SteeredEngine(ThreadEngine):
    """While held, it takes sequences but does not step; `lose` plays the engine's death, for good."""

    def __init__(self, engine: FakeEngine | None = None, *, remembers: bool = True) -> None:
        self.fake = engine or FakeEngine()
        self._held = HeldEngine(self.fake)
        self._remembers = remembers
        self.submitted: list[SequenceRequest] = []
        self.cancelled: list[str] = []
        self.num_deltas = 0
        super().__init__(lambda: cast("Engine", self._held))

    @property
    def info(self) -> EngineInfo:
        return self.fake.info

    def hold(self, *, after: int = 0) -> None:
        """Make no further step, once so many sequences have ended."""
        self._held.num_until_held = after

    def release(self) -> None:
        self._held.num_until_held = None

    def lose(self) -> None:
        self._state = EngineState.FAILED
        self._fail_open("told to die")

    def forget_adapter(self, model_id: str) -> None:
        """As if it had not come back with an engine that was lost."""
        self.fake.unload_adapter(model_id)
        self._adapter_calls.forget(model_id)

    async def submit(self, request: SequenceRequest) -> AsyncIterator[SequenceEvent]:
        if self._state is not EngineState.READY:
            yield SequenceFailure(request.sequence_id, ENGINE_LOST, "died before")
            return
        if self._remembers:
            self.submitted.append(request)
        is_final = False
        try:
            events = cast("AsyncGenerator[SequenceEvent, None]", super().submit(request))
            async with aclosing(events):
                async for event in events:
                    is_final = not isinstance(event, SequenceDelta)
                    self.num_deltas += not is_final
                    yield event
        finally:
            if self._remembers and not is_final:
                self.cancelled.append(request.sequence_id)
