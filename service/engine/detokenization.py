"""Whose text is brought up to date in which step: each often enough, no step with all of them.

Making a text costs the host more than taking a token does, so it is done for several tokens at once, and in turns, for
a step that made all texts would keep the device waiting. Pure; used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

TEXT_INTERVAL_S = 0.02
"""Each text has its turn within this time; the process's reports travel at the same pace."""

T = TypeVar("T")


class TextTurns:
    """Goes round whatever runs, at a pace that does not depend on how long steps are."""

    def __init__(self) -> None:
        self._due = 0.0
        self._next = 0

    def take(self, running: Sequence[T], elapsed_s: float) -> Sequence[T]:
        """Choose whose turn it is.

        Args:
            running: All that run, those who came later behind; one that leaves may cost its successor a turn.
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
