"""The record of one request, independent of the web framework."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from service.errors import DeepSynthError

SCOPE_KEY = "deepsynth"
"""Key of the record in the request's ASGI scope."""


@dataclass(slots=True)
class RequestRecord:
    """What the service knows about a request in progress."""

    request_id: str
    started_s: float
    resources: ExitStack = field(default_factory=ExitStack)
    """Closed when the response has been sent or the client is gone."""
    error: DeepSynthError | None = None
    status: int | None = None
    key_name: str | None = None
    """Of the caller's key; None without one."""
    address: str = ""
    """Of the caller, or of the proxy before it."""
    is_body_complete: bool = False

    @property
    def client(self) -> str:
        """Whose turn the request takes: the key's, else the address's. No name of one is a name of the other."""
        return f"key {self.key_name}" if self.key_name is not None else f"address {self.address}"

    def fail(self, error: DeepSynthError) -> None:
        """Set the error, unless there is one already."""
        if self.error is None:
            self.error = error


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    """The record that the middleware created for a request."""
    record: RequestRecord = scope[SCOPE_KEY]
    return record
