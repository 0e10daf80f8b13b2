"""Many requests to a running service: each with a page of its own, and a record of how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.support.server import ServerProcess
from tests.support.service import encode

QUICK = {"mode": "tiny", "blank_pages": "read"}
"""Fields with which the fake engine reads any page, soon."""
BITS = 32


def numbered_page(number: int) -> bytes:
    """A small page unlike that of any other number: its bits as black squares."""
    image = Image.new("L", (64, 32), 255)
    for bit in range(BITS):
        if number >> bit & 1:
            left, top = 8 * (bit % 8), 8 * (bit // 8)
            image.paste(0, (left, top, left + 8, top + 8))
    return encode(image)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and how it ended."""

    number: int
    """Of its page."""
    status: int
    """0 if there was no whole answer."""
    code: str
    """Of the problem, `ok`, or the exception's name."""
    text: str
    at_s: float
    """When it was sent, in seconds of `time.monotonic`."""
    seconds: float
    retry_after: str | None = None


async def send_page(client: httpx.AsyncClient, number: int, **fields: str) -> Sent:
    """Send a numbered page; never raises for what the service does."""
    at_s = time.monotonic()
    try:
        answer = await client.post(
            "/ocr", files={"file": ("page.png", numbered_page(number))}, data={**QUICK, **fields}
        )
        said = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return Sent(number, 0, type(error).__name__, "", at_s, time.monotonic() - at_s)
    code, text = ("ok", said["text"]) if answer.status_code == 200 else (said["code"], "")
    retry_after = answer.headers.get("retry-after")
    return Sent(number, answer.status_code, code, text, at_s, time.monotonic() - at_s, retry_after)


async def open_loop(send: Callable[[int], Awaitable[Sent]], rate: float, seconds: float) -> list[Sent]:
    """Send at a constant rate, whether or not earlier requests have been answered; returns when all are."""
    began_s = time.monotonic()
    tasks = []
    for number in range(math.ceil(rate * seconds)):
        await asyncio.sleep(began_s + number / rate - time.monotonic())
        tasks.append(asyncio.ensure_future(send(number)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(send: Callable[[int], Awaitable[Sent]], clients: int, goes_on: Callable[[], bool]) -> list[Sent]:
    """Clients that each send the next request once they have their answer, while `goes_on`."""
    sent: list[Sent] = []
    numbers = iter(range(2**BITS))

    async def run() -> None:
        while goes_on():
            sent.append(await send(next(numbers)))

    await asyncio.gather(*(run() for _ in range(clients)))
    return sent


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def allowed_s(promised_s: float, usual: Sequence[float], *, is_long: bool) -> float:
    """How long an answer may take: what is promised; in the short form, whose machine runs other tests as well, longer
    by a hundred answers as they usually are in these minutes."""
    return promised_s if is_long else promised_s + 100 * percentile(usual, 0.5)


def tally(sent: Sequence[Sent]) -> dict[str, int]:
    """Requests by code."""
    return dict(sorted(Counter(each.code for each in sent).items()))


def requests_counted(server: ServerProcess) -> dict[str, int]:
    """The service's own tally, by code."""
    counted: dict[str, int] = {}
    for line in server.get("/metrics").text.splitlines():
        if line.startswith("deepsynth_requests_total{"):
            code = line.partition('code="')[2].partition('"')[0]
            counted[code] = int(float(line.rpartition(" ")[2]))
    return {code: count for code, count in counted.items() if count}


class RawClient:
    """One kept connection that sends bodies as they are; far quicker than a client that builds them."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def post(self, path: str, body: bytes, content_type: str | None) -> tuple[int, dict[str, Any], str]:
        """Status, JSON and raw text of the answer."""
        headers = {} if content_type is None else {"content-type": content_type}
        try:
            answer = self._send(path, body, headers)
        except (ConnectionError, http.client.BadStatusLine):
            # The service closes a connection whose upload it did not read to its end.
            self._connection.close()
            answer = self._send(path, body, headers)
        text = answer.read().decode("utf-8", errors="replace")
        said: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            said = json.loads(text)
        return answer.status, said, text

    def _send(self, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, body, headers)
        return self._connection.getresponse()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def children_of(pid: int) -> dict[int, str]:
    """Command lines of a process's children, by their ids."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(FileNotFoundError):
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def engine_pid(server: ServerProcess) -> int | None:
    """The engine's process; None while there is none."""
    found = [pid for pid, line in children_of(server.process.pid).items() if "spawn_main" in line]
    return found[0] if found else None


def memory_kib(pid: int) -> int:
    """Resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def resources(server: ServerProcess) -> Counter[str]:
    """KiB of each kind of process, and descriptors and threads of the one that listens."""
    folder = Path(f"/proc/{server.process.pid}")
    found = Counter({"api_kib": memory_kib(server.process.pid)})
    for pid, line in children_of(server.process.pid).items():
        kind = "images" if "intake" in line else "engine" if "spawn_main" in line else "tracker"
        found[f"{kind}_kib"] += memory_kib(pid)
    found["descriptors"] = len(list((folder / "fd").iterdir()))
    found["threads"] = len(list((folder / "task").iterdir()))
    return found
