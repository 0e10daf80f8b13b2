"""The app of a replica: the lifespan's state reaches requests, and answers name the replica."""

from __future__ import annotations

from typing import Any

from starlette.types import Message, Receive, Scope, Send

from service.cluster.replica_app import ReplicaApp


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        scope["state"]["services"] = "built"
        await send({"type": "lifespan.startup.complete"})
        return
    scope["state"]["mine"] = "of this request alone"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": scope["state"]["services"].encode()})


async def receive() -> Message:
    return {"type": "http.request"}


async def call(replica: ReplicaApp, scope: dict[str, Any]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await replica(scope, receive, send)
    return sent


async def test_requests_get_the_state_of_the_lifespan_and_answers_the_name() -> None:
    replica = ReplicaApp(app, "replica-1")
    assert await call(replica, {"type": "lifespan"}) == [{"type": "lifespan.startup.complete"}]
    start, body = await call(replica, {"type": "http"})
    assert body["body"] == b"built"
    assert start["headers"] == [(b"a", b"b"), (b"x-served-by", b"replica-1")]
    assert replica.state == {"services": "built"}


async def test_state_that_the_server_brings_is_the_one_that_is_filled() -> None:
    replica, state = ReplicaApp(app, "replica-1"), {}
    await call(replica, {"type": "lifespan", "state": state})
    assert state == {"services": "built"}
