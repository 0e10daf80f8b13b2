"""An answer as server-sent events: `delta` while a page is read, `page` when it is finished, then `answer`, or `error`.

A `page` event says what became of the page, and replaces its deltas. After all pages comes `answer`.

An error before the first text still gets its own HTTP status; after it, the stream ends with an `error` event that
holds the same problem.
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

Work = Callable[[DeltaSink, PageSink], Coroutine[Any, Any, OcrAnswer]]


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def format_event(name: str, data: str) -> bytes:
    """One server-sent event; `data` is JSON and so has no line break."""
    return f"event: {name}\ndata: {data}\n\n".encode()


class ReadingStream(Response):
    """Reads the document while the response is being sent."""

    media_type = MEDIA_TYPE

    def __init__(self, work: Work, *, record: RequestRecord) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        # The base class sets the length of an empty body; the real one is not known.
        del self.headers["content-length"]
        self._work = work
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
            await self._send_event(send, "error", json.dumps(problem(error, self._record.request_id)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, send: Send) -> None:
        events: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
        failed: list[PageResult] = []

        def on_delta(page: int, text: str) -> None:
            events.put_nowait(("delta", json.dumps({"page": page, "text": text})))

        def on_page(page: PageResult) -> None:
            failed.append(page)
            # Held back as long as every page has failed: if that stays so, the request has, and gets its own status.
            if page.error is None or self._has_begun or not events.empty():
                for each in failed:
                    events.put_nowait(("page", to_page_answer(each).model_dump_json()))
                failed.clear()

        reading = asyncio.create_task(self._work(on_delta, on_page))
        reading.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                await self._send_event(send, *event)
            await self._send_event(send, "answer", reading.result().model_dump_json())
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait({reading})

    async def _send_event(self, send: Send, name: str, data: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": format_event(name, data), "more_body": True})
