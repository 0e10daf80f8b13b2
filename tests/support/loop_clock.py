"""The event loop's clock, put forward by a test: a long time passes at once, however busy the machine is."""

from __future__ import annotations

import asyncio


class LoopClock:
    """The clock of the running loop, for as long as the loop lives."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._read = loop.time
        self._ahead_s = 0.0
        loop.time = self._time  # type: ignore[method-assign] # timers ask the loop itself

    def _time(self) -> float:
        return self._read() + self._ahead_s

    def forward(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._ahead_s += seconds
