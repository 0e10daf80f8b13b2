"""`python -m trainer benchmark`: compare Unsloth and plain training, with and without cached vision features.

Owns the flags, a process for each way, and the table; `trainer.benchmark` measures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.benchmark import WAYS, Case, measure
from trainer.commands.flags import DEFAULT_MODEL, UsageError, positive, require_writable
from trainer.commands.train import choose_device
from trainer.config import TrainerSettings, child_environment
from trainer.evaluation.provenance import current_date, machine, package_version, package_versions, source_commit

LIMIT_S = 600
ROW_MARK = "ROW "
PACKAGES = ("accelerate", "bitsandbytes", "unsloth")


def add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("benchmark", help="compare ways of training", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint: folder or repository (%(default)s)")
    parser.add_argument(
        "--modes", nargs="+", choices=WAYS, metavar="MODE", help=f"of {', '.join(WAYS)}; all that work here"
    )
    parser.add_argument("--dataset-name", metavar="SOURCE", help="pages to train on; default: drawn pages")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--text-tokens", type=positive, default=512, metavar="N", help="text tokens of each drawn page (%(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="timed steps (%(default)s)")
    parser.add_argument("--use-qlora", action="store_true", help="keep frozen weights in 4 bits (CUDA)")
    parser.add_argument("--no-gradient-checkpointing", action="store_true", help="do not recompute activations")
    parser.add_argument("--device", help="auto, cpu or cuda; DEEPSYNTH_TRAINER_DEVICE")
    parser.add_argument(
        "--limit-s", type=positive, default=LIMIT_S, metavar="S", help="time limit for each mode (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line for each mode")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.set_defaults(run=run_benchmark)


def run_benchmark(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns the table. Raises `UsageError` if no mode could be measured."""
    require_writable(options.json)
    device, has_gpu = choose_device(options.device or settings.device)
    case = Case(
        options.model, device, options.batch_size, options.text_tokens, options.steps, options.use_qlora,
        not options.no_gradient_checkpointing, options.dataset_name,
    )  # fmt: skip
    if options.child is not None:
        with TemporaryDirectory(prefix="deepsynth-benchmark-") as scratch:
            return ROW_MARK + json.dumps(measure(options.child, case, Path(scratch)) | _origin(device))
    modes = options.modes or [name for name, way in WAYS.items() if has_gpu or way.backend != "unsloth"]
    rows, troubles = [], []
    for mode in modes:
        row, trouble = _measured(mode, case, options.limit_s)
        if row is not None:
            rows.append(row)
        else:
            troubles.append(f"{mode}: {trouble}")
    if not rows:
        raise UsageError("nothing could be measured; " + "; ".join(troubles))
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return "\n".join([_table(rows), *troubles])


def _measured(mode: str, case: Case, limit_s: int) -> tuple[dict[str, Any] | None, str]:
    """Measure one mode in its own process: its row, or why there is none."""
    words = ["--child", mode, "--model", case.model, "--device", case.device, "--steps", str(case.steps)]
    words += ["--batch-size", str(case.batch_size), "--text-tokens", str(case.text_tokens)]
    words += ["--dataset-name", case.dataset_name] if case.dataset_name else []
    words += ["--use-qlora"] if case.use_qlora else []
    words += [] if case.gradient_checkpointing else ["--no-gradient-checkpointing"]
    command = [sys.executable, "-m", "trainer", "benchmark", *words]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this program
            command, env=child_environment(), capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return None, f"not done after {limit_s} s; give more with --limit-s"
    found = [line for line in done.stdout.splitlines() if line.startswith(ROW_MARK)]
    if done.returncode or not found:
        return None, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("error: ")
    return json.loads(found[-1].removeprefix(ROW_MARK)), ""


def _origin(device: str) -> dict[str, Any]:
    import torch

    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else ", ".join(machine().values())
    versions = package_versions() | {name: package_version(name) for name in PACKAGES}
    return {"card": card, "versions": versions, "commit": source_commit(), "date": current_date()}


def _table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds and memory, also relative to the first row."""
    first = rows[0]
    lines = [f"{'mode':16}{'ms a step':>12}{'speed':>9}{'GiB':>9}{'memory':>9}"]
    for row in rows:
        speed = f"{first['step_ms'] / row['step_ms']:.2f} x"
        has_memory = row["peak_gib"] is not None and first["peak_gib"] is not None
        memory = f"{row['peak_gib']:>9.2f}{100 * row['peak_gib'] / first['peak_gib']:>7.0f} %" if has_memory else ""
        lines.append(f"{row['mode']:16}{row['step_ms']:>12.1f}{speed:>9}{memory}")
    return "\n".join(lines)
