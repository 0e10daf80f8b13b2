"""Reads files with a running service, over HTTP. Uses the API alone, as any client could."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import httpx
from pydantic import ValidationError
from tqdm import tqdm

from service.cli.inputs import InputFile
from service.cli.reading import (
    FileError,
    OptionError,
    Reading,
    ReadOptions,
    ServiceUnreachableError,
    error_of,
    explain,
    load,
)
from service.errors import UploadTooLargeError
from service.ocr.formats.output_format import OutputFormat
from service.ocr.page_notes import NOTES_HEADER, from_header, notes_of
from service.schemas import STATUS_HEADER, OcrAnswer

DEFAULT_JOBS = 4
MAX_FILE_BYTES = 1024 * 1024 * 1024
"""What `DEEPSYNTH_MAX_UPLOAD_BYTES` can be at most; the service enforces its own limit."""
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 3600.0
"""A long document is answered when its last page is read."""
PATIENCE_S = 600.0
"""How long a file is sent again while the service is at capacity, and how long the service may be away."""
_MAX_WAIT_S = 60.0
_WAIT_S = 1.0
"""Where the service does not say how long to wait."""
_RETRIED = {429, 503}
_NO_ROUTE = {404, 405}
_NO_ROUTE_CODES = {"not_found", "method_not_allowed"}
_NOT_THERE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)
_MAX_ATTEMPTS_UNANSWERED = 3
_MAX_ATTEMPTS_UNEXPLAINED = 4
"""Errors without a problem of the service: something between has lost the process that read the document."""
MODEL_HEADER = "serve-multiplexed-model-id"
"""By which Ray Serve finds a replica that holds the adapter; ignored elsewhere."""


class RemoteReader:
    """Sends files to `POST /ocr`, and again after `Retry-After` when the service has no room."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        options: ReadOptions,
        output: OutputFormat | None,
        jobs: int,
        standard_input: bytes,
    ) -> None:
        self.jobs = jobs
        self._client = client
        self._output = output
        self._fields = _form(options, output)
        self._standard_input = standard_input
        self._has_answered = False
        self._is_ours = False
        self._away_since_s: float | None = None

    async def read(self, file: InputFile) -> Reading:
        """Send a file and take the answer apart, see `FileReader`."""
        try:
            data = await asyncio.to_thread(load, file, self._standard_input, MAX_FILE_BYTES)
        except UploadTooLargeError as error:
            raise error_of(error) from error
        response = await self._send_until_taken(file.place.name, data)
        if response.is_error:
            raise self._problem(response)
        self._is_ours = True
        if self._output is not None and self._output.name != "json":
            notes = from_header(response.headers.get(NOTES_HEADER, ""))
            is_partial = response.headers.get(STATUS_HEADER) == "partial"
            return Reading(None, response.content, is_partial, tuple(notes))
        try:
            answer = OcrAnswer.model_validate_json(response.content)
        except ValidationError:
            raise ServiceUnreachableError(f"{shown(self._client.base_url)}: not a DeepSynth OCR service") from None
        body = response.content if self._output else None
        return Reading(answer, body, answer.status == "partial", tuple(notes_of(answer.pages)))

    async def _send_until_taken(self, name: str, data: bytes) -> httpx.Response:
        """The first answer that is not 'retry later', or the last one of `PATIENCE_S`."""
        end_s = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            try:
                response = await self._client.post("ocr", files={"file": (name, data)}, data=self._fields)
            except httpx.TransportError as error:
                # A service that has no room may close the connection before it has taken the file.
                if not self._has_answered and (isinstance(error, _NOT_THERE) or attempt == _MAX_ATTEMPTS_UNANSWERED):
                    raise ServiceUnreachableError(
                        f"{shown(self._client.base_url)}: {type(error).__name__}; is a service running there?"
                    ) from error
                wait_s = _WAIT_S
                if isinstance(error, _NOT_THERE):
                    self._note_absence(error)
                elif time.monotonic() + wait_s > end_s or isinstance(error, httpx.ReadTimeout):
                    raise FileError("connection_lost", f"The connection failed: {type(error).__name__}.") from error
            else:
                self._note_answer()
                wait_s = retry_after_s(response.headers.get("retry-after"))
                has_ended = attempt >= _MAX_ATTEMPTS_UNEXPLAINED or not _is_unexplained(response)
                if (response.status_code not in _RETRIED and has_ended) or time.monotonic() + wait_s > end_s:
                    return response
            await asyncio.sleep(wait_s)
        raise AssertionError("not reached")

    def _problem(self, response: httpx.Response) -> FileError | OptionError | ServiceUnreachableError:
        try:
            found: Any = response.json()
        except ValueError:
            found = None
        code = str(found.get("code", "")) if isinstance(found, dict) else ""
        is_problem = bool(code) and "title" in found
        is_no_route = response.status_code in _NO_ROUTE and (not is_problem or code in _NO_ROUTE_CODES)
        if not self._is_ours and (is_no_route or (code and not is_problem)):
            # With /v1 at its end the address is that of another protocol, whose errors have no title.
            return ServiceUnreachableError(
                f"{shown(self._client.base_url)}: no POST /ocr there; give the address without /ocr or /v1"
            )
        if not is_problem:
            # A proxy's page, say.
            return FileError(f"http_{response.status_code}", f"The server answered {response.status_code}.")
        self._is_ours = True
        return explain(code, str(found["title"]), found)

    def _note_absence(self, error: httpx.TransportError) -> None:
        """The service was there and is not now: every other file would wait as long as this one."""
        if self._away_since_s is None:
            self._away_since_s = time.monotonic()
            minutes = PATIENCE_S / 60
            _tell(f"{shown(self._client.base_url)} does not answer; trying again for {minutes:.0f} minutes.")
        elif time.monotonic() - self._away_since_s > PATIENCE_S:
            raise ServiceUnreachableError(
                f"{shown(self._client.base_url)}: {type(error).__name__}; it has stopped answering"
            ) from error

    def _note_answer(self) -> None:
        self._has_answered = True
        if self._away_since_s is not None:
            self._away_since_s = None
            _tell(f"{shown(self._client.base_url)} answers again.")


def _tell(text: str) -> None:
    """Write a line above the bar."""
    if sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)


def _form(options: ReadOptions, output: OutputFormat | None) -> dict[str, str]:
    given = {**asdict(options), "format": "json" if output is None else output.name}
    # Only what was asked for: a service of another version may not know the rest.
    return {
        name: "true" if value is True else str(value)
        for name, value in given.items()
        if value is not None and value is not False
    }


def retry_after_s(header: str | None) -> float:
    """Read a header `Retry-After` (RFC 9110, 10.2.3: a number of seconds, or a date).

    Args:
        header: Its value, if there is one.

    Returns:
        Seconds to wait, from `_WAIT_S` to `_MAX_WAIT_S`.
    """
    if header is None:
        return _WAIT_S
    try:
        wait_s = float(int(header))
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return _WAIT_S
    return min(max(wait_s, _WAIT_S), _MAX_WAIT_S)


def _is_unexplained(response: httpx.Response) -> bool:
    return response.is_server_error and "json" not in response.headers.get("content-type", "")


def shown(url: httpx.URL) -> str:
    """An address without the password that may be in it."""
    return str(url.copy_with(userinfo=b"")).rstrip("/")


@contextlib.asynccontextmanager
async def remote_reader(
    url: str,
    options: ReadOptions,
    output: OutputFormat | None,
    jobs: int | None,
    standard_input: bytes,
    key: str | None = None,
) -> AsyncIterator[RemoteReader]:
    """Keep connections to a service in the block.

    Args:
        url: Address of the service; it may have a path, where a proxy serves it under one.
        options: How to read.
        output: None for the answer alone.
        jobs: Files at once; None for `DEFAULT_JOBS`.
        standard_input: Its content, for the input `-`.
        key: The key that the service asks for.

    Yields:
        The reader.
    """
    jobs = jobs or DEFAULT_JOBS
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    limits = httpx.Limits(max_connections=jobs)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if options.model_id is not None:
        headers[MODEL_HEADER] = options.model_id
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:
        yield RemoteReader(client, options, output, jobs, standard_input)
