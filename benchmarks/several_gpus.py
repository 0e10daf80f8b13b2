"""Training by several processes with `torchrun`: what they gain, whether they learn the same, and a killed one.

    python benchmarks/several_gpus.py --processes 2 --out auto             a GPU each, DeepSeek-OCR's dimensions
    python benchmarks/several_gpus.py --device cpu --model nano --processes 2 --batch-size 4 --updates 12

1. `python -m trainer train` by one process, with `--batch-size` pages an update.
2. The same by several processes, which share the batch. Each update has the pages of the first run's, so the losses
   have to be equal up to rounding: `loss_difference` is the largest, relative to the first run's.
3. The second again, but one process gets SIGKILL once there is a checkpoint: torchrun has to end with status 1.
   `lost_lines` counts lines of `process_lost`, one on a CPU; NCCL gives the others no chance to say it. `--resume` then
   ends the run; `resumed_loss_difference` is against the second one.

Weights are random, pages drawn here, LoRA of rank 16 on the decoder's attention. The first third of the updates encodes
each page for the first time, the others take its features from memory; both are medians of the seconds between two
updates, without the first three updates of the run. Prints a JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageDraw, ImageFont

from benchmarks.origin import command, keep, origin
from benchmarks.print_pages import PROSE
from benchmarks.rewards import events
from trainer.config import child_environment

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "shared" / "nano"
EPOCHS = 3
WARM_UP_UPDATES = 3
SAVE_EVERY = 5
START_LIMIT_S = 300.0


def draw_pages(folder: Path, count: int, seed: int) -> None:
    """Pages of 40 words, 640 px, with their texts."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    font = ImageFont.load_default(24)
    for number in range(count):
        lines = [" ".join(chance.choices(PROSE, k=5)) for _ in range(8)]
        image = Image.new("L", (640, 640), 255)
        ImageDraw.Draw(image).multiline_text((20, 20), "\n".join(lines), font=font, fill=0, spacing=24)
        image.save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text("\n".join(lines), encoding="utf-8")


def start(run: Path, processes: int, given: argparse.Namespace, *more: str) -> subprocess.Popen[str]:
    """A training run in its own processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["--model", str(given.base), "--dataset-name", str(given.pages), "--output-dir", str(run),
             "--device", given.device, "--backend", "peft", "--mode", "small", "--validation-share", "0",
             "--batch-size", str(given.batch_size // processes), "--max-steps", str(given.updates),
             "--num-epochs", str(EPOCHS), "--logging-steps", "1", "--save-steps", str(SAVE_EVERY),
             "--learning-rate", "1e-4", "--lora-rank", "16",
             "--target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "--no-use-tensorboard"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), "-m", "trainer", "train", *words, *more],
        cwd=ROOT,
        env=child_environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a run to end as it should; returns what it printed."""
    said, _ = process.communicate()
    if process.returncode != status:
        raise SystemExit(f"training ended with status {process.returncode} instead of {status}:\n{said}")
    return said


def logged(run: Path) -> list[dict[str, Any]]:
    """Updates in order; of an update that was made twice the last."""
    return sorted({each["step"]: each for each in events(run, "log")}.values(), key=lambda each: each["step"])


def speed(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of an update while pages are encoded, and after."""
    gaps = [1000 * (after["seconds"] - before["seconds"]) for before, after in itertools.pairwise(updates)]
    encoded = len(updates) // EPOCHS
    return {
        "encoding_ms": round(statistics.median(gaps[WARM_UP_UPDATES:encoded]), 1),
        "cached_ms": round(statistics.median(gaps[encoded + 1 :]), 1),
    }


def largest_difference(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> float:
    """Of the losses of two runs, relative to the first."""
    pairs = zip(ones, others, strict=True)
    return round(max(abs(one["loss"] - other["loss"]) / abs(one["loss"]) for one, other in pairs), 5)


def kill_one(process: subprocess.Popen[str], run: Path) -> None:
    """SIGKILL to the last process of a run, once there is a checkpoint."""
    ends_s = time.monotonic() + START_LIMIT_S
    while not any((run / "checkpoints").glob("step-*")) or len(logged(run)) <= SAVE_EVERY:
        if process.poll() is not None or time.monotonic() > ends_s:
            raise SystemExit("the run made no checkpoint")
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    ranks = {pid: Path(f"/proc/{pid}/environ").read_bytes().partition(b"\0RANK=")[2][:1] for pid in children}
    os.kill(int(max(ranks, key=lambda pid: ranks[pid])), signal.SIGKILL)


def main() -> None:
    """Parse, train three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="random (v1's dimensions), nano, or a folder (%(default)s)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="pages of an update, of all processes (%(default)s)")
    parser.add_argument("--updates", type=int, default=30, help="divisible by 3, 12 or more (%(default)s)")
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    given = parser.parse_args()
    if given.updates % EPOCHS or given.updates // EPOCHS <= WARM_UP_UPDATES or given.batch_size % given.processes:
        parser.error("--updates is divisible by 3 and 12 or more, --batch-size divisible by --processes")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given.pages, given.base = folder / "pages", NANO if given.model == "nano" else Path(given.model)
        draw_pages(given.pages, given.batch_size * given.updates // EPOCHS, 1)
        if given.model == "random":
            from benchmarks.random_model import write_random_checkpoint

            given.base = write_random_checkpoint(folder / "deepseek-ocr-random", NANO, given.device)
        finish(start(folder / "one", 1, given))
        finish(start(folder / "several", given.processes, given))
        killed = start(folder / "killed", given.processes, given)
        kill_one(killed, folder / "killed")
        said = finish(killed, status=1)
        finish(start(folder / "killed", given.processes, given, "--resume"))
        one, several, resumed = (logged(folder / name) for name in ("one", "several", "killed"))
    row = {
        "model": Path(given.model).name,
        "processes": given.processes,
        "batch_size": given.batch_size,
        "updates": given.updates,
        "one": speed(one),
        "several": speed(several),
        "loss": [one[0]["loss"], one[-1]["loss"]],
        "loss_difference": largest_difference(one, several),
        "lost_lines": said.count("[process_lost]"),
        "resumed_loss_difference": largest_difference(several, resumed),
    }
    keep({"benchmark": "several_gpus", "command": command(), **origin(given.device), **row}, given.out)


if __name__ == "__main__":
    main()
