"""Operators' orders about adapters, and versions that are taken back by themselves."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.engine.fake import FakeEngine
from service.errors import EngineError
from shared.contract.answer import FinishReason
from shared.contract.identity import AdapterRef
from tests.support.live_adapters import ADMIN_KEY, LiveService, live_service
from tests.support.service import eventually

pytestmark = pytest.mark.integration


def audit(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]


async def two_versions(live: LiveService) -> None:
    for seed in (1, 2):
        live.publish(seed=seed)
        await live.serves("invoices", seed)


async def test_rollback_returns_to_the_last_good_version_in_one_call(tmp_path: Path) -> None:
    async with live_service(adapter_state_dir=tmp_path) as live:
        await two_versions(live)
        answer = await live.order("invoices/rollback", why="loops on receipts", who="ada")
        assert (answer.status_code, answer.json()["serving"]) == (200, "invoices@1")
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        assert (await live.failure("invoices@2"))[1]["reason"] == "refused_by_operator"
        assert await live.service.metric('deepsynth_adapter_rollbacks_total{cause="operator"}') == 1
        again = await live.order("invoices/rollback")
        assert (again.status_code, again.json()["code"]) == (409, "adapter_conflict")
        # What was rolled back stays so, but a new version is another matter.
        live.publish(seed=3)
        await live.serves("invoices", 3)
    lines = audit(tmp_path)
    assert [(line["what"], line["version"], line["who"]) for line in lines] == [
        ("activated", 1, "service"),
        ("activated", 2, "service"),
        ("refused", 2, "ada"),
        ("activated", 1, "service"),
        ("activated", 3, "service"),
    ]
    assert lines[2]["why"] == "loops on receipts"
    assert all(line["time"] and line["name"] == "invoices" for line in lines)


async def test_a_rollback_needs_no_volume() -> None:
    async with live_service() as live:
        await two_versions(live)
        live.volume.root.rename(live.volume.root.with_name("elsewhere"))
        assert (await live.order("invoices/rollback")).json()["serving"] == "invoices@1"
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_a_pin_holds_whatever_is_published_until_it_is_lifted() -> None:
    async with live_service() as live:
        await two_versions(live)
        answer = (await live.order("invoices/pin", version=1)).json()
        assert (answer["serving"], answer["pinned"]) == ("invoices@1", 1)
        live.publish(seed=3)
        adapters = live.service.services.adapters
        await eventually(lambda: adapters.catalog.entries["invoices"].listing.current == 3)
        await asyncio.sleep(0.2)
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        answer = (await live.order("invoices/pin", version=None)).json()
        assert answer["pinned"] is None
        await live.serves("invoices", 3)


async def test_a_command_in_the_query_string_is_refused_and_does_nothing() -> None:
    async with live_service() as live:
        await two_versions(live)
        answer = await live.order("invoices/pin?version=1", version=2)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
        assert (await live.order("invoices/pin", version=2)).json()["pinned"] == 2


async def test_refusing_a_version_that_is_not_in_use_keeps_it_out() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        live.publish(seed=2, activate=False)
        await live.serves("invoices", 1)
        await eventually(lambda: 2 in live.service.services.adapters.catalog.entries["invoices"].listing.versions)
        answer = await live.order("invoices/refuse", version=2, why="untried")
        assert answer.json()["serving"] == "invoices@1"
        live.volume.activate(AdapterRef("invoices", 2))
        await asyncio.sleep(0.3)
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_refusing_the_only_version_leaves_nothing_and_a_pin_takes_it_back() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        assert (await live.order("invoices/refuse", version=1)).json()["serving"] is None
        status, problem = await live.failure("invoices")
        assert (status, problem["reason"]) == (409, "refused_by_operator")
        assert (await live.order("invoices/pin", version=1)).json()["serving"] == "invoices@1"
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_a_version_that_is_gone_cannot_be_pinned() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await live.order("invoices/refuse", version=1)
        shutil.rmtree(live.volume.root / "invoices" / "1")
        entry = live.service.services.adapters.catalog.entries["invoices"]
        await eventually(lambda: not entry.listing.versions and entry.versions[1].copy is None)
        answer = await live.order("invoices/pin", version=1)
        assert (answer.status_code, answer.json()["code"]) == (409, "adapter_conflict")
        assert "publish it again" in answer.json()["reason"]
        assert (await live.listed())["pinned"] is None
        for model_id in ("invoices", "invoices@1"):
            status, problem = await live.failure(model_id)
            assert (status, problem["reason"]) == (409, "refused_by_operator")


async def test_a_pinned_version_that_is_gone_is_not_ready_under_its_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with live_service(adapter_state_dir=state, adapter_wait_s=0.2) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await live.order("invoices/pin", version=1)
        catalog = live.service.services.adapters.catalog
        shutil.rmtree(live.volume.root / "invoices" / "1")
        entry = catalog.entries["invoices"]
        await eventually(lambda: not entry.listing.versions)
        # As after a loss of the state folder's copies.
        entry.versions[1].copy, entry.active = None, None
        for model_id in ("invoices", "invoices@1"):
            status, problem = await live.failure(model_id)
            assert (status, problem["code"]) == (503, "adapter_not_ready")
            assert problem["retryable"]


async def test_decisions_outlive_the_process(tmp_path: Path) -> None:
    async with live_service(adapter_state_dir=tmp_path) as live:
        await two_versions(live)
        await live.order("invoices/rollback")
        volume = live.volume.root.rename(tmp_path / "kept")
    async with live_service(adapter_state_dir=tmp_path, adapter_dir=volume) as live:
        await live.serves("invoices", 1)
        assert (await live.failure("invoices@2"))[1]["reason"] == "refused_by_operator"
        await live.order("invoices/pin", version=2)
    async with live_service(adapter_state_dir=tmp_path, adapter_dir=volume) as live:
        await live.serves("invoices", 2)
        assert (await live.listed())["pinned"] == 2


async def test_a_version_that_failed_its_checks_cannot_be_pinned() -> None:
    async with live_service(engine=FakeEngine(adapter_slots=4, refuse_with={"invoices@2": "wrong_shape"})) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        live.publish(seed=2)
        await eventually(lambda: 2 in live.service.services.adapters.catalog.entries["invoices"].listing.versions)
        answer = await live.order("invoices/pin", version=2)
        assert (answer.status_code, answer.json()["reason"]) == (409, "wrong_shape")
        listed = await live.listed()
        assert (listed["serving"], listed["pinned"]) == ("invoices@1", None)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("invoices/pin", {"version": 9}, 404, "model_not_found"),
        ("receipts/rollback", {}, 404, "model_not_found"),
        ("receipts/pin", {"version": 1}, 404, "model_not_found"),
        ("..%2Fx/rollback", {}, 404, None),
        ("invoices/pin", {"version": 0}, 422, "invalid_field"),
        ("invoices/pin", {}, 422, "invalid_field"),
        ("invoices/refuse", {"version": "x"}, 422, "invalid_field"),
        ("invoices/rollback", {"why": ""}, 422, "invalid_field"),
        ("invoices/rollback", {"more": 1}, 422, "invalid_field"),
        ("invoices/rollback", {"why": "x" * 20_000}, 413, "upload_too_large"),
    ],
)
async def test_an_order_that_cannot_be_carried_out_is_refused(
    path: str, body: dict[str, Any], status: int, code: str | None
) -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        answer = await live.order(path, **body)
        assert answer.status_code == status
        assert code is None or answer.json()["code"] == code
        assert (await live.listed())["serving"] == "invoices@1"


async def test_an_order_whose_body_does_not_come_is_not_waited_for() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(3600)
        yield b"}"

    async with live_service(body_idle_s=0.2) as live:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with asyncio.timeout(60):
            url = "/adapters/invoices/rollback"
            answer = await live.service.client.post(url, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")


@pytest.mark.parametrize("key", [None, "", "wrong horse battery", ADMIN_KEY + "x", "é" * 16])
async def test_nobody_gives_orders_without_the_key(key: str | None) -> None:
    async with live_service() as live:
        await two_versions(live)
        for path, body in (("pin", {"version": 1}), ("rollback", {}), ("refuse", {"version": 2})):
            headers = {} if key is None else {"authorization": f"Bearer {key}".encode()}
            url = f"/adapters/invoices/{path}"
            answer = await live.service.client.post(url, json={"why": "x", **body}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "admin_key_required")
        assert (await live.listed())["serving"] == "invoices@2"


async def test_without_a_key_set_nobody_gives_orders() -> None:
    async with live_service(admin_key=None) as live:
        await two_versions(live)
        for key in (None, "", "None", ADMIN_KEY):
            answer = await live.order("invoices/rollback", key=key)
            assert (answer.status_code, answer.json()["code"]) == (403, "admin_off")


async def test_details_of_a_refusal_are_for_operators_alone() -> None:
    async with live_service(engine=FakeEngine(adapter_slots=4, refuse_with={"invoices@1": "wrong_shape"})) as live:
        live.publish(seed=1)
        entries = live.service.services.adapters.catalog.entries
        await eventually(lambda: "invoices" in entries and entries["invoices"].versions[1].refusal is not None)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        shown = (await live.service.client.get("/adapters", headers=headers)).json()["adapters"][0]["versions"][0]
        assert (shown["reason"], shown["detail"]) == ("wrong_shape", "told to refuse")
        assert (await live.listed())["versions"][0]["detail"] is None


async def read_pages(live: LiveService, model_id: str, reasons: list[FinishReason]) -> None:
    for reason in reasons:
        async with live.service.services.models.lease(model_id) as lease:
            lease.finished([reason])


FINE, LOOP = FinishReason.STOP, FinishReason.REPETITION
RULE = {"adapter_rollback_pages": 20, "adapter_rollback_margin": 0.2}


async def test_a_version_that_loops_more_than_its_predecessor_is_taken_back(tmp_path: Path) -> None:
    async with live_service(adapter_state_dir=tmp_path, **RULE) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await read_pages(live, "invoices", [LOOP] * 2 + [FINE] * 18)
        live.publish(seed=2)
        await live.serves("invoices", 2)
        await read_pages(live, "invoices", [LOOP] * 6 + [FINE] * 14)
        assert (await live.listed())["serving"] == "invoices@2"  # 30 %, not more than 10 % and 20
        await read_pages(live, "invoices", [LOOP] * 7)
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        assert (await live.failure("invoices@2"))[1]["reason"] == "rolled_back"
        assert await live.service.metric('deepsynth_adapter_rollbacks_total{cause="automatic"}') == 1
        assert await live.service.metric('deepsynth_adapter_pages_total{adapter="invoices",outcome="loop"}') == 15
    line = next(line for line in audit(tmp_path) if line["what"] == "refused")
    assert (line["who"], line["version"]) == ("automatic rollback", 2)
    assert line["why"] == "loop rate 35% over 20 pages, 10% before"


async def test_a_version_that_fails_more_than_its_predecessor_is_taken_back() -> None:
    async with live_service(**RULE) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await read_pages(live, "invoices", [FINE] * 20)
        live.publish(seed=2)
        await live.serves("invoices", 2)
        await read_pages(live, "invoices", [FINE] * 15)
        for _ in range(5):
            with pytest.raises(EngineError):
                async with live.service.services.models.lease("invoices"):
                    raise EngineError("told to fail")
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"


async def test_a_pinned_version_is_not_taken_back() -> None:
    async with live_service(**RULE) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await read_pages(live, "invoices", [FINE] * 20)
        live.publish(seed=2)
        await live.serves("invoices", 2)
        await live.order("invoices/pin", version=2)
        await read_pages(live, "invoices", [LOOP] * 20)
        assert (await live.answer("invoices"))["model_id"] == "invoices@2"


async def test_an_order_that_cannot_be_saved_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_service(adapter_state_dir=tmp_path) as live:
        await two_versions(live)

        def fill(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("service.adapters.storage.replace_file", fill)
            for path, body in (("refuse", {"version": 2}), ("pin", {"version": 1}), ("rollback", {})):
                answer = await live.order(f"invoices/{path}", **body)
                assert (answer.status_code, answer.json()["code"]) == (507, "adapter_state_unwritable")
                shown = await live.listed()
                assert (shown["serving"], shown["pinned"]) == ("invoices@2", None)
                assert (await live.states())[2] == "active"
        assert (await live.order("invoices/refuse", version=2)).status_code == 200
        assert (await live.listed())["serving"] == "invoices@1"
    assert "invoices@2" in json.loads((tmp_path / "decisions.json").read_text())["refusals"]


async def test_an_automatic_rollback_holds_on_a_full_disk_and_is_saved_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"adapter_rollback_pages": 20, "adapter_rollback_margin": 0.1}
    async with live_service(adapter_state_dir=tmp_path, **rule) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        await read_pages(live, "invoices@1", [FinishReason.STOP] * 20)
        live.publish(seed=2)
        await live.serves("invoices", 2)

        def fill(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("service.adapters.storage.replace_file", fill)
            await read_pages(live, "invoices@2", [FinishReason.REPETITION] * 20)
            await live.serves("invoices", 1)
            assert not (tmp_path / "decisions.json").exists()
        await eventually((tmp_path / "decisions.json").exists)
    assert "invoices@2" in json.loads((tmp_path / "decisions.json").read_text())["refusals"]


async def test_adapters_are_listed_in_pages() -> None:
    async with live_service(slots=1) as live:
        names = sorted(f"adapter-{number}" for number in range(5))
        for name in names:
            live.publish(name)
        entries = live.service.services.adapters.catalog.entries
        await eventually(lambda: len(entries) == len(names))
        listed: list[str] = []
        query: dict[str, str] | None = {"limit": "2"}
        while query is not None:
            answer = (await live.service.client.get("/adapters", params=query)).json()
            assert len(answer["adapters"]) <= 2
            listed += [each["name"] for each in answer["adapters"]]
            query = {"limit": "2", "after": answer["next"]} if answer["next"] else None
        assert listed == names
        assert (await live.service.client.get("/adapters")).json()["next"] is None
        for query, field in (
            ({"limit": "0"}, "limit"),
            ({"limit": "1001"}, "limit"),
            ({"limit": "-1"}, "limit"),
            ({"limit": "99999999999999"}, "limit"),
            ({"page": "2"}, "page"),
        ):
            refused = await live.service.client.get("/adapters", params=query)
            assert (refused.status_code, refused.json()["field"]) == (422, field)
