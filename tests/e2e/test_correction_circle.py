"""Pages read wrongly are corrected, an adapter learns from the corrections, and the same service reads them right."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from random import Random

import httpx
import pytest

from benchmarks.demo_loop import service, wait_served
from shared.contract.text import cer
from tests.support.nano import needs_nano
from tests.support.printed import number_cells
from tests.support.programs import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_nano, pytest.mark.timeout(1800)]

NUM_PAGES = 40


def boxed(text: str) -> bytes:
    """Numbers in cells, as no face that nano has seen draws them."""
    stream = io.BytesIO()
    number_cells(text).save(stream, "PNG")
    return stream.getvalue()


def numbers(rng: Random) -> str:
    return "\n".join(f"{rng.randrange(10**5):05} {rng.randrange(10**5):05}" for _ in range(2))


def train(*commands: list[str]) -> None:
    """Run commands of the trainer, one after the other, in a process."""
    program = "import json, sys; from trainer.cli import main; sys.exit(any(map(main, json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_corrected_pages_teach_the_running_service(tmp_path: Path) -> None:
    rng = Random(1)
    corrected, fresh = [numbers(rng) for _ in range(NUM_PAGES)], [numbers(rng) for _ in range(4)]
    volume, samples = tmp_path / "volume", tmp_path / "samples"
    volume.mkdir()
    settings = {"OCR_SAVE_SAMPLES": "true", "OCR_PRIVACY_ALLOWED": "true", "SAMPLE_DIR": str(samples)}
    with service(volume, tmp_path / "log", **settings) as running:
        # Measured without being kept, so that no page of the measurement is trained on.
        no_store = {"X-Deepsynth-No-Store": "1"}
        with httpx.Client(base_url=running.url, timeout=300) as client:

            def error_rate(**fields: str) -> float:
                readings = [
                    client.post("/ocr", files={"file": boxed(text)}, data=fields, headers=no_store).json()["text"]
                    for text in fresh
                ]
                return sum(map(cer, fresh, readings)) / len(fresh)

            before = error_rate()
            assert before >= 0.3, "nano reads these pages well: it shows nothing"
            for text in corrected:
                answer = client.post("/ocr", files={"file": boxed(text)})
                given = client.post("/feedback", json={"id": answer.json()["id"], "text": text})
                assert given.status_code == 200, given.text
            pages, run = str(tmp_path / "set"), str(tmp_path / "run")
            train(
                ["prepare", "--source", "samples", "--path", str(samples), "--validation-share", "0.1",
                 "--test-share", "0.15", "--out", pages],
                ["train", "--preset", "smoke", "--dataset-name", pages, "--output-dir", run, "--batch-size", "4",
                 "--max-steps", "16", "--eval-steps", "16", "--max-eval-samples", "2", "--max-new-tokens", "32"],
                ["evaluate", "--adapter", run, "--data", pages, "--split", "test", "--max-new-tokens", "32",
                 "--json", str(tmp_path / "run" / "evaluation.json")],
                ["publish", "--adapter", run, "--base", "shared/nano", "--volume", str(volume), "--name", "boxes",
                 "--min-improvement", "0.5", "--min-pages", "3"],
            )  # fmt: skip
            assert wait_served(running.url, "boxes") == "boxes@1"
            after = error_rate(model_id="boxes")
    manifest = json.loads((volume / "boxes" / "1" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["training_data"]["samples"] < NUM_PAGES
    assert len(list((samples / "pages").glob("*.json"))) == NUM_PAGES
    assert after <= 0.2 * before, f"{before:.1%} of the characters wrong before, {after:.1%} after"
