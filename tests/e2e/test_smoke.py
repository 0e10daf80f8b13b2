"""`make deepseek-ocr-smoke` with nano: prepared, trained, measured, published, half of the errors gone at least.

Two thirds of its pages and about a quarter of its steps, which are enough for that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from shared.contract.volume import AdapterVolume
from tests.support.nano import needs_nano
from tests.support.programs import ROOT

SHORTER = ("--texts", "120", "--train-flags", "--max-steps 16 --eval-steps 16")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_nano, pytest.mark.timeout(1800)]


def test_the_smoke_run_halves_the_error_rate_and_publishes(tmp_path):
    out = tmp_path / "smoke"
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "smoke", "--out", str(out), *SHORTER],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run" / "evaluation.json").read_text(encoding="utf-8"))
    by_name = {reader["name"]: reader["tiers"]["test"] for reader in record["readers"]}
    assert by_name["nano"]["cer"] >= 0.5, "nano reads the domain well: it shows nothing"
    assert by_name["run"]["cer"] <= 0.5 * by_name["nano"]["cer"]
    assert by_name["run"]["pages"] >= 10
    version = AdapterVolume(out / "volume").resolve("comb")
    assert str(version) == "comb@1"
    manifest = json.loads((out / "volume" / "comb" / "1" / "manifest.json").read_text(encoding="utf-8"))
    trained_on = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))["data"]
    assert manifest["training_data"] == {"sha256": trained_on["fingerprint"], "samples": trained_on["num_samples"]}
