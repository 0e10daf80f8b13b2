"""Small training runs: a tiny checkpoint on disk, pages of one word, options that finish in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.page_sources import drawn
from tests.support.programs import ROOT
from tests.support.tiny_model import tiny_model
from trainer.backends.peft import adapt
from trainer.nano.corpus.tokenizer import train_tokenizer
from trainer.training.options import make_options
from trainer.training.run import RunSummary, train

CPU = torch.device("cpu")
WORDS = ("page", "text", "12", "34", "the", "of", "age", "ext", "he", "tex", "pa", "ge", "1", "2", "3", "4")


def write_checkpoint(folder: Path) -> Path:
    """The tiny model as a checkpoint of v1's kind."""
    folder.mkdir(parents=True)
    save_checkpoint(tiny_model(), folder, "bfloat16")
    train_tokenizer(["the page, the text; 12 of 34\n"] * 4, vocab_size=280).save(str(folder / "tokenizer.json"))
    return folder


def write_words(folder: Path, count: int) -> Path:
    """Pages of a word or two, small enough for the tiny model's one view; the first quarter is for validation."""
    for number in range(count):
        place = folder / ("validation" if number < count // 4 else "train")
        place.mkdir(parents=True, exist_ok=True)
        text = f"{WORDS[number % len(WORDS)]} {WORDS[(number * 7 + 3) % len(WORDS)]}"
        drawn(text, (60, 30)).save(place / f"w{number:03d}.png")
        (place / f"w{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


def small_options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run on `folder/model` and `folder/words`, into `folder/run`."""
    return {
        "model": str(folder / "model"),
        "dataset_name": str(folder / "words"),
        "output_dir": folder / "run",
        "batch_size": 4,
        "max_steps": 6,
        "eval_steps": 3,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "lora_rank": 4,
        "max_new_tokens": 4,
        "max_eval_samples": 3,
        "use_tensorboard": False,
        **changes,
    }


def run_small(folder: Path, *, resume: bool = False, overwrite: bool = False, **changes: Any) -> RunSummary:
    """Train."""
    return train(make_options(small_options(folder, **changes)), adapt, CPU, resume=resume, overwrite=overwrite)


def start_small(folder: Path, *words: str, processes: int = 1) -> subprocess.Popen[str]:
    """The same through the command line, in a process of its own."""
    options = {key: value for key, value in small_options(folder).items() if key != "use_tensorboard"}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "trainer", "train"]
    return subprocess.Popen(
        [*start, *flags, "--no-use-tensorboard", "--device", "cpu", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DEEPSYNTH_TRAINER_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(run: Path, name: str | None = None) -> list[dict[str, Any]]:
    """What a run has logged."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if name in {None, event["event"]}]
