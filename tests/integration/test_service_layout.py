"""Whether pages are read whole or by lines: each way into the service honours the wish or refuses it with a code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from service.engine.fake import FakeEngine
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from tests.support.chat import chat, data_url, image_part
from tests.support.fake_engine import SteeredEngine
from tests.support.printed import two_columns
from tests.support.service import RunningService, encode, running_service

pytestmark = pytest.mark.integration

PAGE = encode(two_columns())
Send = Callable[[RunningService, dict[str, Any]], Awaitable[httpx.Response]]


def engine(*, reads_lines: bool = True) -> SteeredEngine:
    return SteeredEngine(FakeEngine(geometry=NANO_GEOMETRY) if reads_lines else FakeEngine())


async def form(service: RunningService, fields: dict[str, Any]) -> httpx.Response:
    return await service.ocr(PAGE, **fields)


async def query(service: RunningService, fields: dict[str, Any]) -> httpx.Response:
    return await service.client.post("/ocr", files={"file": PAGE}, params=fields)


async def conversation(service: RunningService, fields: dict[str, Any]) -> httpx.Response:
    return await service.client.post("/v1/chat/completions", json=chat(image_part(PAGE), **fields))


async def job(service: RunningService, fields: dict[str, Any]) -> httpx.Response:
    made = await service.client.post("/jobs", files={"file": PAGE}, data=fields)
    if made.is_error:
        return made
    place = f"/jobs/{made.json()['id']}"

    while (await service.client.get(place)).json()["state"] != "done":
        await asyncio.sleep(0.01)
    return await service.client.get(f"{place}/result")


WAYS = [form, query, conversation, job]


@pytest.mark.parametrize("send", WAYS)
async def test_page_is_read_as_it_is_asked_for(send: Send, tmp_path) -> None:
    steered = engine()
    async with running_service(steered, job_dir=tmp_path) as service:
        # This page is small enough for a crop, and is not read surely, so that `auto` reads its lines too.
        for wish, forms in (("page", {"tiles"}), ("lines", {"canvas"}), ("auto", {"tiles", "canvas"})):
            steered.submitted.clear()
            assert (await send(service, {"layout": wish})).status_code == 200
            # A page goes as tiles, its lines as canvases of one view.
            assert {"tiles" if each.page.plan.num_tiles else "canvas" for each in steered.submitted} == forms


@pytest.mark.parametrize("send", WAYS)
@pytest.mark.parametrize("fields", [{"layout": "lines", "task": "describe"}, {"layout": "spiral"}])
async def test_wish_that_cannot_be_met_is_refused(send: Send, fields: dict[str, Any], tmp_path) -> None:
    async with running_service(engine(), job_dir=tmp_path) as service:
        answer = await send(service, fields)
    assert answer.status_code == 422
    assert "layout" in answer.text


@pytest.mark.parametrize("send", WAYS)
async def test_model_that_reads_no_lines_says_so(send: Send, tmp_path) -> None:
    async with running_service(engine(reads_lines=False), job_dir=tmp_path) as service:
        answer = await send(service, {"layout": "lines"})
    assert answer.status_code == 422
    assert "layout" in answer.text


async def test_models_list_what_can_be_asked_for() -> None:
    listed = []
    for reads_lines in (True, False):
        async with running_service(engine(reads_lines=reads_lines)) as service:
            listed += (await service.client.get("/v1/models")).json()["data"]
    assert [model["layouts"] for model in listed] == [["auto", "page", "lines"], ["auto", "page"]]


async def test_token_probabilities_are_not_given_by_lines() -> None:
    async with running_service(engine()) as service:
        refused = await conversation(service, {"layout": "lines", "logprobs": True})
        taken = await conversation(service, {"layout": "page", "logprobs": True})
    assert (refused.status_code, taken.status_code) == (422, 200)
    assert refused.json()["error"]["param"] == "layout"


async def test_routes_without_the_option_refuse_it() -> None:
    document = {"type": "image_url", "image_url": data_url(PAGE)}
    async with running_service(engine()) as service:
        mistral = await service.client.post("/v1/ocr", json={"document": document, "layout": "lines"})
        loader = await service.client.put("/process", content=PAGE, params={"layout": "lines"})
    assert (mistral.status_code, loader.status_code) == (422, 422)
    assert "layout" in mistral.text
    assert "layout" in loader.text
