"""How long the engine has made no progress, as far as the service was awake to see it. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable


class StallWatch:
    """Adds up the time in which nothing has moved.

    Args:
        max_gap_s: Longest time between two looks that counts. Beyond it the service itself did not run: its container
            was frozen, or its machine slept.
        clock: Monotonic seconds.
    """

    def __init__(self, max_gap_s: float, clock: Callable[[], float]) -> None:
        self._max_gap_s = max_gap_s
        self._clock = clock
        self._looked_s = clock()
        self._mark: Hashable = None
        self.stalled_s = 0.0

    def look(self, mark: Hashable) -> float:
        """Look again.

        Args:
            mark: Differs from the last one if there was progress, or nothing to do.

        Returns:
            Seconds without progress.
        """
        now_s = self._clock()
        elapsed_s, self._looked_s = min(now_s - self._looked_s, self._max_gap_s), now_s
        self.stalled_s = self.stalled_s + elapsed_s if mark == self._mark else 0.0
        self._mark = mark
        return self.stalled_s
