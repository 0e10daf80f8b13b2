"""`benchmarks/backends.py`, which GPU hosts run, on a tiny DeepSeek-OCR-2 and a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.programs import ROOT

pytestmark = pytest.mark.bench


def program(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "benchmarks/backends.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_adapter_of_ocr2_is_trained_written_and_loaded_on_a_fresh_model(tmp_path):
    program("write-ocr2", tmp_path / "ocr2", "--tiny")
    printed = program(
        "run", "peft", tmp_path / "ocr2", "--updates", 3, "--samples", 4, "--batch-size", 2, "--rate", 0.02, "--mlp"
    )
    record = json.loads(printed.splitlines()[-1])
    assert record["agree"] is True
    assert record["loss_on_fresh_model"] != record["loss_of_base"]
    assert record["updates"] == 3
