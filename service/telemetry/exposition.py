"""The text that a scrape gets, written once for all scrapes of a second.

Writing it takes milliseconds of the event loop, so that scraping in a tight loop would slow requests down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Exposition:
    """Every metric in Prometheus's text format."""

    def __init__(
        self,
        *,
        refresh: Callable[[], Awaitable[None]],
        render: Callable[[], bytes],
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet.

        Args:
            refresh: Updates the gauges.
            render: Writes the text.
            max_age_s: For how long a text is given again; 0 to write it for each scrape.
            clock: Monotonic seconds.
        """
        self._refresh = refresh
        self._render = render
        self._max_age_s = max_age_s
        self._clock = clock
        self._text = b""
        self._written_s: float | None = None
        self._lock = asyncio.Lock()

    async def text(self) -> bytes:
        """The text, at most `max_age_s` old; scrapes that come while it is written wait for it."""
        if not self._is_fresh():
            async with self._lock:
                if not self._is_fresh():
                    await self._refresh()
                    self._text, self._written_s = self._render(), self._clock()
        return self._text

    def _is_fresh(self) -> bool:
        return self._written_s is not None and self._clock() - self._written_s < self._max_age_s
