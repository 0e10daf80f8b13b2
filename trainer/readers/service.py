"""A running service as a reader, over its public HTTP interface.

Knows `POST /ocr` and `GET /v1/models` and nothing of what is behind them. Proxies are not asked: the URL is the one
that the user gave.
"""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlsplit

from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading
from trainer.readers.protocol import ReaderError

TIMEOUT_S = 600.0
BUSY_STATUSES = (429, 503)
RETRIES = 8
LONGEST_PAUSE_S = 10.0


class ServiceReader:
    """Reads through a service; `concurrency` requests are on their way at any time.

    Args:
        url: Where the service listens, such as `http://127.0.0.1:8000`.
        fields: Form fields sent with every page, such as `task` and `model_id`.
        concurrency: Requests at once.

    Raises:
        ReaderError: The URL is not one of HTTP.
    """

    def __init__(self, url: str, fields: Mapping[str, str], concurrency: int = 8) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ReaderError(f"{url} is not an HTTP URL")
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._fields = dict(fields)
        self._concurrency = concurrency

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"service ({self._fields.get('model_id', 'default model')})"

    @property
    def details(self) -> Mapping[str, str]:
        """Fields and concurrency; the host stays out of committed records."""
        return {**self._fields, "concurrency": str(self._concurrency)}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages; seconds are those of the request, so they contain waiting for the others.

        A service that is not there, refuses a page or stays too busy ends it with a `ReaderError`.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            tasks = {pool.submit(self._read_one, sample): index for index, sample in enumerate(samples)}
            try:
                for task in as_completed(tasks):
                    yield tasks[task], task.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_one(self, sample: Sample) -> Reading:
        body, content_type = multipart(self._fields, sample.image_path.name, sample.image_path.read_bytes())
        start = time.perf_counter()
        for attempt in range(RETRIES):
            status, retry_after, answer = self._post(body, content_type)
            if status not in BUSY_STATUSES:
                break
            pause_s = 0.25 * 2**attempt if retry_after is None else retry_after
            time.sleep(min(pause_s, LONGEST_PAUSE_S))
        if status != http.client.OK:
            raise ReaderError(f"the service answered {status} to {sample.name}: {answer[:200]!r}")
        reading = json.loads(answer)
        return Reading(reading["text"], time.perf_counter() - start, reading.get("finish_reason") == "stop")

    def _post(self, body: bytes, content_type: str) -> tuple[int, float | None, bytes]:
        """Status, seconds the service asks to wait, and body."""
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", f"{self._prefix}/ocr", body, {"Content-Type": content_type})
            response = connection.getresponse()
            wait = response.headers.get("Retry-After", "")
            return response.status, float(wait) if wait.isdigit() else None, response.read()
        except OSError as error:
            raise ReaderError(f"no service at {self._host}:{self._port}: {error}") from error
        finally:
            connection.close()


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
