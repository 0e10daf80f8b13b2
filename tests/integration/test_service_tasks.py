"""What the loaded model can do: listed, and anything else refused before it is tried, by every route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.engine.fake import FakeEngine
from shared.contract.prompts import Task
from tests.support.adapters import evaluation
from tests.support.chat import chat, data_url, image_part, text_part
from tests.support.fake_engine import SteeredEngine
from tests.support.live_adapters import live_service
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration

READS = (Task.FREE, Task.MARKDOWN)
REFUSED = [(task, "apples" if task is Task.LOCATE else "") for task in Task if task not in READS]


def reader(**options: Any) -> SteeredEngine:
    return SteeredEngine(FakeEngine(tasks=READS, **options))


async def chats(service: RunningService, **more: Any) -> httpx.Response:
    return await service.client.post("/v1/chat/completions", json=chat(image_part(png()), **more))


async def test_models_list_their_tasks() -> None:
    async with running_service(reader()) as service:
        (listed,) = (await service.client.get("/v1/models")).json()["data"]
        one = (await service.client.get("/v1/models/fake")).json()
    assert listed["tasks"] == one["tasks"] == ["free", "markdown"]
    assert one["modes"]


@pytest.mark.parametrize(("task", "query"), REFUSED)
async def test_a_task_that_the_model_cannot_do_is_refused_with_those_it_can(task: Task, query: str) -> None:
    async with running_service(reader()) as service:
        refused = await service.ocr(png(), task=str(task), query=query)
        asked_in_json = await chats(service, task=str(task), query=query or None)
        assert not service.engine.submitted
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["field"]) == (422, "invalid_field", "task")
    assert problem["expected"] == ["free", "markdown"]
    assert (asked_in_json.status_code, asked_in_json.json()["error"]["param"]) == (422, "task")


async def test_a_prompt_for_such_a_task_is_refused_in_a_chat() -> None:
    body = chat(text_part("Describe this image in detail."), image_part(png()))
    async with running_service(reader()) as service:
        response = await service.client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "task")


async def test_clients_that_read_markdown_are_refused_where_the_model_does_not_write_it() -> None:
    document = {"type": "image_url", "image_url": data_url(png())}
    async with running_service(SteeredEngine(FakeEngine(tasks=(Task.FREE,)))) as service:
        response = await service.client.post("/v1/ocr", json={"model": "fake", "document": document})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_field")


@pytest.mark.parametrize("field", ["task", "mode"])
async def test_every_route_lists_the_same_choices_whatever_was_asked_for(field: str) -> None:
    async with running_service(reader()) as service:
        model = (await service.client.get("/v1/models/fake")).json()
        for value in ("ocr" if field == "task" else "nonsense", "nonsense"):
            form = (await service.ocr(png(), **{field: value})).json()
            in_json = (await chats(service, **{field: value})).json()["error"]
            assert form["expected"] == model[f"{field}s"]
            assert in_json["param"] == field
            assert ", ".join(model[f"{field}s"]) in in_json["message"]


async def test_a_model_that_knows_one_prompt_lists_what_it_serves_and_takes_no_more_from_adapters() -> None:
    proof = evaluation().model_copy(update={"task": "figure"})
    async with live_service(engine=FakeEngine(reads_pages_together=True, adapter_slots=4)) as live:
        live.publish("charts", evaluation=proof)
        await live.serves("charts", 1)
        models = (await live.service.client.get("/v1/models")).json()["data"]
        refused = await live.service.ocr(png(), model_id="charts", task="figure")
        omitting = await live.service.ocr(png(), task="markdown", omit="header")
    assert [model["tasks"] for model in models] == [["free", "markdown", "ocr"]] * 3
    assert [model["boxes"] for model in models] == [True] * 3
    assert [model["takes_adapters"] for model in models] == [True, False, False]
    assert (refused.status_code, refused.json()["field"]) == (422, "task")
    assert omitting.status_code == 200


async def test_an_adapter_can_also_do_what_it_was_evaluated_for() -> None:
    proof = evaluation().model_copy(update={"task": "ocr"})
    async with live_service(engine=FakeEngine(tasks=READS, adapter_slots=4)) as live:
        live.publish("invoices", evaluation=proof)
        live.publish("letters")
        await live.serves("invoices", 1)
        await live.serves("letters", 1)
        tasks = {each["id"]: each["tasks"] for each in (await live.service.client.get("/v1/models")).json()["data"]}
        boxed = await live.service.ocr(png(), model_id="invoices", task="ocr")
        refused = await live.service.ocr(png(), model_id="letters@1", task="ocr")
    assert tasks["fake"] == tasks["letters"] == tasks["letters@1"] == ["free", "markdown"]
    assert tasks["invoices"] == tasks["invoices@1"] == ["free", "markdown", "ocr"]
    assert boxed.json()["pages"][0]["regions"]
    assert (refused.status_code, refused.json()["field"]) == (422, "task")
