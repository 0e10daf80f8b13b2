"""Folders that must not be served, put before the running service: each is refused, the last good version answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pytest

from service.engine.fake import FakeEngine
from shared.contract.publication import publish
from shared.contract.refusals import Fault, Reason, VolumeError
from shared.contract.verification import verify
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from tests.support.live_adapters import FAKE_BASE, live_service
from tests.support.service import eventually
from tests.unit.shared.contract.test_hostile_folders import HOSTILE, edit_manifest

pytestmark = pytest.mark.integration

OTHER_POLICY = {
    "rank-stabilised", "huge weights", "wrong base", "wrong revision", "routed experts", "too many tensors",
    "a module that does not exist", "another width than the base", "config of another base",
    "weights with too many bytes that the manifest plays down",
}  # fmt: skip
"""Cases that the contract's own test judges by limits, revisions and modules that the fake engine does not have."""
CASES = {name: case for name, case in HOSTILE.items() if name not in OTHER_POLICY}
ONE_OF_EACH = {case[1]: name for name, case in CASES.items()}
"""A case for each reason."""


class Recording(FakeEngine):
    """Knows what it was ever asked to load."""

    def __init__(self, **options):
        super().__init__(**options)
        self.loaded: list[str] = []

    def load_adapter(self, model_id, source):
        self.loaded.append(model_id)
        super().load_adapter(model_id, source)


def stage_broken(staging: AdapterVolume, source: Path, name: str, case: str) -> Path:
    """Version 2 of an adapter, as a publisher makes it, and then broken."""
    for _ in range(2):
        publish(staging, source, announcement(name, base=FAKE_BASE))
    folder = staging.root / name / "2"
    # The breakers speak of the adapter that their own test publishes.
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "fake"
    CASES[case][0](folder)
    return folder


@pytest.mark.parametrize(
    "cases", [ONE_OF_EACH.values(), pytest.param(CASES, marks=pytest.mark.chaos)], ids=["one of each", "all"]
)
async def test_hostile_and_broken_folders_are_refused_each_with_its_reason(
    tmp_path: Path, cases: Collection[str]
) -> None:
    assert len(cases) >= 30
    staging = AdapterVolume(tmp_path / "staging")
    staging.root.mkdir()
    source = write_peft(tmp_path / "source", seed=1)
    engine = Recording(adapter_slots=4)
    async with live_service(engine=engine, adapter_wait_s=5.0) as live:
        names = {f"case-{number}": case for number, case in enumerate(cases)}
        for name in names:
            publish(live.volume, source, announcement(name, base=FAKE_BASE))
        for name in names:
            await live.serves(name, 1)
        good = (await live.answer("case-0"))["text"]
        for name, case in names.items():
            broken = await asyncio.to_thread(partial(stage_broken, staging, source, name, case))
            for beside in broken.parent.glob("*"):
                if beside.name not in {"1", "current"}:
                    shutil.move(beside, live.volume.root / name / beside.name)
            (live.volume.root / name / ".c").write_text("2\n1\n")
            (live.volume.root / name / ".c").rename(live.volume.root / name / "current")
        found = {}
        entries = live.service.services.adapters.catalog.entries
        for name, case in names.items():
            if case == "no manifest":  # not even a version; nothing to refuse
                await eventually(lambda name=name: entries[name].listing.incomplete == (2,))
                continue
            await eventually(lambda name=name: 2 in entries[name].versions and entries[name].versions[2].refusal)
            found[case] = entries[name].versions[2].refusal.reason
            status, problem = await live.failure(f"{name}@2")
            assert (status, problem["reason"]) == (409, found[case])
        assert found == {case: CASES[case][1].value for case in found}
        assert [name for name in engine.loaded if name.endswith("@2")] == []
        for name in names:
            answer = await live.answer(name)
            assert (answer["model_id"], answer["text"]) == (f"{name}@1", good)


async def test_private_storage_that_is_full_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        failures = iter([Fault.STORAGE_FULL, Fault.IO])

        def full(*arguments):
            fault = next(failures, None)
            if fault is not None:
                raise VolumeError(fault, "told to fail")
            return verify(*arguments)

        monkeypatch.setattr("service.adapters.loader.verify", full)
        monkeypatch.setattr("service.adapters.loader.FIRST_RETRY_S", 0.05)
        live.publish(seed=2)
        versions = live.service.services.adapters.catalog.entries["invoices"].versions
        await eventually(lambda: 2 in versions and versions[2].fault is not None)
        assert (await live.answer("invoices"))["model_id"] == "invoices@1"
        await live.serves("invoices", 2)
        assert await live.service.metric('deepsynth_adapter_loads_total{result="fault"}') == 2


async def test_publishers_at_the_same_time_leave_the_highest_version_in_service(tmp_path: Path) -> None:
    async with live_service() as live:
        sources = [write_peft(tmp_path / str(seed), seed=seed) for seed in range(4)]

        def many(source: Path) -> None:
            for _ in range(5):
                publish(live.volume, source, announcement(base=FAKE_BASE))

        await asyncio.gather(*(asyncio.to_thread(many, source) for source in sources))
        await live.serves("invoices", 20)
        assert (await live.answer("invoices"))["model_id"] == "invoices@20"


@pytest.mark.parametrize("created", ["1970-01-01T00:00:00Z", "2099-12-31T00:00:00+14:00"])
async def test_a_publishers_wrong_clock_changes_nothing(created: str, tmp_path: Path) -> None:
    staging = AdapterVolume(tmp_path / "staging")
    staging.root.mkdir()
    publish(staging, write_peft(tmp_path / "source"), announcement(base=FAKE_BASE))
    edit_manifest(staging.root / "invoices" / "1", created=created)
    async with live_service() as live:
        shutil.move(staging.root / "invoices", live.volume.root / "invoices")
        await live.serves("invoices", 1)
        await asyncio.sleep(0.2)
        assert await live.service.metric('deepsynth_adapter_served_age_seconds{adapter="invoices"}') >= 0


async def test_other_weights_under_a_number_that_was_served_are_refused(tmp_path: Path) -> None:
    async with live_service() as live:
        live.publish(seed=1)
        await live.serves("invoices", 1)
        entry = live.service.services.adapters.catalog.entries["invoices"]
        other = AdapterVolume(tmp_path)
        publish(other, write_peft(tmp_path / ".source", seed=2), announcement(base=FAKE_BASE))
        for seed in (3, 4, 5):
            live.publish(seed=seed)
            await live.serves("invoices", seed - 1)
        await eventually(lambda: entry.versions[1].copy is None)
        shutil.rmtree(live.volume.root / "invoices" / "1")
        shutil.move(tmp_path / "invoices" / "1", live.volume.root / "invoices" / "1")
        status, problem = await live.failure("invoices@1")
        assert (status, problem["reason"]) == (409, Reason.CHECKSUM_MISMATCH)
