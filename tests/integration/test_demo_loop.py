"""The program behind `make demo-loop`, with a model in miniature, and PEFT in the place of training."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks import demo_loop
from benchmarks.demo_loop import DemoError, Loop, run, wait_served
from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.programs import ROOT, take_interrupts
from tests.support.service import page_image
from tests.support.tiny_model import tiny_model
from trainer.nano.corpus.tokenizer import train_tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    save_checkpoint(tiny_model(), folder, storage="float32")
    train_tokenizer(["the page, the text; 12 of 34\n"] * 4, vocab_size=280).save(str(folder / "tokenizer.json"))
    return folder


def peft_adapter(folder: Path, checkpoint: Path) -> Path:
    """What a trainer leaves behind: PEFT's own files, its matrices far from zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_model(), config)
    model.peft_config["default"].base_model_name_or_path = str(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


def page_set(folder: Path) -> Path:
    """An evaluation set of two pages."""
    folder.mkdir()
    lines = []
    for number in range(2):
        page_image(f"page {number}").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"page {number}")
        lines.append({"image": f"{number}.png", "text": f"{number}.txt", "tier": "few", "layout": "line"})
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_loop_goes_round_once(tmp_path: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = peft_adapter(tmp_path / "trained", checkpoint)
    (tmp_path / "volume").mkdir()
    publishing = [
        "publish", "--from", str(adapter), "--base", str(checkpoint), "--force", "a test", "--name", "few",
        "--volume", str(tmp_path / "volume"),
    ]  # fmt: skip
    loop = Loop("few", page_set(tmp_path / "set"), [], [publishing], part=("--tiers", "few"), max_new_tokens=12)
    result = run(tmp_path, loop, MODEL=str(checkpoint), CPU_THREADS="1", IMAGE_WORKERS="1")
    assert result["model_id"] == "few@1"
    # Random weights read nothing; that the two differ shows that the served pages were read with the adapter.
    assert result["base_cer"] != result["adapter_cer"]
    shown = capfd.readouterr().err
    assert "$ python -m trainer publish --from" in shown
    assert "served CER:" in shown


def test_a_command_that_fails_ends_the_loop_and_the_service(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "volume").mkdir()
    loop = Loop("few", page_set(tmp_path / "set"), [["publish", "--nonsense"]], [])
    with pytest.raises(DemoError, match="`trainer publish` ended with status 2"):
        run(tmp_path, loop, ENGINE="fake")


def test_a_refused_adapter_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"adapters": [{"name": "few", "serving": None, "versions": [{"reason": "not_better"}]}]}
    monkeypatch.setattr(demo_loop, "_get", lambda _: listed)
    with pytest.raises(DemoError, match="the service refused few: not_better"):
        wait_served("http://127.0.0.1:1", "few")


def members(group: int) -> list[str]:
    """Command lines of a process group; one that has ended and waits to be reaped has none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return [line for line in found if line]


def test_ctrl_c_ends_the_program_with_one_line_and_leaves_no_service() -> None:
    process = subprocess.Popen(
        [sys.executable, "benchmarks/demo_loop.py"],
        cwd=ROOT,
        preexec_fn=take_interrupts,  # noqa: PLW1509 -- it only sets a signal
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    shown = ""
    while not shown.startswith("ready at "):
        shown = process.stderr.readline()
        assert shown, process.wait()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert errors.endswith("\ninterrupted; nothing is kept without --keep\n")
    ends_s = time.monotonic() + 60
    while left := members(process.pid):
        assert time.monotonic() < ends_s, left
        time.sleep(0.05)
