"""uvicorn's HTTP protocol with the bounds that it lacks: size and time of headers, and clients that stop reading.

It also closes politely: a client whose upload was refused before its end can read why. A plain close would answer what
is still coming with a reset (RFC 9112, 9.6), and many clients then report that instead of the 429.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers, and of what comes between and after the chunks of its body; the parser has no limit,
and keeps what it was given."""
MAX_HEADERS = 256
MAX_PIPELINED = 32
"""Requests of a connection that wait for answers to those before; each takes far more memory than its bytes."""
HEAD_S = 15.0
"""Until the headers of a connection's first request, and of each request that has begun, are complete."""
STALL_S = 30.0
"""How long a client may read nothing while an answer waits for it; then its connection is cut."""

LINGER_S = 5.0
"""How long the rest of a refused upload is received, and thrown away, before its connection is closed."""
MAX_LINGER_BYTES = 32 * 1024 * 1024
"""Of the rest of an upload that said how long it is."""
MAX_UNDECLARED_LINGER_BYTES = 512 * 1024
"""Of one that did not, or that is longer."""


class _ClosingTransport:
    """A transport that asks its protocol how to close; uvicorn closes in many places.

    It sends what is written in one turn of the event loop together, such as the head of an answer and its body.
    """

    def __init__(self, transport: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._unsent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.is_lingering or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self._unsent:
            self._protocol.loop.call_soon(self._send)
        self._unsent.append(data)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.writelines(unsent)

    def close(self) -> None:
        self._send()
        if not self._protocol.linger(self._transport):
            self._transport.close()


_FRAMING = (b"content-length", b"transfer-encoding")


class _Body:
    """What a parser tells of the one body that it is for."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol

    def on_body(self, body: bytes) -> None:
        if self._protocol.cycle.more_body:
            self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()


class _SteadyParser:
    """A parser that stays with HTTP/1.1 where a client offers another protocol (RFC 9110, 7.8).

    Java's HttpClient offers HTTP/2 with each first request of a connection. httptools then takes the body for the other
    protocol.
    """

    def __init__(self, protocol: BoundedProtocol, parser: httptools.HttpRequestParser) -> None:
        self._protocol = protocol
        self._parser = parser
        self._reads_body = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if not self._reads_body:
                self._reads_body = True
                self._begin_body()
                self.feed_data(data[offer.args[0] :])

    def _begin_body(self) -> None:
        """Go on with a parser that is told how long the body is, and nothing of other protocols."""
        cycle = self._protocol.cycle
        # This parser is for one body, so the next request has to come on another connection.
        cycle.more_body, cycle.keep_alive = True, False
        framing = [(name, value) for name, value in cycle.scope["headers"] if name in _FRAMING]
        self._parser = httptools.HttpRequestParser(_Body(self._protocol))
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % each for each in framing) + b"\r\n")


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.parser: Any = _SteadyParser(self, self.parser)
        self._head_bytes = 0
        self._has_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._body_bytes = 0
        self._has_body = False
        """Whether what came last had a piece of a body."""
        self._rest_bytes = 0
        """Of a refused upload, that are still received."""

    @property
    def is_lingering(self) -> bool:
        """Whether the last answer was sent, and the rest of an upload is thrown away."""
        return self._linger_timer is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start to wait for the first request."""
        super().connection_made(cast("asyncio.Transport", _ClosingTransport(transport, self)))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse headers that are too long."""
        if self.is_lingering:
            self._rest_bytes -= len(data)
            if self._rest_bytes <= 0:
                self.transport.close()
            return
        self._has_body = False
        super().data_received(data)
        is_framing = not self._has_body and self.cycle is not None and self.cycle.more_body
        if self._has_begun or is_framing:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request has begun."""
        super().on_message_begin()
        self._head_bytes, self._has_begun, self._body_bytes = 0, True, 0
        self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete; those that follow the body are not the request's (RFC 9110, 6.5.1)."""
        if self._has_begun:
            if len(self.headers) == MAX_HEADERS:
                raise ValueError("too many headers")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        if len(self.pipeline) == MAX_PIPELINED:
            raise ValueError("too many requests in a row")
        self._has_begun, self._head_bytes = False, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._has_body = True
        self._body_bytes += len(body)
        super().on_body(body)

    def linger(self, transport: asyncio.Transport) -> bool:
        """End the answer of an upload that is still coming, and receive its rest for a while.

        Args:
            transport: The connection.

        Returns:
            False if there is nothing to wait for: the connection is to be closed at once.
        """
        is_uploading = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        if self.is_lingering or not is_uploading or transport.is_closing():
            return False
        self._rest_bytes = self._bytes_to_come()
        self._linger_timer = self.loop.call_later(LINGER_S, transport.close)
        transport.write_eof()
        self.flow.resume_reading()
        return True

    def _bytes_to_come(self) -> int:
        declared = next((value for name, value in self.cycle.scope["headers"] if name == b"content-length"), b"")
        rest = int(declared) - self._body_bytes if declared.isdigit() else -1
        return rest if 0 < rest <= MAX_LINGER_BYTES else MAX_UNDECLARED_LINGER_BYTES

    def pause_writing(self) -> None:
        """The client does not read: the buffers are full."""
        self.flow.pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.flow.resume_writing()

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._has_begun:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        self._cancel_timers()
        if not self.transport.is_closing():
            line = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(line.encode())
            self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
