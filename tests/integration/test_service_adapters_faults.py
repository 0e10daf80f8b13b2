"""Adapters while engines die, publishers are killed and the volume is away; and the traces of a load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.adapters import catalog
from service.engine.fake import FakeEngine
from service.engine.process.engines import ThreadEngine
from service.engine.protocol import EngineState, SequenceEvent
from shared.contract.refusals import Fault, VolumeError
from shared.contract.volume import AdapterListing, AdapterVolume
from tests.support.adapters import write_peft
from tests.support.fake_engine import SteeredEngine
from tests.support.live_adapters import ADMIN_KEY, LiveService, live_service
from tests.support.programs import ROOT
from tests.support.service import eventually, running_service
from tests.unit.service.engine.process.test_engines import QUICK

pytestmark = pytest.mark.integration


class Fragile(FakeEngine):
    """Its loop ends where a certain adapter reads."""

    def step(self) -> list[SequenceEvent]:
        if any(entry.request.model_id == "invoices@2" for entry in (*self._waiting, *self._running)):
            raise RuntimeError("told to break")
        return super().step()


@contextlib.asynccontextmanager
async def fragile_service() -> AsyncIterator[LiveService]:
    engine = cast("SteeredEngine", ThreadEngine(lambda: Fragile(adapter_slots=4), supervision=QUICK))
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder) / "volume"
        volume.mkdir()
        async with running_service(engine, adapter_dir=volume, adapter_poll_s=0.1, admin_key=ADMIN_KEY) as service:
            yield LiveService(service, AdapterVolume(volume), Path(folder) / "trained")


async def test_a_version_that_engines_are_lost_with_is_refused_and_the_last_good_one_answers() -> None:
    async with fragile_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        good = await live.answer("invoices")
        live.publish(seed=2)
        versions = live.service.services.adapters.catalog.entries["invoices"].versions
        await eventually(lambda: 2 in versions and versions[2].refusal is not None)
        assert (versions[2].refusal.reason, versions[2].num_losses) == ("canary_failed", 2)
        await eventually(lambda: live.service.engine.state is EngineState.READY)
        assert (await live.answer("invoices"))["text"] == good["text"]
        await eventually(lambda: list(live.service.engine.adapters) == ["invoices@1"])
        live.publish(seed=3)
        await live.serves("invoices", 3)


async def test_while_the_better_one_cannot_be_had_the_next_best_answers() -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        live.publish(seed=2, activate=False)
        live.publish(seed=3)
        await live.serves("invoices", 3)
        # Elsewhere version 2 was in use between the two; here there is no copy of it.
        (live.volume.root / "invoices" / ".c").write_text("3\n2\n1\n")
        (live.volume.root / "invoices" / ".c").rename(live.volume.root / "invoices" / "current")
        entry = live.service.services.adapters.catalog.entries["invoices"]
        await eventually(lambda: entry.listing.former == (2, 1))
        live.volume.root.rename(live.volume.root.with_name("elsewhere"))
        await live.order("invoices/rollback")
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        live.volume.root.with_name("elsewhere").rename(live.volume.root)
        await live.serves("invoices", 2)


async def test_a_name_with_nothing_left_waits_for_the_volume() -> None:
    async with live_service() as live:
        for seed in (1, 2, 3):
            live.publish(seed=seed)
            await live.serves("invoices", seed)
        entry = live.service.services.adapters.catalog.entries["invoices"]
        await eventually(lambda: [each for each in (1, 2, 3) if entry.versions[each].copy] == [2, 3])
        await live.order("invoices/refuse", version=2)
        await eventually(lambda: entry.versions[2].copy is None)
        await eventually(lambda: not live.service.services.adapters.cache.is_wanted("invoices@2"))
        live.volume.root.rename(live.volume.root.with_name("elsewhere"))
        await eventually(lambda: live.service.services.adapters.volume_fault is not None)
        # Nothing is left to go back to but a version whose copy is gone: it is waited for, not given up.
        answer = await live.order("invoices/rollback")
        assert (answer.status_code, answer.json()["serving"]) == (200, None)
        assert (await live.failure("invoices"))[0] == 503
        live.volume.root.with_name("elsewhere").rename(live.volume.root)
        await live.serves("invoices", 1)


async def test_records_and_copies_of_old_versions_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_KEPT_RECORDS", 4)
    monkeypatch.setattr(catalog, "MAX_FORMER", 2)
    async with live_service() as live:
        for seed in range(1, 13):
            live.publish(seed=seed)
            await live.serves("invoices", seed)
        entry = live.service.services.adapters.catalog.entries["invoices"]
        await eventually(lambda: len(entry.versions) <= 5)
        assert sorted(each for each, version in entry.versions.items() if version.copy) == [11, 12]
        # What was dropped can still be asked for.
        assert (await live.answer("invoices@3"))["model_id"] == "invoices@3"


async def test_a_load_leaves_one_trace_with_its_stages() -> None:
    exporter = InMemorySpanExporter()
    async with live_service(app_options={"span_exporter": exporter}) as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
    spans = {span.name: span for span in exporter.get_finished_spans() if span.name.startswith("deepsynth.adapter")}
    load = spans["deepsynth.adapter.load"]
    assert {name for name, span in spans.items() if span.parent and span.parent.span_id == load.context.span_id} == {
        f"deepsynth.adapter.{stage}" for stage in ("verify", "place", "canary")
    }
    assert load.parent is None
    assert dict(load.attributes) == {
        "deepsynth.adapter.name": "invoices",
        "deepsynth.adapter.version": 1,
        "deepsynth.adapter.bytes": load.attributes["deepsynth.adapter.bytes"],
        "deepsynth.adapter.result": "ok",
    }
    assert load.attributes["deepsynth.adapter.bytes"] > 100


async def test_a_refusal_is_traced_with_its_reason() -> None:
    exporter = InMemorySpanExporter()
    engine = FakeEngine(adapter_slots=4, refuse_with={"invoices@1": "wrong_shape"})
    async with live_service(engine=engine, app_options={"span_exporter": exporter}) as live:
        live.publish(seed=1)
        entries = live.service.services.adapters.catalog.entries
        await eventually(lambda: "invoices" in entries and entries["invoices"].versions[1].refusal is not None)
    load = next(span for span in exporter.get_finished_spans() if span.name == "deepsynth.adapter.load")
    assert (load.attributes["deepsynth.adapter.result"], load.attributes["error.type"]) == ("refused", "wrong_shape")


@pytest.mark.chaos
async def test_killed_publishers_never_bring_anything_half_into_service() -> None:
    async with live_service() as live:
        source = write_peft(live.trained / "killed")
        command = [sys.executable, "-m", "tests.support.publishers", live.volume.root, source, "500", "7", "fake"]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        publishers = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        try:
            adapters = live.service.services.adapters
            await eventually(lambda: len(adapters.catalog.known_names) == 2)
            expected = {name: (await live.answer(name))["text"] for name in adapters.catalog.known_names}
            while publishers.returncode is None:
                for name, text in expected.items():
                    assert (await live.answer(name))["text"] == text  # all versions have the same content
                await asyncio.sleep(0.01)
        finally:
            await publishers.wait()
        assert publishers.returncode == 0
        for name in expected:
            current = live.volume.listing(name).current
            await live.serves(name, current)
            refused = [each for each in adapters.catalog.entries[name].versions.values() if each.refusal]
            assert refused == []


async def test_a_pointer_to_a_version_that_cannot_be_served_leaves_the_one_in_use() -> None:
    async with live_service() as live:
        for seed in (1, 2):
            live.publish(seed=seed)
            await live.serves("invoices", seed)
        number = live.publish(seed=3, activate=False)
        folder = live.volume.root / "invoices"
        weights = folder / str(number) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        entry = live.service.services.adapters.catalog.entries["invoices"]
        for named in (number, 99):
            # As docs/adapters.md has it, without the versions before.
            (folder / ".c").write_text(f"{named}\n")
            (folder / ".c").rename(folder / "current")
            await eventually(lambda named=named: entry.listing.current == named)
            if named == number:
                await eventually(lambda: entry.versions[number].refusal is not None)
            assert entry.active == 2
            assert (await live.answer("invoices"))["model_id"] == "invoices@2"


async def test_a_folder_that_cannot_be_read_is_told_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        (live.volume.root / "broken").mkdir()
        listing = AdapterVolume.listing

        def deny(self: AdapterVolume, name: str, besides: int = 0) -> AdapterListing:
            if name == "broken":
                raise VolumeError(Fault.PERMISSION_DENIED, "looking at broken")
            return listing(self, name, besides)

        monkeypatch.setattr(AdapterVolume, "listing", deny)
        await eventually(lambda: live.service.services.adapters.volume_fault is not None)
        assert (await live.service.client.get("/adapters")).json()["volume"] == "permission_denied: broken"
        assert await live.service.metric("deepsynth_adapter_volume_up") == 0
        live.publish(seed=2)
        await live.serves("invoices", 2)


async def test_what_lies_on_the_volume_and_is_not_served_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with live_service() as live:
        live.publish("invoices", seed=1)
        await live.serves("invoices", 1)
        for place in ("Invoices_DE/1", "receipts/1", "invoices/2", "letters"):
            write_peft(live.volume.root / place, seed=1)
        for ignored in ("lost+found", ".snapshot"):
            (live.volume.root / ignored).mkdir()
        (live.volume.root / "receipts" / "current").write_text("1\n")
        adapters = live.service.services.adapters
        assert adapters is not None
        await eventually(lambda: {"receipts", "letters"} <= set(adapters.catalog.entries) and adapters.misnamed)
        await eventually(lambda: adapters.catalog.entries["invoices"].listing.incomplete == (2,))
        answer = (await live.service.client.get("/adapters")).json()
        assert answer["misnamed"] == ["Invoices_DE"]
        unpublished = {each["name"]: each["unpublished"] for each in answer["adapters"]}
        assert unpublished == {
            "invoices": [{"folder": "2", "reason": "manifest_missing"}],
            "letters": [{"folder": ".", "reason": "manifest_missing"}],
            "receipts": [{"folder": "1", "reason": "manifest_missing"}],
        }
        for model_id in ("receipts", "receipts@1", "letters", "invoices@2"):
            status, problem = await live.failure(model_id)
            assert (status, problem["code"], problem["reason"]) == (404, "model_not_found", "manifest_missing")
        assert "reason" not in (await live.failure("unheard-of"))[1]
        await live.answer("invoices")
        await asyncio.sleep(0.5)
    told = [record.getMessage() for record in caplog.records if "not served" in record.getMessage()]
    assert len(told) == 4
    assert sum("receipts/1 is not served" in each for each in told) == 1
    assert sum("letters is not served" in each for each in told) == 1
