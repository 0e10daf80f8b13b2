"""Unsloth, plain PEFT and cached vision features beside each other: LoRA training steps on one card.

    python benchmarks/training.py --modes plain unsloth cached unsloth-cached --text-tokens 512 2048
    python benchmarks/training.py --modes plain unsloth --longest --memory-gib 24

DeepSeek-OCR-2's dimensions with random weights, rank 16 on the queries, keys, values and outputs of the decoder's
attention, vision frozen, one view of 1024 px (257 tokens) a sample, AdamW, bfloat16. `training_modes` says what each
way does. Ways that share a model run in a process of their own, since Unsloth patches what it finds, and have a time
limit. Steps are the median of seven after three; memory is the peak of what torch has allocated. `--longest` searches
for the longest answer that one sample a step has memory for, within `--memory-gib`.

Prints a table, then a JSON line for each case; `--out` takes the lines as well. Unsloth's block compilation is off
unless `--compile` is given: with it the first step took more than two minutes on an H100.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.origin import command, origin
from benchmarks.training_checkpoint import write_checkpoint
from benchmarks.training_modes import MODES, family

PACKAGES = ("peft", "unsloth", "unsloth_zoo", "bitsandbytes")
IMAGE_TOKENS = 257
ROW_MARK = "ROW "


def main() -> int:
    """Run the cases; status 1 where a way failed."""
    options = _options()
    if options.child:
        return _child(options)
    checkpoint = write_checkpoint(options.checkpoint, tiny=options.tiny)
    rows, failed = [], False
    for modes in _families(options.modes):
        found, trouble = _run(modes, checkpoint, options)
        rows += found
        failed |= trouble is not None
        print("\n".join([_table(found), *([f"{' '.join(modes)}: {trouble}"] if trouble else [])]), flush=True)
        if options.out is not None:
            # At once, so that whatever ends this program ends it with what is known.
            with options.out.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in found)
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["plain", "unsloth", "cached", "unsloth-cached"])
    parser.add_argument("--text-tokens", nargs="+", type=int, default=[512, 2048], metavar="N")
    parser.add_argument("--batch", type=int, default=4, metavar="N")
    parser.add_argument("--longest", action="store_true", help="search for the longest answer in the place of timing")
    parser.add_argument("--memory-gib", type=float, default=24.0, metavar="GIB", help="for --longest (%(default)s)")
    parser.add_argument("--limit-tokens", type=int, default=131072, metavar="N", help="end of the search (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=100.0, metavar="S", help="for each process (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="leave Unsloth's block compilation on")
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, to try the program on a CPU")
    parser.add_argument("--checkpoint", type=Path, default=None, metavar="DIR", help="where random weights are kept")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.checkpoint = options.checkpoint or Path("/tmp") / ("ocr2-tiny" if options.tiny else "ocr2-random")  # noqa: S108
    return options


def _families(modes: Sequence[str]) -> list[list[str]]:
    """Ways whose models are the same, which one process measures one after another."""
    return [list(group) for _, group in groupby(modes, key=family)]


def _run(
    modes: Sequence[str], checkpoint: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], str | None]:
    """Ways of one family in a process of their own: their rows, and what went wrong."""
    words = [sys.executable, __file__, "--child", "--modes", *modes, "--checkpoint", str(checkpoint)]
    words += ["--text-tokens", *map(str, options.text_tokens), "--batch", str(options.batch)]
    words += ["--device", options.device, "--memory-gib", str(options.memory_gib)]
    words += ["--limit-tokens", str(options.limit_tokens), "--limit-s", str(options.limit_s)]
    words += ["--longest"] if options.longest else []
    start_s = time.monotonic()
    trouble = None
    process = subprocess.Popen(
        words, env=_environment(options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=options.limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        trouble = f"ended after {options.limit_s:.0f} s"
    rows = [json.loads(line.removeprefix(ROW_MARK)) for line in output.splitlines() if line.startswith(ROW_MARK)]
    if process.returncode and trouble is None:
        trouble = f"status {process.returncode}"
    if trouble is not None:
        sys.stderr.write(f"-- {' '.join(modes)}: {trouble}\n{output[-3000:]}\n")
    wall_s = round(time.monotonic() - start_s, 1)
    shared = {"command": command(), "wall_s": wall_s, "unsloth_compile": options.compile}
    return [row | shared | ({"trouble": trouble} if trouble else {}) for row in rows], trouble


def _environment(options: argparse.Namespace) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    inherited = dict(os.environ)  # noqa: TID251 - handed to a program
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(part for part in (root, inherited.get("PYTHONPATH", "")) if part),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_DISABLE": "0" if options.compile else "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _child(options: argparse.Namespace) -> int:
    """Measure ways that share a model; each row is printed as soon as it is there."""
    start_s = time.monotonic()
    if options.modes[0].startswith("unsloth"):
        import unsloth  # noqa: F401 - first: it patches what is imported after it
    import torch

    from benchmarks import training_steps as steps
    from benchmarks.training_modes import load

    device = torch.device(options.device)
    if options.longest:
        steps.limit_memory(device, options.memory_gib)
    longest = max(4096, *options.text_tokens)
    trained = load(options.modes[0], str(options.checkpoint), device, longest, IMAGE_TOKENS)
    shared = {"benchmark": "training", "image_tokens": IMAGE_TOKENS, "trainable": trained.trainable}
    shared["load_s"] = round(time.monotonic() - start_s, 1)

    def report(row: dict[str, Any]) -> None:
        source = origin(options.device)
        source["versions"] |= {name: found for name in PACKAGES if (found := _version(name))}
        print(ROW_MARK + json.dumps({"mode": trained.mode} | shared | row | source), flush=True)

    for place, mode in enumerate(options.modes):
        trained = replace(trained, mode=mode)
        if options.longest:
            left_s = options.limit_s - (time.monotonic() - start_s) - 10
            found = steps.longest_context(trained, options.limit_tokens, left_s / (len(options.modes) - place))
            report({"case": "longest", "memory_gib": options.memory_gib} | found)
            continue
        for text_tokens in options.text_tokens:
            try:
                report({"case": "step"} | steps.time_steps(trained, options.batch, text_tokens))
            except torch.OutOfMemoryError:
                report({"case": "step", "batch": options.batch, "text_tokens": text_tokens, "out_of_memory": True})
                torch.cuda.empty_cache()
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    keys = ("mode", "batch", "text_tokens", "step_ms", "peak_gib", "first_step_s", "first_loss", "longest_text_tokens",
            "too_long_text_tokens", "tries", "out_of_memory", "load_s", "wall_s")  # fmt: skip
    return "\n".join("  ".join(f"{key} {row[key]}" for key in keys if row.get(key) is not None) for row in rows)


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
