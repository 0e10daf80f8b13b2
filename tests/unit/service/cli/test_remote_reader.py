"""How long the command line waits before it sends a file again."""

from __future__ import annotations

import asyncio
import email.utils
import time
from pathlib import PurePath

import httpx
import pytest

from service.cli.inputs import InputFile
from service.cli.reading import FileError, ReadOptions
from service.cli.remote_reader import MODEL_HEADER, RemoteReader, remote_reader, retry_after_s

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


async def test_the_adapter_is_named_where_ray_serve_looks_for_it() -> None:
    async with remote_reader("http://service", ReadOptions(model_id="invoices"), None, None, b"") as reader:
        assert reader._client.headers[MODEL_HEADER] == "invoices"
    async with remote_reader("http://service", ReadOptions(), None, None, b"") as reader:
        assert MODEL_HEADER not in reader._client.headers
