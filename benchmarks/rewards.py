r"""Rewards after supervised training, against supervised training alone for about the same seconds on one GPU.

    python benchmarks/rewards.py sets/comb --updates 200 --out runs/rewards --real scans

`sets/comb` is what `benchmarks/comb_domain.py write` made. Three runs, each alone on its card:

- *first-half*: N updates on forms and general pages, on a schedule of their own;
- *supervised*: as many updates as the first half and `--seconds` more should make, on one schedule. A schedule needs
  its end beforehand, so this goes by the pace of the first half's later updates; the row has the seconds that it took;
- *rewards*: goes on from the first half with `trainer reinforce` and is stopped after `--seconds`.

With `--cards 2` the last two run at the same time. The same seed throughout. Then base model and all three read
held-out forms, general pages and each folder of scans (`--real`, never trained on). Every row is printed as soon as an
arm has read: character error rate, answers that looped or met the limit, and the share of words that are not on the
page. The last line is JSON.

More flags for `train` and `reinforce` are one word each, written with `=`: `--train-flags="--cuda-graphs"`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.origin import card_name, command, origin

ROOT = Path(__file__).resolve().parents[1]

SETS = ("mixed", "heldout", "general")
ARMS = ("base", "first-half", "supervised", "rewards")
SHAPE = ("--backend", "peft", "--lora-rank", "16", "--lora-alpha", "32", "--target-modules", "q_proj", "k_proj",
         "v_proj", "o_proj")  # fmt: skip
START_S = 600.0
"""A process that has not begun to train after this is taken for stuck."""
MOST_TOKENS = 1024
"""Of an answer that is measured; otherwise twice what the longest truth of the set has."""


def main() -> int:
    """Parse, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, help="sets of benchmarks/comb_domain.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; must not exist")
    parser.add_argument("--model", default="shared/nano")
    parser.add_argument("--updates", type=number_from(2), default=200, help="of the first half (%(default)s)")
    parser.add_argument("--seconds", type=number_from(1), default=150, help="of what comes after it (%(default)s)")
    parser.add_argument("--cards", type=number_from(1), default=1, help="GPUs to use (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pages of a supervised update (%(default)s)")
    parser.add_argument("--learning-rate", default="3e-4", help="of supervised training (%(default)s)")
    parser.add_argument("--train-flags", default="", help="more flags of `train`, as one word")
    parser.add_argument("--reward-flags", default="", help="more flags of `reinforce`, as one word")
    parser.add_argument("--real", type=Path, action="append", default=[], help="folder with images/ and truth/")
    parser.add_argument("--limit", type=int, default=60, help="pages of each set or tier to measure on (%(default)s)")
    parser.add_argument("--read", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        figures_of(options.read, options)
        return 0
    # Training takes a card for minutes: what is read afterwards has to be there.
    for folder in [*(options.sets / name for name in SETS), *(real / "images" for real in options.real)]:
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    if options.out.exists():
        parser.error(f"{options.out} exists already")
    options.out.mkdir(parents=True)
    seconds = {"first-half": _train(options, "first-half", options.updates, 0)}
    updates = options.updates + round(options.seconds * updates_per_s(options.out / "first-half"))
    with ThreadPoolExecutor(options.cards) as threads:
        supervised = threads.submit(_train, options, "supervised", updates, 0)
        rewards = threads.submit(_reinforce, options, options.cards - 1)
        seconds |= {"supervised": supervised.result(), "rewards": rewards.result()}
        made = {arm: events(options.out / arm, "end")[-1]["step"] for arm in seconds}
        print(f"seconds of training: {json.dumps(seconds)}, updates: {json.dumps(made)}", flush=True)
        print(f"{'set':<16}{'reader':<14}{'CER, %':>24}{'unfinished, %':>15}{'invented, %':>13}", flush=True)
        read = list(threads.map(_read, itertools.repeat(options), ARMS, itertools.cycle(range(options.cards))))
    from trainer.config import load_settings
    from trainer.reading.loading import choose_device

    row = {"case": "rewards", "updates": made, "seconds": seconds, "figures": dict(zip(ARMS, read, strict=True))}
    print(json.dumps(row | origin(str(choose_device(load_settings().device))) | {"command": command()}))
    return 0


def _train(options: argparse.Namespace, name: str, updates: int, card: int) -> float:
    run = options.out / name
    words = ["train", *_data_flags(options, run), *SHAPE, "--batch-size", str(options.batch_size), "--learning-rate",
             options.learning_rate, "--max-steps", str(updates), "--eval-steps", str(max(options.updates // 4, 1)),
             "--early-stopping-patience", "none", "--logging-steps", str(max(options.updates // 20, 1)),
             *options.train_flags.split()]  # fmt: skip
    process = _start(["-m", "trainer", *words], options.out / f"{name}.txt", card)
    if process.wait():
        raise SystemExit(f"{name} failed: see {options.out / name}.txt")
    return round(events(run, "end")[-1]["seconds"] - events(run, "start")[-1]["seconds"], 1)


def _reinforce(options: argparse.Namespace, card: int) -> float:
    """Go on by rewards; the seconds count from the first update."""
    run = options.out / "rewards"
    # As many updates as it can make in that time: without a schedule, as its end is not known.
    words = ["reinforce", *_data_flags(options, run), "--backend", "peft",
             "--init-from", str(options.out / "first-half"), "--max-steps", "100000", "--warmup-ratio", "0",
             "--lr-scheduler", "constant", "--logging-steps", "1", "--eval-steps", "20",
             "--early-stopping-patience", "none", *options.reward_flags.split()]  # fmt: skip
    process = _start(["-m", "trainer", *words], options.out / "rewards.txt", card)
    began = time.monotonic()
    while not events(run, "start") and process.poll() is None and time.monotonic() - began < START_S:
        time.sleep(0.1)
    first = time.monotonic()
    while time.monotonic() - first < options.seconds and process.poll() is None:
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # ends after the current update, with its checkpoint
    if process.wait() not in {0, 128 + signal.SIGTERM}:
        raise SystemExit(f"reinforce failed: see {options.out / 'rewards.txt'}")
    return round(time.monotonic() - first, 1)


def _data_flags(options: argparse.Namespace, run: Path) -> list[str]:
    return ["--dataset-name", str(options.sets / "mixed"), "--model", options.model, "--output-dir", str(run),
            "--max-eval-samples", "32", "--seed", "0"]  # fmt: skip


def _read(options: argparse.Namespace, arm: str, card: int) -> dict[str, dict[str, float]]:
    """Read every set with an arm, in a process that sees one card; prints the rows and returns figures by set."""
    output = options.out / f"read-{arm}.txt"
    if _start([__file__, *sys.argv[1:], "--read", arm], output, card).wait():
        raise SystemExit(f"{arm} could not be read with: see {output}")
    figures: dict[str, dict[str, float]] = json.loads((options.out / f"figures-{arm}.json").read_text())
    for name, row in figures.items():
        rate = f"{100 * row['cer']:.2f} ({100 * row['cer_low']:.2f} to {100 * row['cer_high']:.2f})"
        unfinished, invented = 100 * row["unfinished_ratio"], 100 * row["invented_ratio"]
        print(f"{name:<16}{arm:<14}{rate:>24}{unfinished:>15.1f}{invented:>13.1f}", flush=True)
    return figures


def figures_of(arm: str, options: argparse.Namespace) -> None:
    """Read every set with an arm, and write `figures-ARM.json`."""
    from trainer.config import load_settings
    from trainer.evaluation.paths import locate_adapter
    from trainer.evaluation.run import read_all
    from trainer.evaluation.samples import Layout, load_scans, load_set
    from trainer.evaluation.scores import score_page, score_tier
    from trainer.evaluation.sources import load_source
    from trainer.reading.loading import load_adapter_readers, load_model_reader
    from trainer.reading.model import ReadingOptions
    from trainer.rewards.rewards import invented_ratio

    settings = load_settings()
    figures: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as scratch:
        forms = load_source(str(options.sets / "heldout"), Path(scratch), None, Layout.BLOCK, options.limit)
        sets = [forms, load_set(options.sets / "general", [], options.limit)]
        for pages in [*sets, *(load_scans(folder, options.limit) for folder in options.real)]:
            truths = [page.truth for page in pages.samples]
            # A token is a character at least, so this is far more than a reading needs.
            most = min(max(map(len, truths)) + 32, MOST_TOKENS)
            reading = ReadingOptions(max_new_tokens=most, batch_size=64)
            if arm == "base":
                reader = load_model_reader(options.model, settings.device, settings.num_threads, reading)
            else:
                place = locate_adapter(str(options.out / arm))
                device = settings.device, settings.num_threads
                reader, _ = load_adapter_readers(options.model, place, *device, reading)
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
    (options.out / f"figures-{arm}.json").write_text(json.dumps(figures))


def _start(words: Sequence[str], output: Path, card: int) -> subprocess.Popen[bytes]:
    """Start Python; it sees one card."""
    environment = {
        **os.environ,  # noqa: TID251
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        "CUDA_VISIBLE_DEVICES": card_name(card),
    }
    with output.open("wb") as stream:
        return subprocess.Popen([sys.executable, *words], stdout=stream, stderr=subprocess.STDOUT, env=environment)


def updates_per_s(run: Path) -> float:
    """Pace of the second half of a run: before that, pages are encoded and graphs captured."""
    logged = events(run, "log")
    middle, last = logged[(len(logged) - 1) // 2], logged[-1]
    pace: float = (last["step"] - middle["step"]) / (last["seconds"] - middle["seconds"])
    return pace


def number_from(least: int) -> Callable[[str], int]:
    """Parse a whole number of at least `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    return number


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """What a run has logged so far."""
    from trainer.training.events import LOG_FILE, read_events

    return list(read_events(run / LOG_FILE, name))


if __name__ == "__main__":
    sys.exit(main())
