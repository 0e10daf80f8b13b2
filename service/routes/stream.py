"""Answers as server-sent events, sent while the document is being read.

An error before the first event still gets its own HTTP status; after it, the stream ends with an event with the same
error. `ReadingStream` is the stream of `POST /ocr`: `delta` while a page is read, `page` when it is finished, then
`answer`, or `error`. A `page` event says what became of the page, and replaces its deltas.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.admission.deadline import run_to_outcome
from service.admission.request import RequestRecord
from service.errors import DeepSynthError
from service.ocr.answer import to_page_answer
from service.ocr.reader import DeltaSink, PageResult, PageSink
from service.routes.problems import problem
from service.schemas import OcrAnswer

MEDIA_TYPE = "text/event-stream"

Emit = Callable[[bytes], None]
"""Takes an event that is to be sent."""
Work = Callable[[DeltaSink, PageSink], Coroutine[Any, Any, OcrAnswer]]


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def format_event(name: str, data: str) -> bytes:
    """One server-sent event; `data` is JSON and so has no line break."""
    return f"event: {name}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Sends what its work emits.

    Args:
        work: Emits every event, and ends after the last one.
        error_event: The event of an error, from it and the request's id.
        record: Of the request.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        work: Callable[[Emit], Coroutine[Any, Any, None]],
        *,
        error_event: Callable[[DeepSynthError, str], bytes],
        record: RequestRecord,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        # The base class sets the length of an empty body; the real one is not known.
        del self.headers["content-length"]
        self._work = work
        self._error_event = error_event
        self._record = record
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to its end."""
        try:
            await run_to_outcome(self._run(send), disconnected=partial(until_disconnect, receive))
        except DeepSynthError as error:
            if not self._has_begun:
                raise
            self._record.fail(error)
            await self._send_event(send, self._error_event(error, self._record.request_id))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, send: Send) -> None:
        events: asyncio.Queue[bytes | None] = asyncio.Queue()
        reading = asyncio.create_task(self._work(events.put_nowait))
        reading.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                await self._send_event(send, event)
            reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait({reading})

    async def _send_event(self, send: Send, event: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": event, "more_body": True})


def _error_event(error: DeepSynthError, request_id: str) -> bytes:
    return format_event("error", json.dumps(problem(error, request_id)))


class ReadingStream(EventStream):
    """The stream of `POST /ocr`; `work` gives the answer for the last event."""

    def __init__(self, work: Work, *, record: RequestRecord) -> None:
        async def run(emit: Emit) -> None:
            failed: list[PageResult] = []
            has_begun = False

            def send(name: str, data: str) -> None:
                nonlocal has_begun
                has_begun = True
                emit(format_event(name, data))

            def on_delta(page: int, text: str) -> None:
                send("delta", json.dumps({"page": page, "text": text}))

            def on_page(page: PageResult) -> None:
                failed.append(page)
                # Held back as long as every page has failed: if that stays so, the request has its own status.
                if page.error is None or has_begun:
                    for each in failed:
                        send("page", to_page_answer(each).model_dump_json())
                    failed.clear()

            send("answer", (await work(on_delta, on_page)).model_dump_json())

        super().__init__(run, error_event=_error_event, record=record)
