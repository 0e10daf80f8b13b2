"""Publishers killed at random moments, while a reader looks on: it never sees anything half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.contract.identity import AdapterRef
from shared.contract.leftovers import sweep
from shared.contract.publication import publish
from shared.contract.verification import ServingPolicy, verify
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft

ROOT = Path(__file__).resolve().parents[4]


def check_new_versions(volume, seen, private):
    """Verify every version not seen before, and that the one in use is among them."""
    for name, listing in volume.discover().items():
        assert listing.incomplete == ()
        assert listing.fault is None
        for version in listing.versions:
            reference = AdapterRef(name, version)
            if reference not in seen:
                verify(volume, reference, private / str(reference), ServingPolicy())
                seen.add(reference)
        if listing.current is not None:
            assert AdapterRef(name, listing.current) in seen


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.chaos)])
def test_killed_publishers_leave_nothing_half(tmp_path, count):
    volume = AdapterVolume(tmp_path / "volume")
    volume.root.mkdir()
    source = write_peft(tmp_path / "trained")
    private = tmp_path / "private"
    private.mkdir()
    command = [sys.executable, "-m", "tests.support.publishers", volume.root, source, str(count), "7"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    seen: set[AdapterRef] = set()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as publishers:
        while publishers.poll() is None:
            check_new_versions(volume, seen, private)
            time.sleep(0.02)
        ends = json.loads(publishers.stdout.read())
    check_new_versions(volume, seen, private)
    assert ends["failed"] == 0
    assert ends["killed"] > count / 5
    assert len(seen) > count / 50
    for name, listing in volume.discover().items():
        assert listing.versions == tuple(range(1, len(listing.versions) + 1))
        sweep(volume, name, older_than_s=-1.0)
        assert [entry for entry in os.listdir(volume.root / name) if entry.startswith(".")] == []
        assert publish(volume, source, announcement(name)).in_use == len(listing.versions) + 1
