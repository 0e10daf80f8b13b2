"""Progress of a reader: a line on a terminal, or a few lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Counts pages. On a terminal one line is rewritten; elsewhere a line is written every `log_every_s`."""

    def __init__(
        self,
        label: str,
        total: int,
        stream: TextIO,
        log_every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._every_s = 0.2 if self._is_terminal else log_every_s
        self._clock = clock
        self._start_s = clock()
        self._shown_s = self._start_s
        self._done = 0

    def advance(self) -> None:
        """Count a page."""
        self._done += 1
        now = self._clock()
        if self._done < self._total and now - self._shown_s < self._every_s:
            return
        self._shown_s = now
        self._stream.write(self._line(now - self._start_s))
        self._stream.flush()

    def _line(self, passed_s: float) -> str:
        left_s = passed_s / self._done * (self._total - self._done)
        text = f"{self._label}: {self._done}/{self._total} pages, {passed_s:.0f} s, {left_s:.0f} s to go"
        if not self._is_terminal:
            return f"{text}\n"
        return f"\r{text}\033[K" + ("\n" if self._done == self._total else "")
