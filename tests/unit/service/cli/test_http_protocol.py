"""Connections that send endless or slow headers, or read nothing, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.cli import http_protocol
from service.cli.http_protocol import MAX_HEAD_BYTES, BoundedProtocol

HEAD = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
ended: list[str] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`/` answers `ok`; `/flood` writes until the client is gone; `/full` refuses an upload before it has come; `/echo`
    gives the names of the headers and the body."""
    if scope["path"] == "/echo":
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body, has_more = body + message.get("body", b""), message.get("more_body", False)
        names = b",".join(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": names + b"|" + body})
        return
    if scope["path"] == "/full":
        await send({"type": "http.response.start", "status": 429, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"later"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/flood":
        leaving = asyncio.create_task(_left(receive))
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        ended.append("flood")
    await send({"type": "http.response.body", "body": b"ok"})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def serving(protocol: type[BoundedProtocol] = BoundedProtocol) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, ws="none", lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


class Recorded:
    """A transport that keeps what is sent by each call."""

    def __init__(self, transport: asyncio.Transport, calls: list[bytes]) -> None:
        self._transport = transport
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._calls.append(data)
        self._transport.write(data)

    def writelines(self, parts: list[bytes]) -> None:
        self._calls.append(b"".join(parts))
        self._transport.writelines(parts)


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.5)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def closed(reader: asyncio.StreamReader, seconds: float = 60.0) -> bytes:
    """What the server sends until it closes."""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
    return b""


async def flooded(reader, writer, start: bytes, piece: bytes) -> bytes:
    """What the other side says when it closes: after less than ten times the limit of what is sent without end."""
    answer = asyncio.create_task(closed(reader))
    writer.write(start)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while not answer.done() and sent < 50 * MAX_HEAD_BYTES:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
    assert sent < 10 * MAX_HEAD_BYTES
    return await answer


@pytest.mark.parametrize(
    "piece", [b"a: " + b"x" * 4000 + b"\r\n", b"x" * 4000], ids=["many headers", "one header or URL"]
)
@pytest.mark.parametrize("start", [HEAD, b"GET /"], ids=["header", "url"])
async def test_endless_head_is_refused_near_the_limit(start: bytes, piece: bytes):
    async with serving() as port, connected(port) as (reader, writer):
        answer = await flooded(reader, writer, start + (b"a: " if start == HEAD else b""), piece)
        # A URL with line feeds is wrong before it is too long.
        assert answer.partition(b"\r\n")[0] in {
            b"HTTP/1.1 431 Request Header Fields Too Large",
            b"HTTP/1.1 400 Bad Request",
            b"",
        }


CHUNKED = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("start", [b"0\r\na: ", b"0\r\n", b"3;a="], ids=["trailer", "trailers", "chunk extension"])
async def test_endless_bytes_of_a_body_that_are_none_are_refused_near_the_limit(start: bytes):
    async with serving() as port, connected(port) as (reader, writer):
        piece = b"a: xxx\r\n" * 500 if start == b"0\r\n" else b"x" * 4000
        answer = await flooded(reader, writer, CHUNKED + start, piece)
        assert answer.partition(b"\r\n")[0] in {b"HTTP/1.1 431 Request Header Fields Too Large", b""}


async def test_trailers_are_no_headers():
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(CHUNKED + b"3\r\nabc\r\n0\r\nauthorization: Bearer x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert b"host,transfer-encoding|abc" in await reader.readuntil(b"\r\n0\r\n\r\n")
        # The connection goes on.
        writer.write(CHUNKED + b"0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_very_many_headers_are_refused():
    async with serving() as port, connected(port) as (few, few_writer), connected(port) as (many, many_writer):
        few_writer.write(HEAD + b"a: b\r\n" * 200 + b"\r\n")
        many_writer.write(HEAD + b"a: b\r\n" * 300 + b"\r\n")
        assert (await few.readline()).startswith(b"HTTP/1.1 200 ")
        assert (await closed(many)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("cut", [0, 1, 40, 170, 10_000])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_client_that_offers_another_protocol_is_answered_in_this_one(
    cut: int, protocol: bytes, is_chunked: bool
):
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %b\r\nhttp2-settings: AAEAAEAA\r\n" % protocol
    body = b"0123456789" * 20_000
    framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    whole = b"POST /echo HTTP/1.1\r\nhost: localhost\r\n" + offer + framing + b"\r\n\r\n" + sent
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(whole[:cut])
        await writer.drain()
        await asyncio.sleep(0.05)
        # What follows the body is another request, which is not taken for a part of it.
        writer.write(whole[cut:] + whole[:300])
        answer = await closed(reader)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(body) == 1
    assert b"|" + body + b"\r\n0\r\n\r\n" in answer


async def test_a_request_without_a_body_may_offer_another_protocol():
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(b"GET /echo HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert b"|\r\n" in await closed(reader)


@pytest.mark.usefixtures("short_head")
async def test_slow_heads_and_silent_connections_are_ended():
    async with serving() as port, connected(port) as (silent, _), connected(port) as (slow, writer):
        writer.write(HEAD)
        assert await closed(silent) == b""
        assert (await closed(slow)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("short_head")
async def test_large_and_slow_bodies_are_not_taken_for_heads():
    async with serving() as port, connected(port) as (reader, writer):
        size = 4 * MAX_HEAD_BYTES
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % size + b"x" * (size // 2))
        await asyncio.sleep(0.8)
        writer.write(b"x" * (size // 2))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_serves_many_requests():
    async with serving() as port, connected(port) as (reader, writer):
        for _ in range(40):
            writer.write(HEAD + b"a: " + b"x" * 3000 + b"\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"0\r\n\r\n")


async def test_requests_in_a_row_are_answered_in_a_row_and_very_many_are_not_kept():
    async with serving() as port, connected(port) as (few, few_writer), connected(port) as (many, many_writer):
        few_writer.write((HEAD + b"\r\n") * 20)
        for _ in range(20):
            assert (await few.readline()).startswith(b"HTTP/1.1 200 ")
            await few.readuntil(b"0\r\n\r\n")
        many_writer.write((HEAD + b"\r\n") * 1000)
        answers = await closed(many)
    assert answers.count(b"HTTP/1.1 ") < 100
    assert b"HTTP/1.1 400 " in answers


async def test_a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_protocol, "STALL_S", 2.0)
    ended.clear()
    async with serving() as port, connected(port) as (_, writer), connected(port) as (slow, slow_writer):
        writer.write(b"GET /flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
        slow_writer.write(b"GET /flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(60):
            while not ended:
                assert await slow.read(1 << 20)
                await asyncio.sleep(0.02)
        assert ended == ["flood"]
        assert await slow.read(1 << 16)


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("framing", [b"content-length: %d", b"transfer-encoding: chunked"])
async def test_a_client_that_was_refused_while_it_uploads_can_read_why(size: int, framing: bytes):
    is_chunked = framing.startswith(b"transfer")
    size = min(size, http_protocol.MAX_UNDECLARED_LINGER_BYTES // 2) if is_chunked else size
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(
            b"POST /full HTTP/1.1\r\nhost: localhost\r\n" + (framing if is_chunked else framing % size) + b"\r\n\r\n"
        )
        await asyncio.sleep(0.05)
        body = b"x" * size
        pieces = [b"%x\r\n" % size + body + b"\r\n", b"0\r\n\r\n"] if is_chunked else [body]
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(60):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"later" in answer


async def test_a_refused_upload_without_end_is_cut_off():
    async with serving() as port, connected(port) as (_, writer):
        writer.write(b"POST /full HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 40 * http_protocol.MAX_UNDECLARED_LINGER_BYTES:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
                await writer.drain()
    assert sent < 20 * http_protocol.MAX_UNDECLARED_LINGER_BYTES


async def test_a_refused_upload_that_stalls_is_closed_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.3)
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(b"POST /full HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n")
        assert (await closed(reader)).endswith(b"later\r\n0\r\n\r\n")
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)


async def test_head_and_body_of_an_answer_are_sent_together() -> None:
    calls: list[bytes] = []

    class Recording(BoundedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
            super().connection_made(cast("asyncio.Transport", Recorded(transport, calls)))

    async with serving(Recording) as port, connected(port) as (reader, writer):
        for num_answers in (1, 2):
            writer.write(HEAD + b"\r\n")
            async with asyncio.timeout(60):
                answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert calls[-1] == answer
            assert len(calls) == num_answers
        writer.write(HEAD + b"connection: close\r\n\r\n")
        assert (await closed(reader)).endswith(b"\r\n0\r\n\r\n")
