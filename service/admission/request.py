"""What is known of one request while it lasts; free of any web framework."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from service.errors import DeepSynthError

SCOPE_KEY = "deepsynth"
"""Where the outermost wrapper keeps the record in the request's ASGI scope."""


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request while it lasts."""

    request_id: str
    started_s: float
    resources: ExitStack = field(default_factory=ExitStack)
    """Closed when the response has gone out, or nobody waits for it any more."""
    error: DeepSynthError | None = None
    status: int | None = None
    is_body_complete: bool = False

    def fail(self, error: DeepSynthError) -> None:
        """Take an error as the outcome; the first one stays."""
        if self.error is None:
            self.error = error


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    """The record that the wrapper made for a request."""
    record: RequestRecord = scope[SCOPE_KEY]
    return record
