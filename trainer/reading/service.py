"""A running service as a reader, over its public HTTP interface.

Knows `POST /ocr` and nothing of what is behind it. Proxies are not asked: the URL is the one that the user gave. A busy
service, a lost connection or a fault of the service is met with patience, so that no page is lost to a restart; a page
that the service refuses ends the evaluation, because it would be refused again.
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
"""Times that a page may meet a fault of the service before it is held to be the page's."""
PATIENCE_S = 300.0
"""How long a service may be busy or away for a page before the evaluation is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer over HTTP; status 0: none came."""

    status: int
    body: bytes = b""
    retry_after_s: float | None = None


class ServiceReader:
    """Reads through a service; `concurrency` requests are on their way at any time.

    Args:
        url: Where the service listens, such as `http://127.0.0.1:8000`.
        fields: Form fields sent with every page, such as `task` and `model_id`.
        concurrency: Requests at once.
        is_adapter: Whether `model_id` is an adapter, which records then tell from its base model.
        patience_s: How long a page waits for a service that is busy or away.

    Raises:
        ReaderError: The URL is not one of HTTP.
    """

    def __init__(
        self,
        url: str,
        fields: Mapping[str, str],
        concurrency: int = 8,
        *,
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
        self._is_adapter = is_adapter
        self._patience_s = patience_s
        self._stopped = threading.Event()

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"service ({self._fields.get('model_id', 'default model')})"

    @property
    def details(self) -> Mapping[str, str]:
        """Fields and concurrency; the host stays out of committed records."""
        adapter = {"adapter": self._fields["model_id"]} if self._is_adapter else {}
        return {**adapter, **self._fields, "concurrency": str(self._concurrency)}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages; seconds are those of the request, so they contain waiting for the others.

        A service that refuses a page, or stays busy or away for too long, ends it with a `ReaderError`.
        """
        left = iter(enumerate(samples))
        self._stopped.clear()
        with ThreadPoolExecutor(self._concurrency) as pool:
            tasks: dict[Future[Reading], int] = {}
            try:
                while True:
                    # As many as can be on their way, so that the rest of a large set waits on disk.
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
        body, content_type = multipart(self._fields, sample.image_path.name, sample.image_path.read_bytes())
        start = time.perf_counter()
        answer = self._ask_patiently(sample, body, content_type)
        try:
            reading = json.loads(answer.body)
            text, finish = str(reading["text"]), reading.get("finish_reason")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReaderError(
                f"what answered {sample.name} is no service of this kind: {answer.body[:200]!r}"
            ) from error
        return Reading(text, time.perf_counter() - start, finish == "stop")

    def _ask_patiently(self, sample: Sample, body: bytes, content_type: str) -> _Answer:
        """The service's answer of status 200."""
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
            connection.request("POST", f"{self._prefix}/ocr", body, {"Content-Type": content_type})
            response = connection.getresponse()
            content = response.read()
            return _Answer(response.status, content, retry_after_s(response.headers.get("Retry-After", "")))
        except (OSError, http.client.HTTPException) as error:
            return _Answer(0, str(error).encode() or type(error).__name__.encode())
        finally:
            connection.close()


def retry_after_s(header: str, now: datetime | None = None) -> float | None:
    """Seconds that a header `Retry-After` asks for: a number, or a date; None where it says neither (RFC 9110)."""
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
    """What the service asks for, or twice as long each time; spread, so that not all come back at once."""
    pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) if asked_s is None else asked_s
    return pause_s * random.uniform(1.0, 1.25)
