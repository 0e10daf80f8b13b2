"""How long the command line waits before it sends a file again."""

from __future__ import annotations

import asyncio
import email.utils
import time
from pathlib import PurePath

import httpx
import pytest

from service.cli.inputs import InputFile
from service.cli.reading import FileError, OptionError, ReadOptions, ServiceUnreachableError
from service.cli.remote_reader import MODEL_HEADER, PATIENCE_S, RemoteReader, remote_reader, retry_after_s
from service.errors import error_classes

FILE = InputFile("-", None, PurePath("stdin"))


@pytest.mark.parametrize(
    ("header", "wait_s"), [(None, 1), ("7", 7), ("0", 1), ("86400", 60), ("-5", 1), ("soon", 1), ("1.5", 1)]
)
def test_retry_after_is_a_bounded_number_of_seconds(header: str | None, wait_s: float) -> None:
    assert retry_after_s(header) == wait_s


def test_retry_after_may_be_a_date() -> None:
    assert 25 < retry_after_s(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 31
    assert retry_after_s(email.utils.formatdate(time.time() - 30, usegmt=True)) == 1


async def test_file_is_sent_again_after_the_time_the_service_names(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)
    answers: list[httpx.Response | Exception] = [
        httpx.Response(429, headers={"retry-after": "3"}),
        httpx.ConnectError("restarts"),
        httpx.Response(503),
        httpx.Response(502, text="<html>a proxy's page</html>"),
    ]

    def answer(_: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as client:
        reader = RemoteReader(client, ReadOptions(), None, jobs=1, standard_input=b"page")
        with pytest.raises(FileError, match="502") as failed:
            await reader.read(FILE)
    assert (failed.value.code, waits, answers) == ("http_502", [3, 1, 1], [])


async def test_a_service_that_has_gone_ends_the_command_and_not_each_file_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = [0.0]

    async def wait(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr(asyncio, "sleep", wait)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    answers: list[httpx.Response | Exception] = [
        httpx.Response(422, json={"code": "encrypted_pdf", "title": "x"}),
        httpx.ReadError("killed"),
        *[httpx.ConnectError("gone") for _ in range(30)],
        httpx.Response(422, json={"code": "encrypted_pdf", "title": "x"}),
    ]

    def answer(_: httpx.Request) -> httpx.Response:
        found = answers.pop(0) if answers else httpx.ConnectError("gone")
        if isinstance(found, Exception):
            raise found
        return found

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as client:
        reader = RemoteReader(client, ReadOptions(), None, jobs=1, standard_input=b"page")
        for _ in range(2):
            with pytest.raises(FileError, match="encrypted_pdf"):
                await reader.read(FILE)
        assert (now_s, answers) == ([31], [])
        with pytest.raises(ServiceUnreachableError, match="http://service: ConnectError; it has stopped answering"):
            await reader.read(FILE)
    assert PATIENCE_S < now_s[0] - 31 < PATIENCE_S + 5
    assert capsys.readouterr().err.splitlines() == [
        "http://service does not answer; trying again for 10 minutes.",
        "http://service answers again.",
        "http://service does not answer; trying again for 10 minutes.",
    ]


@pytest.mark.parametrize(
    ("answer", "code", "times"),
    [
        (httpx.Response(500, text="Internal Server Error"), "http_500", 4),
        (httpx.Response(500, json={"code": "poison_request", "title": "x"}), "poison_request", 1),
    ],
)
async def test_an_error_of_something_between_is_tried_again_and_the_services_own_is_not(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, code: str, times: int
) -> None:
    async def wait(_: float) -> None:
        pass

    monkeypatch.setattr(asyncio, "sleep", wait)
    asked: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond), base_url="http://service") as client:
        reader = RemoteReader(client, ReadOptions(), None, jobs=1, standard_input=b"page")
        with pytest.raises(FileError) as failed:
            await reader.read(FILE)
    assert (failed.value.code, len(asked)) == (code, times)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"code": "not_found", "title": "This path does not exist."}),
        (405, {"code": "method_not_allowed", "title": "x"}),
        (404, {"detail": "Not Found"}),
        (415, {"object": "error", "code": "not_json", "message": "Send the request as application/json."}),
    ],
)
async def test_an_address_without_the_route_ends_the_command(status: int, body: dict[str, str]) -> None:
    answers = [httpx.Response(status, json=body)]
    transport = httpx.MockTransport(lambda _: answers[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://service/v1") as client:
        reader = RemoteReader(client, ReadOptions(), None, jobs=1, standard_input=b"page")
        with pytest.raises(ServiceUnreachableError, match="http://service/v1: no POST /ocr there"):
            await reader.read(FILE)
        answers = [httpx.Response(422, json={"code": "encrypted_pdf", "title": "x"})]
        with pytest.raises(FileError, match="encrypted_pdf"):
            await reader.read(FILE)
        answers = [httpx.Response(404, text="a proxy that has lost its way")]
        with pytest.raises(FileError, match="http_404"):
            await reader.read(FILE)


@pytest.mark.parametrize("code", ["key_required", "key_invalid", "key_scope"])
async def test_a_wrong_key_ends_the_command(code: str) -> None:
    error = error_classes()[code]
    response = httpx.Response(error.status, json={"code": code, "title": error.title})
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: response), base_url="http://service"
    ) as client:
        reader = RemoteReader(client, ReadOptions(), None, jobs=1, standard_input=b"page")
        with pytest.raises(OptionError, match=f"DEEPSYNTH_API_KEY: .*{code}"):
            await reader.read(FILE)


async def test_the_adapter_is_named_where_ray_serve_looks_for_it() -> None:
    async with remote_reader("http://service", ReadOptions(model_id="invoices"), None, None, b"") as reader:
        assert reader._client.headers[MODEL_HEADER] == "invoices"
    async with remote_reader("http://service", ReadOptions(), None, None, b"") as reader:
        assert MODEL_HEADER not in reader._client.headers
