"""`POST /v1/chat/completions` through the whole app: what it reads, what it refuses, and how it says so."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from service.engine.fake import FakeEngine
from service.errors import EngineError
from service.ocr.outcome import PageStatus
from shared.contract.prompts import Task, prompt_for
from tests.support.chat import chat, data_url, file_part, image_part, text_part
from tests.support.fake_engine import SteeredEngine
from tests.support.loop_clock import LoopClock
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, encode, eventually, png, running_service

pytestmark = pytest.mark.integration

PATH = "/v1/chat/completions"


async def post(service: RunningService, body: Any) -> httpx.Response:
    return await service.client.post(PATH, json=body)


async def text_of(service: RunningService, body: Any) -> str:
    response = await post(service, body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def refusal_of(service: RunningService, body: Any) -> tuple[int, str, str | None]:
    """Status, code and parameter of an error, whose shape is OpenAI's."""
    response = await post(service, body)
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert service.services.gate.num_waiting + service.services.gate.num_running == 0
    return response.status_code, error["code"], error["param"]


def chunks_of(text: str) -> list[dict[str, Any]]:
    events = text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


async def test_answer_is_a_completion_with_the_text_of_the_ocr_route() -> None:
    async with running_service() as service:
        answer = (await post(service, chat(image_part(png())))).json()
        read = (await service.ocr(png())).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": read["text"], "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    tokens = read["usage"]
    assert answer["usage"] == {
        "prompt_tokens": tokens["vision_tokens"] + tokens["prompt_tokens"],
        "completion_tokens": tokens["completion_tokens"],
        "total_tokens": sum(tokens.values()),
        "prompt_tokens_details": {"image_tokens": tokens["vision_tokens"], "text_tokens": tokens["prompt_tokens"]},
    }
    assert answer["warnings"] == []
    assert answer["pages"] == read["pages"]


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.LOCATE])
async def test_text_names_the_task(task: Task) -> None:
    async with running_service() as service:
        wanted = (await service.ocr(png(), task=str(task))).json()["text"]
        for text in (prompt_for(task), str(task)):
            answer = (await post(service, chat(text_part(text), image_part(png())))).json()
            assert (answer["choices"][0]["message"]["content"], answer["warnings"]) == (wanted, [])
        assert await text_of(service, chat(image_part(png()), task=str(task))) == wanted
        system = {"role": "system", "content": prompt_for(task)}
        messages = [system, {"role": "user", "content": [image_part(png())]}]
        assert await text_of(service, {"model": "fake", "messages": messages}) == wanted


async def test_locate_has_its_query_from_the_text_or_the_extension() -> None:
    async with running_service() as service:
        wanted = (await service.ocr(png(), task="locate", query="Total")).json()
        read = (await post(service, chat(text_part("Locate Total in the image."), image_part(png())))).json()
        assert read["choices"][0]["message"]["content"] == wanted["text"]
        assert read["pages"] == wanted["pages"]
        assert read["pages"][0]["regions"]
        assert await text_of(service, chat(image_part(png()), task="locate", query="Total")) == wanted["text"]
        assert await refusal_of(service, chat(image_part(png()), task="locate")) == (422, "invalid_field", "query")
        assert await refusal_of(service, chat(image_part(png()), query="x")) == (422, "invalid_field", "query")


async def test_other_text_is_not_followed_and_the_answer_says_so() -> None:
    async with running_service() as service:
        free = (await service.ocr(png())).json()["text"]
        for parts in ([text_part("Read this page"), image_part(png())], [image_part(png()), text_part("Sum it up")]):
            answer = (await post(service, chat(*parts))).json()
            assert answer["choices"][0]["message"]["content"] == free
            assert [warning["code"] for warning in answer["warnings"]] == ["prompt_ignored"]
        chunks = chunks_of((await post(service, chat(*parts, stream=True))).text)
        assert [warning["code"] for warning in chunks[-1]["warnings"]] == ["prompt_ignored"]


async def test_images_and_documents_are_the_pages_of_one_document() -> None:
    pdf = make_pdf(["one", "two"])
    async with running_service() as service:
        texts = [
            (await service.ocr(data)).json()["text"] for data in (png("The first page"), pdf, png("The last page"))
        ]
        messages = [
            {"role": "user", "content": [image_part(png("The first page")), file_part(pdf)]},
            {"role": "assistant", "content": "earlier"},
            {"role": "user", "content": [{"type": "image_url", "image_url": data_url(png("The last page"))}]},
        ]
        response = await post(service, {"model": "fake", "messages": messages})
        answer = response.json()
        streamed = chunks_of((await post(service, {"model": "fake", "messages": messages, "stream": True})).text)
    assert answer["choices"][0]["message"]["content"] == "\n\n".join(texts)
    assert [page["page"] for page in answer["pages"]] == [1, 2, 3, 4]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "\n\n".join(texts)


async def test_pages_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = chat(*[image_part(png(text)) for text in ("The first page", "The second page", "The last page")])

    def unreadable(*_: Any, **__: Any) -> PageStatus:
        return PageStatus.UNREADABLE

    async with running_service() as service:
        whole = (await post(service, pages)).json()
        infer = service.services.reader._infer
        pages_read = itertools.count()

        async def failing(*arguments: Any) -> Any:
            if next(pages_read) % 3 == 1:
                raise EngineError("told to fail")
            return await infer(*arguments)

        monkeypatch.setattr(service.services.reader, "_infer", failing)
        answer = (await post(service, pages)).json()
        chunks = chunks_of((await post(service, {**pages, "stream": True})).text)
        monkeypatch.setattr("service.ocr.reader.status_of", unreadable)
        doubtful = (await post(service, chat(image_part(png())))).json()
    texts = [page["text"] for page in whole["pages"]]
    assert answer["choices"][0]["message"]["content"] == f"{texts[0]}\n\n{texts[2]}"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert [warning["code"] for warning in answer["warnings"]] == ["page_failed"]
    assert [page["status"] for page in answer["pages"]] == ["ok", "failed", "ok"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == f"{texts[0]}\n\n{texts[2]}"
    assert (chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["warnings"]) == ("length", answer["warnings"])
    assert doubtful["choices"][0]["message"]["content"] == ""
    assert [warning["code"] for warning in doubtful["warnings"]] == ["page_unreadable"]


async def test_a_document_comes_as_a_file_or_an_image_and_its_pages_may_be_chosen() -> None:
    pdf = make_pdf(["one", "two", "three"])
    async with running_service() as service:
        all_pages = (await service.ocr(pdf)).json()["text"]
        second = (await service.ocr(pdf, pages="2")).json()["text"]
        bare = {"type": "file", "file": {"file_data": base64.b64encode(pdf).decode()}}
        as_image = {"type": "image_url", "image_url": {"url": data_url(pdf, "application/pdf")}}
        for part in (file_part(pdf), bare, as_image):
            assert await text_of(service, chat(part)) == all_pages
        assert await text_of(service, chat(file_part(pdf), pages="2")) == second
        chunks = chunks_of((await post(service, chat(file_part(pdf), pages="2", stream=True))).text)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == second
        assert await refusal_of(service, chat(file_part(pdf), pages="4")) == (422, "page_out_of_range", "pages")
        two = chat(file_part(pdf), image_part(png()), pages="1")
        assert await refusal_of(service, two) == (422, "invalid_field", "pages")


async def test_stream_has_the_chunks_of_a_completion() -> None:
    async with running_service() as service:
        text = await text_of(service, chat(image_part(png())))
        response = await post(service, chat(image_part(png()), stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {(chunk["object"], chunk["model"], len(chunk["choices"])) for chunk in chunks} == {
        ("chat.completion.chunk", "fake", 1)
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert len(deltas) > 4
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert not any("usage" in chunk for chunk in chunks)


async def test_stream_ends_with_the_usage_if_asked_for() -> None:
    body = chat(image_part(png()), stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    async with running_service() as service:
        usage = (await post(service, chat(image_part(png())))).json()["usage"]
        chunks = chunks_of((await post(service, body)).text)
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], usage)
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}


@pytest.mark.parametrize("task", ["ocr", "markdown", "locate"])
async def test_stream_of_text_with_boxes_has_no_markers(task: str) -> None:
    body = chat(image_part(png()), task=task, query="x" if task == "locate" else None)
    async with running_service() as service:
        text = await text_of(service, body)
        chunks = chunks_of((await post(service, {**body, "stream": True})).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert "<|" not in text
    assert chunks[-1]["pages"][0]["regions"][0]["label"] == "text"


async def test_answer_that_is_cut_short_says_length() -> None:
    async with running_service() as service:
        for name in ("max_tokens", "max_completion_tokens"):
            answer = (await post(service, chat(image_part(png()), **{name: 2}))).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 2
        chunks = chunks_of((await post(service, chat(image_part(png()), max_tokens=2, stream=True))).text)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_sampling_is_passed_on() -> None:
    async with running_service() as service:
        greedy = await text_of(service, chat(image_part(png()), temperature=0, seed=3))
        wanted = (await service.ocr(png(), temperature="0.5", seed="3")).json()["text"]
        assert await text_of(service, chat(image_part(png()), temperature=0.5, seed=3)) == wanted != greedy


HARMLESS = {
    "user": "someone",
    "metadata": {"a": "b"},
    "store": False,
    "seed": 1,
    "n": 1,
    "top_p": 1.0,
    "stop": None,
    "logprobs": False,
    "top_logprobs": None,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": None,
    "stream_options": None,
}


async def test_parameters_that_change_nothing_are_taken() -> None:
    async with running_service() as service:
        plain = await text_of(service, chat(image_part(png())))
        assert await text_of(service, chat(image_part(png()), **HARMLESS)) == plain


CHANGING = {
    "n": 2,
    "top_p": 0.5,
    "stop": ["\n"],
    "frequency_penalty": 1,
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "store": True,
    "reasoning_effort": "high",
    "web_search_options": {},
}


async def test_parameters_that_would_change_the_answer_are_refused_by_name() -> None:
    async with running_service() as service:
        for name, value in CHANGING.items():
            body = chat(image_part(png()), **{name: value})
            assert await refusal_of(service, body) == (400, "unsupported_parameter", name)


async def test_requests_that_are_not_valid_are_refused() -> None:
    refused: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
        ({"model": "gpt-5"}, (404, "model_not_found", "model")),
        ({"model": None}, (422, "invalid_field", "model")),
        ({"messages": []}, (422, "invalid_field", "messages")),
        ({"messages": [{"role": "user", "content": "free"}]}, (422, "invalid_field", "messages")),
        ({"messages": [{"role": "tool", "content": "x"}]}, (422, "invalid_field", "messages.0")),
        ({"max_tokens": 10**400}, (422, "invalid_field", "max_completion_tokens")),
        ({"max_tokens": 5, "max_completion_tokens": 6}, (422, "invalid_field", "max_tokens")),
        ({"seed": 5, "random_seed": 6}, (422, "invalid_field", "random_seed")),
        ({"temperature": 3}, (422, "invalid_field", "temperature")),
        ({"mode": "vast"}, (422, "invalid_field", "mode")),
        ({"max_token": 1}, (422, "invalid_field", "max_token")),
        ({"no plain name": 1}, (422, "invalid_field", None)),
    ]
    async with running_service() as service:
        for changes, refusal in refused:
            for streams in (False, True):
                body = {**chat(image_part(png())), "stream": streams, **changes}
                assert await refusal_of(service, body) == refusal
        body = chat(image_part(png()), stream_options={"include_usage": True})
        assert await refusal_of(service, body) == (422, "invalid_field", "stream_options")


async def test_files_that_cannot_be_read_are_refused() -> None:
    place = "messages.0.content.0"
    remote, remote_file = "http://127.0.0.1:1/x.png", "https://example.com/x.pdf"
    refused: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
        (
            {"type": "image_url", "image_url": {"url": remote}},
            (422, "remote_url_not_allowed", f"{place}.image_url.url"),
        ),
        (
            {"type": "file", "file": {"file_data": remote_file}},
            (422, "remote_url_not_allowed", f"{place}.file.file_data"),
        ),
        (
            {"type": "image_url", "image_url": "data:image/png;base64,?"},
            (422, "invalid_data_url", f"{place}.image_url.url"),
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, (400, "unsupported_parameter", f"{place}.file.file_id")),
        ({"type": "input_audio", "input_audio": {}}, (422, "invalid_field", place)),
        (image_part(b""), (422, "empty_file", None)),
        (image_part(b"junk"), (415, "unsupported_format", None)),
        (image_part(png()[:60]), (422, "undecodable_file", None)),
    ]
    async with running_service() as service:
        for part, refusal in refused:
            assert await refusal_of(service, chat(part)) == refusal
            assert await refusal_of(service, chat(part, stream=True)) == refusal


async def test_files_together_stay_within_the_limit_of_one() -> None:
    data = png()
    async with running_service(max_upload_bytes=2 * len(data) + 1024, max_frames=3) as service:
        assert (await post(service, chat(image_part(data), image_part(data)))).status_code == 200
        padded = data + b"\0" * 1024
        assert (await post(service, chat(image_part(data), image_part(padded)))).status_code == 200
        too_large = chat(image_part(data), image_part(padded + b"\0"))
        assert await refusal_of(service, too_large) == (413, "upload_too_large", None)
        small = image_part(png(size=(32, 32)))
        assert await refusal_of(service, chat(*[small] * 4)) == (422, "too_many_pages", None)


async def test_body_is_bounded_while_it_is_received() -> None:
    received = 0

    async def endless() -> Any:
        nonlocal received
        yield b'{"model": "fake", "messages": "'
        while True:
            received += 1000
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    async with running_service(max_upload_bytes=100_000) as service:
        response = await service.client.post(PATH, content=endless(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "upload_too_large")
    assert received < 100_000 * 1.4 + 70_000


async def test_bodies_that_are_no_requests() -> None:
    refused = [
        (b"{}", "text/plain", 415, "not_json"),
        (b"{}", "", 415, "not_json"),
        (b"", "application/json", 400, "malformed_json"),
        (b"[" * 5_000, "application/json", 400, "malformed_json"),
        (b"[" * 90_000, "application/json; charset=utf-8", 400, "malformed_json"),
        (b"\xff\xfe", "application/json", 400, "malformed_json"),
        (b"null", "application/json", 422, "invalid_field"),
        (b'{"model": "fake", "messages": 1e400}', "application/json", 422, "invalid_field"),
    ]
    async with running_service() as service:
        for content, content_type, status, code in refused:
            headers = {"content-type": content_type} if content_type else {}
            for path in (PATH, "/v1/ocr"):
                response = await service.client.post(path, content=content, headers=headers)
                body = response.json()
                assert (response.status_code, body.get("error", body)["code"]) == (status, code)


async def test_full_service_is_429_before_the_body_is_read() -> None:
    async with running_service(max_concurrent_requests=1) as service:
        service.engine.hold()
        inside = asyncio.create_task(post(service, chat(image_part(png()))))
        await eventually(lambda: service.engine.submitted)
        response = await service.client.post(PATH, content=b"never read")
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["connection"] == "close"
        service.engine.release()
        assert (await inside).status_code == 200


async def test_draining_and_deadline_have_the_shape_of_openai() -> None:
    async with running_service(deadline_s=60) as service:
        clock = LoopClock()
        service.engine.hold()
        late = asyncio.create_task(post(service, chat(image_part(png()))))
        await eventually(lambda: service.engine.submitted)
        clock.forward(61)
        response = await late
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert service.engine.cancelled
        service.services.gate.drain()
        response = await post(service, chat(image_part(png())))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in response.headers


async def test_fault_of_our_own_has_the_shape_of_openai() -> None:
    async with running_service() as service:
        service.engine.submit = None  # type: ignore[assignment]
        assert await refusal_of(service, chat(image_part(png()))) == (500, "internal_error", None)
        assert (await service.client.get(PATH)).json()["error"]["code"] == "method_not_allowed"


async def test_what_goes_wrong_within_a_stream_ends_it_with_an_error() -> None:
    async with running_service(SteeredEngine(FakeEngine(step_s=60))) as service:
        task = asyncio.create_task(post(service, chat(image_part(png()), stream=True)))
        await eventually(lambda: service.engine.num_deltas)
        service.engine.lose()
        events = (await task).text.removesuffix("\n\n").split("\n\n")
        assert await service.metric('deepsynth_requests_total{code="engine_lost",outcome="unavailable"}') == 1
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_lost"
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"


async def test_requests_are_counted_like_those_of_the_ocr_route() -> None:
    size = len(png())
    async with running_service() as service:
        await post(service, chat(image_part(png())))
        await post(service, chat(image_part(b"junk")))
        assert await service.metric('deepsynth_requests_total{code="ok",outcome="ok"}') == 1
        assert await service.metric('deepsynth_requests_total{code="unsupported_format",outcome="client_error"}') == 1
        assert await service.metric('deepsynth_image_rejected_total{reason="unsupported_format"}') == 1
        assert await service.metric("deepsynth_upload_bytes_sum") == size + 4
        assert await service.metric("deepsynth_pages_total") == 1


async def test_detail_of_an_image_changes_nothing() -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "low"}}
    async with running_service() as service:
        assert await text_of(service, chat(part)) == await text_of(service, chat(image_part(png())))


async def test_openapi_is_complete() -> None:
    async with running_service() as service:
        schema = (await service.client.get("/openapi.json")).json()
    for path, method in ((PATH, "post"), ("/v1/ocr", "post"), ("/process", "put")):
        operation = schema["paths"][path][method]
        assert "$ref" not in json.dumps(operation["requestBody"])
        assert set(operation["responses"]) >= {"200", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    body = schema["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"model", "messages"}
    assert {"stream", "max_completion_tokens", "logprobs", "user", "task"} <= set(body["properties"])
    assert body["properties"]["n"]["enum"] == [None, 1]


async def test_how_pages_without_print_are_read_can_be_chosen() -> None:
    blank = encode(Image.new("L", (320, 200), 255))
    async with running_service() as service:
        skipped = (await post(service, chat(image_part(blank)))).json()
        read = (await post(service, chat(image_part(blank), blank_pages="read"))).json()
        doubted = (await post(service, chat(image_part(png("a word")), min_confidence=1))).json()
        trusted = (await post(service, chat(image_part(png("a word")), min_confidence=0))).json()
        assert await refusal_of(service, chat(image_part(blank), blank_pages="keep")) == (
            422,
            "invalid_field",
            "blank_pages",
        )
        assert await refusal_of(service, chat(image_part(blank), min_confidence=2)) == (
            422,
            "invalid_field",
            "min_confidence",
        )
    statuses = [answer["pages"][0]["status"] for answer in (skipped, read, doubted)]
    assert statuses == ["blank", "ok", "unreadable"]
    assert trusted["pages"][0]["status"] != "unreadable"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PATH),
        ("POST", "/v1/ocr"),
        ("PUT", "/process"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/fake"),
    ],
)
async def test_options_in_the_url_are_refused_where_they_do_nothing(method: str, path: str) -> None:
    async with running_service() as service:
        response = await service.client.request(method, f"{path}?pages=1&secret=2", content=png())
        strange = await service.client.request(method, f"{path}?%3Cb%3Esecret=2", content=png())
        assert not service.engine.submitted
    problem = response.json()
    assert response.status_code == strange.status_code == 422
    problem = problem.get("error", problem)
    assert (problem["code"], problem.get("param", problem.get("field"))) == ("invalid_field", "pages")
    assert "secret" not in response.text + strange.text


async def test_logprobs_are_those_of_the_text() -> None:
    pdf = file_part(make_pdf(["one of two", "the other one"]))
    for task in ("free", "ocr"):
        async with running_service(blank_pages="read") as service:
            body = chat(pdf, task=task, logprobs=True, top_logprobs=1)
            choice = (await post(service, body)).json()["choices"][0]
            streamed = chunks_of((await post(service, {**body, "stream": True})).text)
            bare = (await post(service, chat(pdf, task=task, logprobs=True))).json()["choices"][0]["logprobs"]
        tokens = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
        assert "\n\n" in choice["message"]["content"]
        assert len(tokens) > 6
        for token in tokens:
            assert bytes(token["bytes"]).decode() == token["token"]
            assert token["logprob"] <= 0
            assert token["top_logprobs"] == [{name: token[name] for name in ("token", "logprob", "bytes")}]
        assert any(token["logprob"] < 0 for token in tokens)
        given = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
        assert given == [choice["logprobs"]]
        assert bare["content"] == [{**token, "top_logprobs": []} for token in tokens]


async def test_as_many_alternatives_are_given_as_are_asked_for() -> None:
    async with running_service() as service:
        body = chat(image_part(png()), task="ocr", logprobs=True, top_logprobs=5)
        tokens = (await post(service, body)).json()["choices"][0]["logprobs"]["content"]
        drawn = (await post(service, {**body, "temperature": 0.5})).json()["choices"][0]["logprobs"]["content"]
    assert len(tokens) > 3
    for token in (*tokens, *drawn):
        tops = token["top_logprobs"]
        assert len(tops) == len({top["token"] for top in tops}) == 5
        assert tops[0] == {name: token[name] for name in ("token", "logprob", "bytes")}
        logs = [top["logprob"] for top in tops]
        assert logs == sorted(logs, reverse=True)


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ({"logprobs": True, "top_logprobs": 21}, (422, "invalid_field", "top_logprobs")),
        ({"logprobs": True, "top_logprobs": -1}, (422, "invalid_field", "top_logprobs")),
        ({"top_logprobs": 1}, (422, "invalid_field", "top_logprobs")),
        ({"logprobs": True, "join_pages": True}, (400, "unsupported_parameter", "logprobs")),
        ({"logprobs": True, "model": "auto"}, (400, "unsupported_parameter", "logprobs")),
        ({"stream": True, "join_pages": True}, (422, "invalid_field", "join_pages")),
        ({"omit": "margin"}, (422, "invalid_field", "omit")),
        ({"omit": "header"}, (422, "invalid_field", "omit")),
        ({"table_format": "html"}, (422, "invalid_field", "table_format")),
        ({"orientation": "left"}, (422, "invalid_field", "orientation")),
    ],
)
async def test_options_that_would_have_no_effect_are_refused(
    members: dict[str, Any], refusal: tuple[int, str, str]
) -> None:
    async with running_service() as service:
        assert await refusal_of(service, chat(image_part(png()), **members)) == refusal


async def test_options_of_a_reading_are_those_of_the_ocr_route() -> None:
    pdf = make_pdf(["The ships go", "on here"])
    options = {"task": "markdown", "join_pages": True, "orientation": "as-is", "min_coverage": 1.0, "omit": "header"}
    async with running_service() as service:
        chatted = (await post(service, chat(file_part(pdf), **options))).json()
        read = (await service.ocr(pdf, "a.pdf", **{name: str(value) for name, value in options.items()})).json()
        figures = chat(image_part(png()), image_part(png()), task="markdown", figures=True)
        assert await refusal_of(service, figures) == (422, "invalid_field", "figures")
    assert chatted["choices"][0]["message"]["content"] == read["text"]
    assert (chatted["pages"], chatted["joins"], chatted["figures"]) == (read["pages"], read["joins"], None)
