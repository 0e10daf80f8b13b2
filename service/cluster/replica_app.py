"""The app as Ray Serve calls it: requests get the lifespan's state, as uvicorn gives it; answers name the replica."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REPLICA_HEADER = b"x-served-by"
"""Which replica answered."""


class ReplicaApp:
    """Passes calls on to the app of one replica.

    Args:
        app: The service's app.
        name: The replica's name, for `REPLICA_HEADER`.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name.encode("latin-1", "replace")
        self.state: dict[str, Any] = {}
        """What the app's lifespan left for requests; empty until it has started."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            self.state = scope.setdefault("state", {})
            await self._app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REPLICA_HEADER, self._name)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app({**scope, "state": dict(self.state)}, receive, send_named)
