"""`python -m trainer smoke`: all steps from texts to a published adapter, in minutes on a CPU.

Generates texts of a small domain that nano reads badly, prepares them, trains, evaluates base model and adapter on
held-out pages, and publishes. Each step is a trainer command, printed before it runs; a real adapter is made by the
same commands with another source.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from trainer.config import TrainerSettings
from trainer.nano.corpus.words import FIRST_NAMES, LABELS, LAST_NAMES, STREETS
from trainer.training.errors import TrainingCode, TrainingError

CELL = "|"
NUM_TEXTS = 180
TEXTS_FILE = "texts.jsonl"
MARKER_FILE = ".deepsynth-smoke"
_CONSONANTS, _VOWELS = "bcdfghklmnprstvwz", "aeiou"
_CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"  # pragma: allowlist secret


def add_smoke(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], run_command: Callable[[Sequence[str]], int]
) -> None:
    """Add the subcommand; `run_command` runs a trainer command line and returns its exit status."""
    parser = commands.add_parser("smoke", help="prepare, train, evaluate and publish on a CPU", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/smoke"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--texts", type=int, default=NUM_TEXTS, metavar="N", help="pages to draw (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the texts (%(default)s)")
    parser.add_argument(
        "--train-flags", default="", metavar="WORDS", help="more flags for train, as one word: '--max-steps 10'"
    )
    parser.set_defaults(run=partial(run_smoke, run_command))


def run_smoke(run_command: Callable[[Sequence[str]], int], options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the steps; `TrainingError` where one fails, or where the folder has other files in it."""
    start_s = time.monotonic()
    out: Path = options.out
    _clear(out)
    write_texts(out / TEXTS_FILE, options.texts, options.seed)
    (out / "volume").mkdir()
    for words in smoke_commands(out, shlex.split(options.train_flags)):
        sys.stderr.write(f"\n$ python -m trainer {shlex.join(words)}\n")
        sys.stderr.flush()
        status = run_command(words)
        if status > 128:
            sys.exit(status)  # a signal ended the step, which has said what is kept
        if status:
            raise TrainingError(
                TrainingCode.STEP_FAILED, f"`trainer {words[0]}` ended with status {status}", "see its error above"
            )
    return f"smoke: {time.monotonic() - start_s:.0f} s; the adapter is published as comb in {out / 'volume'}"


def smoke_commands(out: Path, train_flags: list[str]) -> list[list[str]]:
    """The command lines of prepare, train, evaluate and publish, without `python -m trainer`."""
    texts, pages, run = str(out / TEXTS_FILE), str(out / "set"), str(out / "run")
    return [
        [
            "prepare", texts, "--convert-to-images", "--read-column", "comb", "--text-column", "text",
            "--page-size", "640x640", "--margin", "24", "--font-size", "22-30",
            "--validation-share", "0.12", "--test-share", "0.2", "--out", pages,
        ],
        ["train", "--preset", "smoke", "--dataset-name", pages, "--output-dir", run, *train_flags],
        [
            "evaluate", "--adapter", run, "--data", pages, "--split", "test", "--max-new-tokens", "128",
            "--json", str(out / "run" / "evaluation.json"), "--html", str(out / "report.html"),
        ],
        [
            "publish", "--adapter", run, "--base", "shared/nano", "--volume", str(out / "volume"), "--name", "comb",
            "--min-improvement", "0.5",
        ],
    ]  # fmt: skip


def write_texts(path: Path, count: int, seed: int) -> None:
    """Write the domain to a JSONL file: `comb`, form fields with a cell for each letter, and their `text`."""
    rng = Random(seed)
    names = sorted(
        {word for part in (LABELS, FIRST_NAMES, LAST_NAMES, STREETS) for each in part for word in each.split()}
    )
    names = [name for name in names if name.isascii() and CELL not in name]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [_word(rng, names) for _ in range(rng.randint(4, 6))]
            comb = CELL + f"{CELL} {CELL}".join(CELL.join(word) for word in words) + CELL
            file.write(json.dumps({"text": " ".join(words), "comb": comb}) + "\n")


def _word(rng: Random, names: list[str]) -> str:
    """A name, a made-up word, a number or a code: some can be guessed, others only read."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(names)
    if kind < 0.75:
        word = "".join(
            rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(("", "", "n", "r", "s", "l"))
            for _ in range(rng.randint(2, 3))
        )
        return word.capitalize() if rng.random() < 0.3 else word
    if kind < 0.9:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    return "".join(rng.choice(_CODE_CHARACTERS) for _ in range(rng.randint(3, 6)))


def _clear(out: Path) -> None:
    """Delete an earlier run's folder; a folder with anything else is an error."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER_FILE).is_file():
        raise TrainingError(
            TrainingCode.OUTPUT_EXISTS, f"{out} already has other files in it", "name another folder with --out"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER_FILE).touch()
