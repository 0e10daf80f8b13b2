"""What metrics and traces cost: processor time of a request with neither, with metrics, and with both.

    python benchmarks/instrumentation.py [--requests 200] [--rounds 5] [--out results.jsonl]

Starts the service with the fake engine three times and takes turns between them, so that all meet the same machine. The
time is that of the service's processes, image process and engine included: where the processor is what bounds the
throughput, a share of it is that share of the throughput. Spans go to a collector in this process, which takes
everything; Prometheus scrapes once a round. Prints a table, and one JSON object last. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from benchmarks.origin import command, keep, origin
from benchmarks.processor import spent_s

ROOT = Path(__file__).resolve().parents[1]
FORMS = {
    "neither": {"ENABLE_METRICS": "false"},
    "metrics": {"ENABLE_METRICS": "true"},
    "metrics and traces": {"ENABLE_METRICS": "true", "ENABLE_TRACING": "true"},
}
CLIENTS = 4


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    def do_POST(self) -> None:
        """Answer as an OTLP collector does."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _service(settings: dict[str, str], collector: int) -> Iterator[tuple[str, int]]:
    """Address and process of a service that is ready."""
    port = _free_port()
    chosen = {
        "ENGINE": "fake",
        "FAKE_STEP_MS": "0",
        "PORT": str(port),
        "IMAGE_WORKERS": "1",
        "LOG_LEVEL": "warning",
        "OTLP_ENDPOINT": f"http://127.0.0.1:{collector}/v1/traces",
        **settings,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}  # noqa: TID251 -- passed on
    names = {f"DEEPSYNTH_{name}": value for name, value in chosen.items()}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), **names},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            end_s = time.monotonic() + 120
            while time.monotonic() < end_s:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(60)


def _page() -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (640, 640), "white")
    draw = ImageDraw.Draw(image)
    for line in range(20):
        draw.text((20, 20 + 30 * line), f"Line {line} of a page that is read again and again", fill="black")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _round(url: str, process: int, page: bytes, num_requests: int) -> float:
    """Milliseconds of processor time a request."""
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(CLIENTS) as threads:

        def send(_: int) -> int:
            return client.post("/ocr?mode=small", files={"file": ("page.png", page)}).status_code

        list(threads.map(send, range(CLIENTS * 4)))
        began_s = sum(spent_s(process).values())
        statuses = set(threads.map(send, range(num_requests)))
        client.get("/metrics")
        ended_s = sum(spent_s(process).values())
    assert statuses == {200}, statuses
    return 1000 * (ended_s - began_s) / num_requests


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="in each round")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--out", help="append the row to this file; auto: to the committed results")
    options = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = _page()
    spent: dict[str, list[float]] = {name: [] for name in FORMS}
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(_service(settings, server.server_address[1])) for name, settings in FORMS.items()
        }
        for _ in range(options.rounds):
            for name, (url, process) in services.items():
                spent[name].append(_round(url, process, page, options.requests))
    server.shutdown()
    base_ms = statistics.median(spent["neither"])
    print("| with | ms of processor time a request, median | lowest, highest | more |\n| --- | --- | --- | --- |")
    for name, found in spent.items():
        median_ms = statistics.median(found)
        more = f"{100 * (median_ms / base_ms - 1):+.1f} %"
        print(f"| {name} | {median_ms:.2f} | {min(found):.2f}, {max(found):.2f} | {more} |")
    figures = {name: {"median_ms": statistics.median(found), "rounds_ms": found} for name, found in spent.items()}
    facts = {"requests": options.requests, "command": command(), **origin("cpu")}
    keep({"benchmark": "instrumentation", "processor_time": figures, **facts}, options.out)


if __name__ == "__main__":
    main()
