from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.telemetry import disk
from service.telemetry.disk import DiskGauges
from service.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, folder: str) -> float | None:
    return metrics.registry.get_sample_value(f"deepsynth_disk_{name}_bytes", {"folder": folder})


async def test_the_disk_of_a_folder_that_is_still_to_come_is_that_of_its_parent(tmp_path: Path) -> None:
    metrics = Metrics()
    await DiskGauges(metrics, {"jobs": tmp_path / "later" / "jobs"}).refresh()
    usage = shutil.disk_usage(tmp_path)
    assert value(metrics, "size", "jobs") == usage.total
    assert 0 < (value(metrics, "free", "jobs") or 0) <= usage.total
    assert value(metrics, "size", "samples") is None


async def test_a_disk_that_hangs_does_not_hold_a_scrape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    released = threading.Event()

    def hang(folder: Path) -> SimpleNamespace:
        calls.append(folder)
        assert released.wait(30)
        return SimpleNamespace(free=1, total=2)

    monkeypatch.setattr(disk, "TIMEOUT_S", 0.02)
    monkeypatch.setattr(shutil, "disk_usage", hang)
    metrics = Metrics()
    gauges = DiskGauges(metrics, {"jobs": tmp_path})
    await gauges.refresh()
    await gauges.refresh()
    # The second scrape waits for the first look.
    assert calls == [tmp_path]
    assert value(metrics, "free", "jobs") is None
    monkeypatch.setattr(disk, "TIMEOUT_S", 30.0)
    released.set()
    await gauges.refresh()
    assert value(metrics, "free", "jobs") == 1


async def test_a_disk_that_cannot_be_asked_has_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    metrics = Metrics()
    await DiskGauges(metrics, {"jobs": tmp_path}).refresh()
    assert value(metrics, "size", "jobs") is None
