"""Where a figure comes from: card, clock, versions, commit, command. Never names folders, hosts or users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.provenance import current_date, machine, package_versions, source_commit

COMMIT_FILE = Path(__file__).with_name("COMMIT")
"""Has the commit, for a copy of the sources without its clone."""

TRAINING_PACKAGES = ("unsloth", "unsloth_zoo", "bitsandbytes")
"""Whose versions rows of training have as well, where they are installed."""


def card_name(number: int) -> str:
    """A card's name for CUDA_VISIBLE_DEVICES, among those that this program may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # noqa: TID251 -- what CUDA reads
    return visible.split(",")[number] if visible else str(number)


def origin(device: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Keys that every row has: card or processor, clock, driver, versions, also of these packages, commit and date."""
    import torch

    versions = package_versions() | {"cuda": torch.version.cuda or "", "triton": version_of("triton")}
    versions |= {name: version_of(name) for name in packages}
    return {
        "card": card(device),
        **_clocks(device),
        "versions": {name: value for name, value in versions.items() if value},
        "commit": commit(),
        "date": current_date(),
    }


def card(device: str) -> str:
    """Name of the GPU, or of the processor and its cores."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return ", ".join(machine().values())


def slug(name: str) -> str:
    """A card's name as part of a file's: `NVIDIA H100 80GB HBM3` becomes `nvidia-h100-80gb-hbm3`."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def commit() -> str:
    """Commit of the code, of the clone or as the copy says."""
    return (
        COMMIT_FILE.read_text(encoding="utf-8").strip() if COMMIT_FILE.is_file() else source_commit(COMMIT_FILE.parent)
    )


def command() -> str:
    """How this program was called, without folders outside the repository."""
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def keep(row: Mapping[str, Any], out: str | None) -> None:
    """Print a row as a JSON line and append it to `out`; `auto` is the committed file of its `benchmark` and `card`."""
    line = json.dumps(row)
    print(line)
    if out:
        name = f"{str(row['benchmark']).replace('_', '-')}-{slug(str(row['card']))}.jsonl"
        path = Path(__file__).with_name("results") / name if out == "auto" else Path(out)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def version_of(module: str) -> str:
    """Version of a package; empty if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return ""


def _clocks(device: str) -> dict[str, Any]:
    """Clock and driver of a GPU as they are now: call it right after a load."""
    import torch

    program = shutil.which("nvidia-smi")
    if program is None or not device.startswith("cuda"):
        return {"clock_mhz": None}
    # By its name, since the first device that a process sees need not be the machine's first.
    identity = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["--query-gpu=clocks.sm,clocks.max.sm,driver_version", "--format=csv,noheader,nounits", identity]
    done = subprocess.run([program, *query], capture_output=True, text=True, check=False, timeout=20)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != 3:
        return {"clock_mhz": None}
    now, most, driver = values
    return {"clock_mhz": _number(now), "max_clock_mhz": _number(most), "driver": driver}


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
