"""`pages_together` over HTTP: where the model can, where it cannot, and what a model says of itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from service.engine.fake import FakeEngine
from tests.support.chat import chat, image_part
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration

DOCUMENT = make_pdf(["One page", "Another page", "The last page"])


@pytest.fixture
async def together() -> AsyncIterator[RunningService]:
    async with running_service(SteeredEngine(FakeEngine(reads_pages_together=True))) as service:
        yield service


async def test_a_document_is_read_in_one_pass(together: RunningService) -> None:
    response = await together.ocr(DOCUMENT, "three.pdf", pages_together="true", blank_pages="read")
    assert response.status_code == 200
    answer = response.json()
    assert [page["page"] for page in answer["pages"]] == [1, 2, 3]
    assert all(page["text"] and "<PAGE>" not in page["text"] for page in answer["pages"])
    assert answer["text"] == "\n\n".join(page["text"] for page in answer["pages"])
    assert answer["usage"]["vision_tokens"] == 3 * 273
    assert [page["finish_reason"] for page in answer["pages"]] == ["stop"] * 3
    alone = (await together.ocr(DOCUMENT, "three.pdf", blank_pages="read")).json()
    assert [page["finish_reason"] for page in alone["pages"]] == ["stop"] * 3


async def test_its_stream_tells_pages_apart(together: RunningService) -> None:
    response = await together.ocr(DOCUMENT, "three.pdf", pages_together="true", blank_pages="read", stream="true")
    events = [event.split("\n") for event in response.text.strip().split("\n\n")]
    deltas: dict[int, str] = {}
    for name, data in events:
        if name == "event: delta":
            delta = json.loads(data.removeprefix("data: "))
            deltas[delta["page"]] = deltas.get(delta["page"], "") + delta["text"]
    answer = json.loads(events[-1][1].removeprefix("data: "))
    assert deltas == {page["page"]: page["text"] for page in answer["pages"]}


async def test_images_of_a_chat_are_read_in_one_pass(together: RunningService) -> None:
    parts = [image_part(png(f"Page {number} of the chat, with some words on it")) for number in (1, 2)]
    answer = (await together.client.post("/v1/chat/completions", json=chat(*parts, pages_together=True))).json()
    assert len(answer["pages"]) == 2
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 2 * 273


async def test_what_the_model_was_not_trained_for_is_refused(together: RunningService) -> None:
    async def refusal(**fields: str) -> dict[str, object]:
        response = await together.ocr(png(), **fields)
        assert response.status_code == 422
        problem: dict[str, object] = response.json()
        return problem

    tiles = await refusal(pages_together="true", mode="gundam")
    assert (tiles["code"], tiles["field"]) == ("invalid_field", "mode")
    task = await refusal(task="figure")
    assert (task["code"], task["field"], task["expected"]) == ("invalid_field", "task", ["free", "markdown", "ocr"])


async def test_a_model_that_reads_each_page_alone_refuses_it() -> None:
    async with running_service() as service:
        response = await service.ocr(DOCUMENT, "three.pdf", pages_together="true")
        assert (response.status_code, response.json()["code"]) == (422, "pages_together_unsupported")
        body = chat(image_part(png()), pages_together=True)
        answer = await service.client.post("/v1/chat/completions", json=body)
        assert answer.json()["error"]["code"] == "pages_together_unsupported"
        (model,) = (await service.client.get("/v1/models")).json()["data"]
        assert model["max_pages_together"] == 1
        assert "locate" in model["tasks"]


async def test_more_pages_than_fit_are_refused(together: RunningService) -> None:
    (model,) = (await together.client.get("/v1/models")).json()["data"]
    most = model["max_pages_together"]
    response = await together.ocr(make_pdf(["A page"] * (most + 1)), "many.pdf", pages_together="true")
    assert (response.status_code, response.json()["code"], response.json()["limit"]) == (422, "too_many_pages", most)


async def test_models_say_what_they_are(together: RunningService) -> None:
    (model,) = (await together.client.get("/v1/models")).json()["data"]
    assert model["family"] == "fake"
    assert model["tasks"] == ["free", "markdown", "ocr"]
    assert (model["max_sequence_tokens"], model["max_pages_together"]) == (8192, 15)
    assert model["takes_adapters"] is False
