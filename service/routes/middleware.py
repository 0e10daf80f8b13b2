"""The outermost middleware: request ids, the last exception handler, one log line and one count per request.

Plain ASGI, because Starlette's BaseHTTPMiddleware hides the client's disconnect from handlers.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission.request import SCOPE_KEY, RequestRecord
from service.errors import DeepSynthError, InternalError, InvalidHostError, NotFoundError, let_go
from service.routes.ports import AdminPort
from service.routes.problems import CHAT_PATH, MISTRAL_PATH
from service.telemetry import logs
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

OCR_ROUTES = frozenset(
    {
        ("POST", "/ocr"),
        ("POST", "/api/ocr/run"),
        ("POST", CHAT_PATH),
        ("POST", MISTRAL_PATH),
        ("PUT", "/process"),
    }
)
"""Routes that read a document; `deepsynth_requests_total` and its kin count these."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


def _method(given: str) -> str:
    """The method that routes see.

    HEAD is a GET whose body is left out, on every route. A method that no route has is answered as OPTIONS is: with 405
    and those that the route has. It is not passed on, since methods are labels of the HTTP metrics.
    """
    return "GET" if given == "HEAD" else given if given in METHODS else "OPTIONS"


class RequestContextMiddleware:
    """Wraps the whole app and records how requests end."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        respond: Callable[[DeepSynthError, Scope], Response],
        allowed_hosts: frozenset[str] = frozenset(),
        admin_port: AdminPort | None = None,
    ) -> None:
        """Wrap an app.

        Args:
            app: The app.
            metrics: Counts how requests end.
            respond: Makes the response of an error.
            allowed_hosts: Names for the header Host, in lower case and without port; any if empty.
            admin_port: Of operators; None if they use the same as clients.
        """
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._admin_port = admin_port
        self._metrics = metrics
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        client = scope.get("client")
        record = RequestRecord(request_id, time.monotonic(), address=client[0] if client else "")
        scope[SCOPE_KEY] = record
        token = logs.request_id.set(request_id)
        exchange = _Exchange(scope, headers, receive, send, record)
        try:
            with record.resources:
                await self._serve(scope, headers, exchange, record)
        finally:
            self._finish(scope, record)
            let_go(record.error)
            logs.request_id.reset(token)

    async def _serve(self, scope: Scope, headers: Headers, exchange: _Exchange, record: RequestRecord) -> None:
        error: DeepSynthError | None = None
        if not self._is_host_allowed(scope, headers):
            error = InvalidHostError()
        elif self._admin_port is not None and not self._admin_port.serves(scope):
            error = NotFoundError()
        else:
            try:
                await self._app({**scope, "method": _method(scope["method"])}, exchange.receive, exchange.send)
            except Exception:
                logger.exception("request failed")
                error = InternalError()
                record.fail(error)
        if error is not None and record.status is None:
            await self._respond(error, scope)(scope, exchange.receive, exchange.send)

    def _is_host_allowed(self, scope: Scope, headers: Headers) -> bool:
        """Whether the header Host is there once (RFC 9112, 3.2), well-formed and allowed.

        Libraries build URLs from it, and a malicious one can change the path that they see.
        """
        given = headers.getlist("host")
        if not given and scope["http_version"] == "1.0":
            return True
        if len(given) != 1 or (host := _HOST.fullmatch(given[0])) is None:
            return False
        return not self._allowed_hosts or host["name"].lower() in self._allowed_hosts

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        duration_s = time.monotonic() - record.started_s
        error = record.error
        if error is None and record.status is None:
            # Cancelled before any response: the process is being stopped.
            error = InternalError()
        outcome, code = ("ok", "ok") if error is None else (error.outcome, error.code)
        reads = (scope["method"], scope["path"]) in OCR_ROUTES
        if reads:
            self._metrics.counter("requests_total").labels(outcome, code).inc()
            self._metrics.histogram("request_duration_seconds").labels(outcome).observe(duration_s)
            if error is not None and error.rejection is not None:
                self._metrics.counter("image_rejected_total").labels(error.rejection).inc()
        level = logging.INFO if reads else logging.DEBUG
        fields = {"status": record.status, "outcome": outcome, "code": code, "duration_s": round(duration_s, 4)}
        if record.key_name is not None:
            fields["key"] = record.key_name
        logger.log(level, "request", extra={"fields": fields})


class _Exchange:
    """Observes the receive and send callables of one request."""

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, send: Send, record: RequestRecord) -> None:
        self._receive = receive
        self._send = send
        self._record = record
        self._wants_body = scope["method"] != "HEAD"
        self._has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._record.is_body_complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._record.request_id
            headers["x-content-type-options"] = "nosniff"
            headers.setdefault("cache-control", "no-store")
            if self._has_body and not self._record.is_body_complete:
                # The rest of the upload will not be read, so the connection cannot be reused.
                headers["connection"] = "close"
        elif message["type"] == "http.response.body" and not self._wants_body:
            message = {**message, "body": b""}
        await self._send(message)
