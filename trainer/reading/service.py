"""A running service as a reader, over its public HTTP interface.

Knows only `POST /ocr`. Uses no proxy: it connects to the URL that the user gave. If the service is busy or faulty, or
the connection is lost, the request is repeated for a while, so that no page is lost to a restart. A page that the
service refuses ends the evaluation, because it would be refused again.
"""

from __future__ import annotations

import http.client
import json
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading
from trainer.reading.protocol import ReaderError

TIMEOUT_S = 600.0
BUSY_STATUSES = (429, 503)
FAULT_STATUSES = (500, 502, 504)
FAULT_ATTEMPTS = 5
"""Faults of the service for one page until the page is considered the cause."""
PATIENCE_S = 300.0
"""How long a page waits for a busy or unreachable service until the evaluation ends."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP response; status 0: there was none."""

    status: int
    body: bytes = b""
    retry_after_s: float | None = None


class ServiceReader:
    """Reads through a service, with `concurrency` requests at any time.

    Args:
        url: Base URL of the service, such as `http://127.0.0.1:8000`.
        fields: Form fields sent with every page, such as `task` and `model_id`.
        concurrency: Number of concurrent requests.
        key: The key that the service asks for; empty for none.
        is_adapter: Whether `model_id` is an adapter; marks the reader as one in records.
        patience_s: How long a page waits for a busy or unreachable service.

    Raises:
        ReaderError: The URL is not an HTTP URL.
    """

    def __init__(
        self,
        url: str,
        fields: Mapping[str, str],
        concurrency: int = 8,
        *,
        key: str = "",
        is_adapter: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ReaderError(f"{url} is not an HTTP URL")
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._fields = dict(fields)
        self._concurrency = concurrency
        self._key = key
        self._is_adapter = is_adapter
        self._patience_s = patience_s
        self._stopped = threading.Event()

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"service ({self._fields.get('model_id', 'default model')})"

    @property
    def details(self) -> Mapping[str, str]:
        """Fields and concurrency; not the host, since records are committed."""
        adapter = {"adapter": self._fields["model_id"]} if self._is_adapter else {}
        return {**adapter, **self._fields, "concurrency": str(self._concurrency)}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages; their seconds are those of the requests, including the wait for other pages.

        Raises `ReaderError` if the service refuses a page, or is busy or unreachable for too long.
        """
        left = iter(enumerate(samples))
        self._stopped.clear()
        with ThreadPoolExecutor(self._concurrency) as pool:
            tasks: dict[Future[Reading], int] = {}
            try:
                while True:
                    # Only as many as are needed soon, so that the rest of a large set stays on disk.
                    for index, sample in left:
                        tasks[pool.submit(self._read_one, sample)] = index
                        if len(tasks) >= 2 * self._concurrency:
                            break
                    if not tasks:
                        return
                    for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                        yield tasks.pop(task), task.result()
            finally:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_one(self, sample: Sample) -> Reading:
        # What is measured is the model: every page is read, and every answer given as it is.
        fields = {"blank_pages": "read", **self._fields}
        body, content_type = multipart(fields, sample.image_path.name, sample.image_path.read_bytes())
        start = time.perf_counter()
        answer = self._ask_patiently(sample, body, content_type)
        try:
            reading = json.loads(answer.body)
            text, finish = str(reading["text"]), reading.get("finish_reason")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            said = answer.body[:200]
            raise ReaderError(f"the answer to {sample.name} is not one of this service: {said!r}") from error
        return Reading(text, time.perf_counter() - start, finish == "stop")

    def _ask_patiently(self, sample: Sample, body: bytes, content_type: str) -> _Answer:
        """Send the page until the service answers with status 200."""
        give_up_s = time.monotonic() + self._patience_s
        faults = attempt = 0
        while True:
            answer = self._post(body, content_type)
            if answer.status == http.client.OK:
                return answer
            faults += answer.status in FAULT_STATUSES
            is_passing = answer.status == 0 or answer.status in BUSY_STATUSES or 0 < faults < FAULT_ATTEMPTS
            pause_s = _pause_s(attempt, answer.retry_after_s)
            if not is_passing or time.monotonic() + pause_s > give_up_s:
                raise ReaderError(self._complaint(sample, answer))
            if self._stopped.wait(pause_s):
                raise ReaderError("stopped")
            attempt += 1

    def _complaint(self, sample: Sample, answer: _Answer) -> str:
        if answer.status == 0:
            return f"no service at {self._host}:{self._port}: {answer.body.decode(errors='replace')}"
        if answer.status in BUSY_STATUSES:
            return (
                f"the service was too busy for {sample.name} for {self._patience_s:.0f} s (status {answer.status}); "
                "give a lower --concurrency"
            )
        return f"the service answered {answer.status} to {sample.name}: {answer.body[:200]!r}"

    def _post(self, body: bytes, content_type: str) -> _Answer:
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=TIMEOUT_S)
        try:
            headers = {"Content-Type": content_type}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            connection.request("POST", f"{self._prefix}/ocr", body, headers)
            response = connection.getresponse()
            content = response.read()
            return _Answer(response.status, content, retry_after_s(response.headers.get("Retry-After", "")))
        except (OSError, http.client.HTTPException) as error:
            return _Answer(0, str(error).encode() or type(error).__name__.encode())
        finally:
            connection.close()


def retry_after_s(header: str, now: datetime | None = None) -> float | None:
    """Seconds of a `Retry-After` header, which is a number or a date; None if it is neither (RFC 9110)."""
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0) if date.tzinfo else None


def multipart(fields: Mapping[str, str], filename: str, content: bytes) -> tuple[bytes, str]:
    """A form with one file, and its content type (RFC 7578)."""
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, value in fields.items():
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()]
    quoted = filename.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
    lines += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", content]
    lines += [f"\r\n--{boundary}--\r\n".encode()]
    return b"".join(lines), f"multipart/form-data; boundary={boundary}"


def _pause_s(attempt: int, asked_s: float | None) -> float:
    """The pause that the service asks for, or one that doubles each time; randomised, so that requests spread out."""
    pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) if asked_s is None else asked_s
    return pause_s * random.uniform(1.0, 1.25)
