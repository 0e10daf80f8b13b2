"""Requests whose ends are unclear, and Host headers that want to be paths: one answer each, and no way round keys."""

from __future__ import annotations

import concurrent.futures
import contextlib

import httpx
import pytest

from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.integration

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
SECRET_ROUTES = (("GET", "/samples/export"), ("POST", "/adapters/a/pin"), ("POST", "/adapters/a/rollback"))
HOSTS = [
    f"{start}{middle}{end}"
    for start in ("localhost", "127.0.0.1", "[::1]", "a")
    for middle in ("/", "/livez", "?", "#", "@", "\\", "//", "/?x=", "/#", " ", ",", ";", "%2f", ":8000/", ":/livez")
    for end in ("livez", "metrics", "v1/models")
]


@pytest.fixture(scope="module")
def server():
    with running_server(
        API_KEY="a key for clients",  # pragma: allowlist secret
        ADMIN_KEY="a key for operators",  # pragma: allowlist secret
    ) as running:
        yield running


def framings() -> dict[str, bytes]:
    """Requests with a second one where a careless reader sees the first one's body end."""
    chunks = b"0\r\n\r\n" + HIDDEN
    length = b"Content-Length: %d" % len(chunks)
    heads = {
        "both": [length, b"Transfer-Encoding: chunked"],
        "both, other order": [b"Transfer-Encoding: chunked", length],
        "two lengths": [b"Content-Length: 5", length],
        "two lengths in one": [b"Content-Length: 5, %d" % len(chunks)],
        "list of codings": [b"Transfer-Encoding: chunked, identity"],
        "coding twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        "unknown coding": [b"Transfer-Encoding: xchunked"],
        "quoted coding": [b'Transfer-Encoding: "chunked"'],
        "coding with a tab": [b"Transfer-Encoding:\tchunked", length],
        "coding with a vertical tab": [b"Transfer-Encoding: \x0bchunked", length],
        "space before the colon": [b"Transfer-Encoding : chunked", length],
        "folded": [b"Transfer-Encoding:\r\n chunked", length],
        "null": [b"Transfer-Encoding: chunked\0", length],
        "case": [b"tRANSFER-eNCODING: cHUNKED", length],
        **{
            f"length {number!r}": [b"Content-Length: " + number]
            for number in (b"+5", b"-5", b"0x5", b"5 5", b"5.0", b"", b"5_0", b"05\x0b", b"9" * 30)
        },
    }
    requests = {
        name: b"POST /livez HTTP/1.1\r\nHost: a\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + chunks
        for name, lines in heads.items()
    }
    coded = b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    sizes = (b"-1", b"+0", b"0x0", b"ffffffffffffffffff", b"0;\0", b"0 0", b" 0", b"g", b"")
    requests |= {f"chunk of {size!r}": coded + size + b"\r\n" + HIDDEN for size in sizes}
    lines = (b"GET /livez HTTP/1.1 ", b"GET  /livez HTTP/1.1", b"GET /livez HTTP/1.1\0", b"\0GET /livez HTTP/1.1")
    return requests | {f"line {line!r}": line + b"\r\nHost: a\r\nContent-Length: x\r\n\r\n" + HIDDEN for line in lines}


def answers_to(server: ServerProcess, request: bytes) -> list[bytes]:
    """Status lines of all answers, until the server closes or says nothing for a while."""
    received = b""
    with server.connect() as connection:
        connection.sendall(request)
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
    return [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def test_no_request_hides_in_the_body_of_another(server, figures):
    shapes = framings()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        everything = list(threads.map(lambda request: answers_to(server, request), shapes.values()))
    refusals = (b"400", b"401", b"404", b"405")
    wrong = {
        name: answers
        for name, answers in zip(shapes, everything, strict=True)
        if len(answers) > 1 or not all(answer[9:12] in refusals for answer in answers)
    }
    figures(shapes=len(shapes))
    assert wrong == {}
    assert server.process.poll() is None


def test_no_host_opens_a_route_without_its_key(server, figures):
    opened = {}
    with httpx.Client(base_url=server.url) as client:
        for number, host in enumerate(HOSTS):
            method, path = SECRET_ROUTES[number % len(SECRET_ROUTES)]
            answer = client.request(method, path, headers={"host": host})
            if answer.status_code not in (400, 401, 403):
                opened[host] = answer.status_code
    figures(hosts=len(HOSTS))
    assert opened == {}
