"""Which texts are updated in which step: each often enough, and never all of them in one step.

Detokenisation costs the host more than taking a token, so a text is updated for several tokens at once, and texts take
turns, as updating all of them in one step would keep the device waiting. Pure; used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

TEXT_INTERVAL_S = 0.02
"""Longest time between two updates of a text; the process sends its events at the same pace."""

T = TypeVar("T")


class DetokenizationThrottle:
    """Round robin over the running sequences, at a pace that does not depend on how long steps take."""

    def __init__(self) -> None:
        self._due = 0.0
        self._next = 0

    def take(self, running: Sequence[T], elapsed_s: float) -> Sequence[T]:
        """Choose whose text is updated now.

        Args:
            running: All running sequences, oldest first; one that leaves may cost its successor a turn.
            elapsed_s: Time since the last call.

        Returns:
            Some of them, none twice.
        """
        count = len(running)
        self._due = min(self._due + count * elapsed_s / TEXT_INTERVAL_S, count)
        num_turns = int(self._due)
        if not num_turns:
            return ()
        self._due -= num_turns
        first = self._next % count
        self._next = first + num_turns
        return [*running[first : first + num_turns], *running[: max(0, first + num_turns - count)]]
