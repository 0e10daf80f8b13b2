"""What only a real server and real sockets can show: slow, oversized and vanishing clients, signals, exit codes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import signal
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import ServerProcess, form_body, read_response, running_server
from tests.support.service import png

pytestmark = pytest.mark.integration

LIMIT = 300_000
KEY = "k" * 20
KIB = 1024


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(
        MAX_UPLOAD_BYTES=str(LIMIT),
        BODY_IDLE_S="0.6",
        BODY_TOTAL_S="2",
        OCR_BATCH_SIZE="1",
        MAX_CONCURRENT_REQUESTS="4",
    ) as running:
        yield running


def head(length: int | None, content_type: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /ocr HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def send_until_refused(connection: socket.socket, pieces: int, piece: bytes) -> int:
    """Bytes the other side took before it hung up."""
    sent = 0
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(pieces):
            connection.sendall(piece)
            sent += len(piece)
    return sent


def test_page_is_read(server: ServerProcess) -> None:
    response = server.post("/ocr", files={"file": png()})
    assert response.status_code == 200
    assert "server" not in response.headers


def test_chunked_upload_is_read(server: ServerProcess) -> None:
    body, content_type = form_body(png())
    with server.connect() as connection:
        connection.sendall(head(None, content_type))
        for start in range(0, len(body), 100):
            connection.sendall(chunked(body[start : start + 100]))
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_declared_size_beyond_the_limit_is_refused_unread(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(head(10 * LIMIT, "multipart/form-data; boundary=b"))
        answer = read_response(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"upload_too_large" in answer
    assert b"connection: close" in answer.lower()


def test_endless_chunked_upload_is_cut_off_near_the_limit(server: ServerProcess) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        connection.sendall(head(None, "multipart/form-data; boundary=b") + chunked(start))
        sent = send_until_refused(connection, 2000, chunked(b"x" * 16 * KIB))
        read_response(connection)
    # What is taken beyond the limit is buffers on the way, which grow while the server has no time.
    assert sent < LIMIT + 2048 * KIB
    assert server.get("/livez").status_code == 200


def test_stalled_upload_is_ended_with_408(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(head(5000, "multipart/form-data; boundary=b") + b"--b\r\n")
        start_s = time.monotonic()
        answer = read_response(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer
    assert time.monotonic() - start_s < 60


def test_trickling_upload_is_ended_with_408(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(head(5000, "multipart/form-data; boundary=b") + b"--b\r\n")
        connection.settimeout(0.2)
        start_s = time.monotonic()
        answer = b""
        while not answer and time.monotonic() - start_s < 60:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
def test_client_that_leaves_frees_its_place(way: str) -> None:
    with running_server(OCR_BATCH_SIZE="1", FAKE_STEP_MS="60000") as server:
        body, content_type = form_body(png())
        with server.connect() as connection:
            connection.sendall(head(len(body), content_type) + body)
            server.wait_metric("deepsynth_sequences_running", 1)
            if way == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if way == "half-close":
                connection.shutdown(socket.SHUT_WR)
                server.wait_metric("deepsynth_requests_running", 0)
        server.wait_metric("deepsynth_requests_running", 0)
        server.wait_metric("deepsynth_sequences_running", 0)
        gone = 'deepsynth_requests_total{code="client_disconnect",outcome="client_disconnect"}'
        assert server.metric(gone) == 1


def test_client_that_leaves_in_mid_upload_frees_its_place() -> None:
    with running_server() as server:  # which does not end the upload first
        with server.connect() as connection:
            connection.sendall(head(5000, "multipart/form-data; boundary=b") + b"--b\r\n")
            server.wait_metric("deepsynth_queue_depth", 1)
        server.wait_metric("deepsynth_queue_depth", 0)
        gone = 'deepsynth_requests_total{code="client_disconnect",outcome="client_disconnect"}'
        assert server.metric(gone) == 1


def test_sigterm_turns_readiness_first_and_finishes_what_is_inside() -> None:
    with (
        running_server(DRAIN_GRACE_S="5", FAKE_STEP_MS="500") as server,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        inside = threads.submit(server.post, "/ocr", files={"file": png()})
        server.wait_metric("deepsynth_requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + 120
        while server.get("/readyz").status_code != 503:
            assert time.monotonic() < deadline_s
        # Load balancers have not noticed yet, so requests are still served.
        assert server.post("/ocr", files={"file": png()}).status_code == 200
        assert inside.result().status_code == 200
        assert server.process.wait(timeout=120) in (0, -signal.SIGTERM)


def children_of(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def wait_gone(children: list[str]) -> None:
    deadline_s = time.monotonic() + 120
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def is_draining(server: ServerProcess) -> bool:
    try:
        return server.get("/readyz").status_code == 503
    except httpx.TransportError:
        return True  # it has stopped listening


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_does_not_wait(first: signal.Signals) -> None:
    with running_server(FAKE_STEP_MS="60000") as server:
        body, content_type = form_body(png())
        with server.connect() as connection:
            connection.sendall(head(len(body), content_type) + body)
            server.wait_metric("deepsynth_sequences_running", 1)
            children = children_of(server.process.pid)
            server.process.send_signal(first)
            deadline_s = time.monotonic() + 120
            while not is_draining(server):
                assert time.monotonic() < deadline_s
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(timeout=120) == 130
        log = server.log.read_text()
        assert log.endswith("\nStopped at once; requests cut off: 1.\n")
        assert "Traceback" not in log
        wait_gone(children)


def test_no_process_is_left_when_the_service_is_killed() -> None:
    with running_server() as server:
        children = children_of(server.process.pid)
        assert children
        server.stop(signal.SIGKILL)
        wait_gone(children)


def test_start_says_how_to_try_it() -> None:
    with running_server() as server:
        assert f"curl -F file=@page.png {server.url}/ocr" in server.log.read_text()
        assert f"{server.url}/\n" in server.log.read_text()


def test_head_through_a_real_server_keeps_the_connection_usable(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path in ("/livez", "/readyz", "/metrics", "/"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content, get.status_code) == (200, b"", 200)
            assert get.content


def test_an_idle_connection_outlives_its_client(server: ServerProcess) -> None:
    # httpx keeps idle connections for 5 s: one that closed here at the same time would lose a request now and then.
    limits = httpx.Limits(keepalive_expiry=60)
    with httpx.Client(base_url=server.url, limits=limits, timeout=60) as client:
        stream = client.get("/livez").extensions["network_stream"]
        time.sleep(6)
        again = client.get("/livez")
    assert again.status_code == 200
    assert again.extensions["network_stream"] is stream


def test_export_that_fails_after_its_first_sample_is_cut_off(tmp_path: Path) -> None:
    settings = {
        "OCR_SAVE_SAMPLES": "true",
        "OCR_PRIVACY_ALLOWED": "true",
        "ADMIN_KEY": KEY,
        "SAMPLE_DIR": str(tmp_path),
    }
    headers = {"authorization": f"Bearer {KEY}"}
    with running_server(**settings) as server:
        url = f"{server.url}/samples"
        for text in ("one", "two", "three"):
            assert httpx.post(f"{server.url}/ocr", files={"file": png(text)}, headers=headers).status_code == 200
        server.wait_metric('deepsynth_samples_total{what="stored"}', 3)
        first, second, third = pages_of(httpx.get(url, headers=headers).content)
        # A page that someone deleted is passed over, and the rest comes.
        (tmp_path / "pages" / second).unlink()
        assert pages_of(httpx.get(url, headers=headers).content) == [first, third]
        # One that the disk cannot give ends the export: the client must not take its beginning for all of it.
        (tmp_path / "pages" / second).mkdir()
        received: list[bytes] = []
        with httpx.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(answer.iter_raw())
        assert pages_of(b"".join(received)) == [first]
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert b"samples could not be exported: Is a directory" in server.log.read_bytes()


def pages_of(tar: bytes) -> list[str]:
    """Names of the images of an export, or of its beginning."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        return [Path(name).name for name in members.getnames() if not name.endswith(".json")]
