"""When the engine counts as lost, how it can be, and how it comes back: plain values. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Supervision:
    """When an engine counts as lost and how it is restarted; all times in seconds."""

    start_timeout_s: float = 300.0
    """From launch to ready: loading weights and the warm-up page."""
    stall_s: float = 60.0
    """Longest time without a step while pages wait, or without an answer to a ping while none do."""
    check_s: float = 0.5
    """Between two checks of the engine; each sends a ping unless one is unanswered."""
    max_restarts: int = 5
    """Restarts in a row without health between; after that the engine stays down."""
    healthy_s: float = 10.0
    """An engine that was ready for so long, or has finished a page, was healthy."""
    backoff_s: float = 0.5
    """Before the first restart; doubles each time."""
    max_backoff_s: float = 30.0
    hold_s: float = 30.0
    """Longest time for which pages wait for a lost engine. If it will take longer, they fail at once."""
    quarantine_s: float = 600.0
    """How long pages are remembered that were in work when the engine died."""
    stop_grace_s: float = 5.0


class LossKind(StrEnum):
    """How an engine was lost, as metrics count it."""

    EXIT = "exit"
    SIGNAL = "signal"
    EXCEPTION = "exception"
    STALL = "stall"
    STOPPED = "stopped"
    STARTUP = "startup"


@dataclass(frozen=True, slots=True)
class Loss:
    """Why the engine was lost."""

    kind: LossKind
    reason: str
    stalled_s: float = 0.0
