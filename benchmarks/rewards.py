r"""Rewards after supervised training, against supervised training alone for the same seconds on one GPU.

    python benchmarks/rewards.py sets/comb --updates 200 --out runs/rewards --real scans --real pages

`sets/comb` is what `benchmarks/comb_domain.py write` made. Two arms run at the same time on one card:

- *supervised*: 2 N updates on forms and general pages, on one schedule;
- *rewards*: N updates on a schedule of their own, then `trainer reinforce` on the same pages, stopped after as many
  seconds as those N updates took.

Both begin with the same seed. Then base model, both arms and the rewards arm's first half read held-out forms, general
pages and each folder of scans or whole pages (`--real`, never trained on). A table shows character error rate, answers
that looped or met the limit, and the share of words that are not on the page. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ARMS = ("base", "first-half", "supervised", "rewards")
SHAPE = ("--backend", "peft", "--lora-rank", "16", "--lora-alpha", "32", "--target-modules", "q_proj", "k_proj",
         "v_proj", "o_proj")  # fmt: skip
START_S = 600.0
"""A process that has not begun to train after this is taken for stuck."""


def main() -> int:
    """Parse, then run both arms and measure, or measure one adapter in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, help="sets of benchmarks/comb_domain.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="shared/nano")
    parser.add_argument("--updates", type=int, default=200, help="N (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pages of a supervised update (%(default)s)")
    parser.add_argument("--learning-rate", default="3e-4", help="of supervised training (%(default)s)")
    parser.add_argument("--train-flags", default="", help="more flags of `train`, as one word")
    parser.add_argument("--reward-flags", default="", help="more flags of `reinforce`, as one word")
    parser.add_argument("--real", type=Path, action="append", default=[], help="folder with images/ and truth/")
    parser.add_argument("--real-tokens", type=int, default=2048, help="longest answer on them (%(default)s)")
    parser.add_argument("--limit", type=int, help="pages of each set that are measured on")
    parser.add_argument("--measure", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options, options.measure)))
        return 0
    options.out.mkdir(parents=True)
    seconds = train_arms(options)
    # The arms' readings share the card as their training did.
    processes = {arm: _start(_own_command(arm), options.out / f"measure-{arm}.txt") for arm in ARMS}
    found: dict[str, Any] = {}
    for arm, process in processes.items():
        process.wait()
        text = (options.out / f"measure-{arm}.txt").read_text(encoding="utf-8")
        if process.returncode:
            raise SystemExit(f"measuring {arm} failed:\n{text[-3000:]}")
        found[arm] = json.loads(text.splitlines()[-1])
    figures = {arm: each["sets"] for arm, each in found.items()}
    show(figures)
    from benchmarks.origin import command, origin

    row = {"case": "rewards", "updates": options.updates, "seconds": seconds, "figures": figures}
    print(json.dumps(row | origin(found["base"]["device"]) | {"command": command()}))
    return 0


def train_arms(options: argparse.Namespace) -> dict[str, float]:
    """Run both arms at once; seconds of training of each part, from first to last update, checks included."""
    seconds: dict[str, float] = {}
    faults: list[BaseException] = []

    def supervised() -> None:
        seconds["supervised"] = _train(options, "supervised", 2 * options.updates)

    def rewards() -> None:
        seconds["first-half"] = _train(options, "first-half", options.updates)
        seconds["rewards"] = _reinforce(options, seconds["first-half"])

    def guarded(arm: Any) -> None:
        try:
            arm()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(arm,)) for arm in (supervised, rewards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return {name: round(each, 1) for name, each in seconds.items()}


def _train(options: argparse.Namespace, name: str, updates: int) -> float:
    run = options.out / name
    words = ["train", *_data_flags(options, run), *SHAPE, "--batch-size", str(options.batch_size), "--learning-rate",
             options.learning_rate, "--max-steps", str(updates), "--eval-steps", str(max(updates // 4, 1)),
             "--early-stopping-patience", "none", *options.train_flags.split()]  # fmt: skip
    process = _start([sys.executable, "-m", "trainer", *words], options.out / f"{name}.txt")
    if process.wait():
        raise SystemExit(f"{name} failed: see {options.out / name}.txt")
    start, end = _at(run, "start"), _at(run, "end")
    assert start is not None
    assert end is not None
    return end - start


def _reinforce(options: argparse.Namespace, budget_s: float) -> float:
    """Go on by rewards for a number of seconds, counted from the first update."""
    run = options.out / "rewards"
    words = ["reinforce", *_data_flags(options, run), "--backend", "peft",
             "--init-from", str(options.out / "first-half"),
             "--max-steps", "100000", "--eval-steps", "8", "--early-stopping-patience", "none",
             *options.reward_flags.split()]  # fmt: skip
    process = _start([sys.executable, "-m", "trainer", *words], options.out / "rewards.txt")
    began = time.monotonic()
    while _at(run, "start") is None and process.poll() is None and time.monotonic() - began < START_S:
        time.sleep(0.1)
    first = time.monotonic()
    while time.monotonic() - first < budget_s and process.poll() is None:
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # ends after the current update, with its checkpoint
    if process.wait() not in {0, 128 + signal.SIGTERM}:
        raise SystemExit(f"reinforce failed: see {options.out / 'rewards.txt'}")
    return time.monotonic() - first


def _data_flags(options: argparse.Namespace, run: Path) -> list[str]:
    return ["--dataset-name", str(options.sets / "mixed"), "--model", options.model, "--output-dir", str(run),
            "--max-eval-samples", "32", "--seed", "0"]  # fmt: skip


def measure(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Read every set with one adapter, or with the base model alone: the device, and figures by set."""
    from trainer.config import load_settings
    from trainer.evaluation.paths import locate_adapter
    from trainer.evaluation.run import read_all
    from trainer.evaluation.samples import Layout, load_scans, load_set
    from trainer.evaluation.scores import score_page, score_tier
    from trainer.evaluation.sources import load_source
    from trainer.reading.loading import choose_device, load_adapter_readers, load_model_reader
    from trainer.reading.model import ReadingOptions
    from trainer.rewards.rewards import invented_ratio

    settings = load_settings()
    figures: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        forms = load_source(str(options.sets / "heldout"), Path(scratch), None, Layout.BLOCK, options.limit)
        sets = [(forms, 128), (load_set(options.sets / "general", [], options.limit), 512)]
        sets += [(load_scans(folder, options.limit), options.real_tokens) for folder in options.real]
        for pages, max_new_tokens in sets:
            reading = ReadingOptions(max_new_tokens=max_new_tokens, batch_size=32)
            if arm == "base":
                reader = load_model_reader(options.model, settings.device, settings.num_threads, reading)
            else:
                place = locate_adapter(str(options.out / arm))
                reader, _ = load_adapter_readers(options.model, place, settings.device, settings.num_threads, reading)
            truths = [page.truth for page in pages.samples]
            read = read_all(reader, pages.samples, sys.stderr)
            score = score_tier([score_page(truth, each) for truth, each in zip(truths, read, strict=True)])
            invented = [invented_ratio(truth, each.text) for truth, each in zip(truths, read, strict=True)]
            figures[pages.name] = {
                "pages": score.pages,
                "cer": round(score.cer, 5),
                "cer_low": round(score.cer_low, 5),
                "cer_high": round(score.cer_high, 5),
                "unfinished_ratio": round(score.unfinished_ratio, 5),
                "invented_ratio": round(sum(invented) / len(invented), 5),
            }
    return {"device": str(choose_device(settings.device)), "sets": figures}


def show(found: dict[str, Any]) -> None:
    """Print a table for people."""
    print(f"{'set':<16}{'reader':<14}{'CER, %':>20}{'unfinished, %':>15}{'invented, %':>13}")
    for name in found["base"]:
        for arm in ARMS:
            cer, low, high, unfinished, invented = (
                100 * found[arm][name][key]
                for key in ("cer", "cer_low", "cer_high", "unfinished_ratio", "invented_ratio")
            )
            rate = f"{cer:.2f} ({low:.2f} to {high:.2f})"
            print(f"{name:<16}{arm:<14}{rate:>20}{unfinished:>15.1f}{invented:>13.1f}")


def _own_command(arm: str) -> list[str]:
    return [sys.executable, *sys.argv, "--measure", arm]


def _start(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as stream:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}  # noqa: TID251
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)


def _at(run: Path, name: str) -> float | None:
    """Seconds at which a run logged an event; None before."""
    log = run / "log.jsonl"
    if not log.is_file():
        return None
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == name:
            return float(event["seconds"])
    return None


if __name__ == "__main__":
    sys.exit(main())
