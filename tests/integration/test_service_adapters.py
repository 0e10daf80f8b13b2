"""Adapters in the assembled service, over the fake engine: from a folder on the volume to an answer, and back out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.adapters.canary import canary_page
from service.engine.fake import FakeEngine
from service.engine.protocol import SamplingParams, SequenceRequest
from shared.contract.identity import AdapterRef
from shared.contract.withdrawal import withdraw
from shared.deepseek_ocr.geometry import GeometryConfig
from tests.support.chat import chat, image_part
from tests.support.live_adapters import live_service
from tests.support.service import eventually, png

pytestmark = pytest.mark.integration


def page_request(sequence_id: str, model_id: str) -> SequenceRequest:
    return SequenceRequest(sequence_id, canary_page(GeometryConfig()), "\nFree OCR.", SamplingParams(100), model_id)


async def test_a_published_adapter_answers_under_its_name_and_the_base_as_before() -> None:
    async with live_service() as live:
        base = await live.answer()
        live.publish()
        await live.serves("invoices", 1)
        adapted, pinned = await live.answer("invoices"), await live.answer("invoices@1")
        assert base["model_id"] == "fake"
        assert adapted["model_id"] == pinned["model_id"] == "invoices@1"
        assert adapted["text"] == pinned["text"] != base["text"]
        assert (await live.answer())["text"] == base["text"]
        assert await live.states() == {1: "active"}
        models = (await live.service.client.get("/v1/models")).json()["data"]
        assert [(each["id"], each["root"], each["parent"]) for each in models] == [
            ("fake", "fake", None),
            ("invoices", "invoices@1", "fake"),
            ("invoices@1", "invoices@1", "fake"),
        ]


async def test_clients_of_other_apis_name_adapters_as_models() -> None:
    image = image_part(png())
    async with live_service() as live:
        live.publish()
        await live.serves("invoices", 1)
        texts = {}
        for model in ("fake", "invoices", "invoices@1"):
            response = await live.service.client.post("/v1/chat/completions", json=chat(image, model=model))
            texts[model] = response.json()["choices"][0]["message"]["content"]
            assert response.json()["model"] == ("fake" if model == "fake" else "invoices@1")
            streamed = await live.service.client.post(
                "/v1/chat/completions", json=chat(image, model=model, stream=True)
            )
            first = json.loads(streamed.text.partition("\n")[0].removeprefix("data: "))
            assert first["model"] == response.json()["model"]
        assert texts["invoices"] == texts["invoices@1"] != texts["fake"]
        document = {"type": "image_url", "image_url": image["image_url"]}
        read = await live.service.client.post("/v1/ocr", json={"model": "invoices", "document": document})
        assert read.json()["model"] == "invoices@1"
        missing = await live.service.client.post("/v1/chat/completions", json=chat(image, model="invoices@7"))
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "model")
        assert "invoices" in missing.json()["error"]["message"]


async def test_a_name_follows_the_volume_and_a_pin_stays() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        first = await live.answer("invoices")
        live.publish(seed=2)
        await live.serves("invoices", 2)
        second, pinned = await live.answer("invoices"), await live.answer("invoices@1")
    assert (second["model_id"], pinned["model_id"]) == ("invoices@2", "invoices@1")
    assert pinned["text"] == first["text"] != second["text"]


async def test_what_runs_finishes_on_the_version_it_began_with() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        services = live.service.services
        request = page_request("a", "invoices@1")
        expected = [event async for event in services.engine.submit(request)][-1]
        async with services.models.lease("invoices") as lease:
            live.publish(seed=2)
            await live.serves("invoices", 2)
            assert lease.model_id == "invoices@1"
            assert await live.states() == {1: "draining", 2: "active"}
            assert [event async for event in services.engine.submit(request)][-1] == expected
            assert (await live.answer("invoices"))["model_id"] == "invoices@2"
        await eventually(lambda: not services.adapters.cache.is_resident("invoices@1"))
        assert await live.states() == {1: "unloaded", 2: "active"}


async def test_unknown_names_are_404_with_those_there_are() -> None:
    async with live_service() as live:
        live.publish()
        await live.serves("invoices", 1)
        for model_id in ("receipts", "invoices@7", "invoices@", "../etc", "@1", "invoices@01"):
            status, problem = await live.failure(model_id)
            assert (status, problem["code"], problem["known"]) == (404, "model_not_found", ["fake", "invoices"])


async def test_a_refused_version_is_409_with_its_reason_and_the_last_good_one_goes_on() -> None:
    async with live_service(engine=FakeEngine(adapter_slots=4, refuse_with={"invoices@2": "unknown_module"})) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        live.publish(seed=2)
        await eventually(lambda: 2 in live.service.services.adapters.catalog.entries["invoices"].versions)
        versions = live.service.services.adapters.catalog.entries["invoices"].versions
        await eventually(lambda: versions[2].refusal is not None)
        status, problem = await live.failure("invoices@2")
        assert (status, problem["code"], problem["reason"]) == (409, "model_refused", "unknown_module")
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        assert await live.states() == {1: "active", 2: "refused"}
        assert await live.service.metric('deepsynth_adapter_refusals_total{reason="unknown_module"}') == 1
        assert await live.service.metric('deepsynth_adapter_served_version{adapter="invoices"}') == 1


async def test_a_name_whose_only_version_is_refused_is_409() -> None:
    async with live_service(engine=FakeEngine(adapter_slots=4, fail_with={"invoices@1": "engine_failed"})) as live:
        live.publish()
        await eventually(lambda: "invoices" in live.service.services.adapters.catalog.entries)
        status, problem = await live.failure("invoices")
        assert (status, problem["reason"], problem["model_id"]) == (409, "canary_failed", "invoices@1")


async def test_more_adapters_than_slots_take_turns_and_nobody_fails() -> None:
    names = [f"a{number}" for number in range(6)]
    async with live_service(slots=2, step_s=0.001) as live:
        for number, name in enumerate(names):
            live.publish(name, seed=number)
        for name in names:
            await live.serves(name, 1)
        alone = {name: (await live.answer(name))["text"] for name in names}
        assert len(set(alone.values())) == len(names)
        answers = await asyncio.gather(*(live.answer(names[number % 6]) for number in range(36)))
        assert [answer["text"] for answer in answers] == [alone[names[number % 6]] for number in range(36)]
        assert await live.service.metric("deepsynth_adapter_slots_used") <= 2
        await asyncio.sleep(0.2)
        assert await live.service.metric("deepsynth_adapter_evictions_total") >= 4
        assert await live.service.metric("deepsynth_adapter_requests_waiting") == 0


async def test_a_withdrawn_version_leaves_and_its_predecessor_answers() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        live.publish(seed=2)
        await live.serves("invoices", 2)
        withdraw(live.volume, AdapterRef("invoices", 2), "loops on receipts")
        await live.serves("invoices", 1)
        assert (await live.failure("invoices@2"))[1]["reason"] == "withdrawn"
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_a_version_that_is_not_in_use_is_prepared_when_it_is_asked_for() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        live.publish(seed=2, activate=False)
        await live.serves("invoices", 1)
        adapters = live.service.services.adapters
        await eventually(lambda: 2 in adapters.catalog.entries["invoices"].listing.versions)
        assert (await live.answer("invoices@2"))["model_id"] == "invoices@2"
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_a_volume_that_vanishes_takes_nothing_out_of_service() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        live.volume.root.rename(live.volume.root.with_name("elsewhere"))
        adapters = live.service.services.adapters
        await eventually(lambda: adapters.volume_fault is not None)
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        assert (await live.service.client.get("/adapters")).json()["volume"] == "volume_unavailable"
        assert await live.service.metric("deepsynth_adapter_volume_up") == 0
        assert (await live.service.client.get("/readyz")).status_code == 200
        live.volume.root.with_name("elsewhere").rename(live.volume.root)
        live.publish(seed=2)
        await live.serves("invoices", 2)


async def test_without_a_volume_there_are_no_adapters() -> None:
    async with live_service(adapter_dir=None) as live:
        assert (await live.service.client.get("/adapters")).json()["enabled"] is False
        assert (await live.failure("invoices"))[1]["known"] == ["fake"]
        assert (await live.order("invoices/rollback")).json()["code"] == "adapters_off"


async def test_publications_while_serving_cost_no_request_and_mix_no_answers() -> None:
    """A short form of what test_service_adapters_native.py does with a real engine and a hundred of them."""
    async with live_service(slots=2, step_s=0.001) as live:
        texts: dict[str, str] = {}
        for seed in range(3):
            live.publish(f"alone-{seed}", seed=seed)
            await live.serves(f"alone-{seed}", 1)
            texts[str(seed)] = (await live.answer(f"alone-{seed}"))["text"]
        live.publish("live", seed=0)
        await live.serves("live", 1)
        answers: list[dict[str, Any]] = []
        is_over = asyncio.Event()

        async def client() -> None:
            while not is_over.is_set():
                answers.append(await live.answer("live"))

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for version in range(2, 16):
            live.publish("live", seed=(version - 1) % 3)
            if version % 3:  # some are overtaken before they were ever in use
                await live.serves("live", version)
        await live.serves("live", 15)
        is_over.set()
        await asyncio.gather(*clients)
        for answer in answers:
            name, _, version = answer["model_id"].partition("@")
            assert (name, answer["text"]) == ("live", texts[str((int(version) - 1) % 3)])
        assert len({answer["model_id"] for answer in answers}) > 5
