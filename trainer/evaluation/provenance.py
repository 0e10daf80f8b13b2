"""Where a figure comes from: code, machine and packages. Has no folders, hosts or users."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "peft", "sacrebleu", "docling-metrics-table")
UNKNOWN = "unknown"


def current_date() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_commit(folder: Path | None = None) -> str:
    """Commit of the clone that `folder`, or else this package, is in; `unknown` outside a clone.

    It ends in `-dirty` if Python files differ from it (weights have a checksum of their own).
    """
    folder = folder or Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return UNKNOWN
    return (
        f"{commit}-dirty"
        if _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py")
        else commit
    )


def machine() -> dict[str, str]:
    """Processor and number of cores."""
    return {"processor": _processor(), "cores": f"{os.cpu_count() or 1} cores"}


def package_versions() -> dict[str, str]:
    """Versions of Python and the packages that a figure may depend on."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}


def package_version(name: str) -> str:
    """Version of a package; `unknown` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN


def _git(folder: Path, *arguments: str) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    done = subprocess.run(  # noqa: S603 - git with fixed arguments, no shell
        [program, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor(table: Path = Path("/proc/cpuinfo")) -> str:
    if table.is_file():
        for line in table.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or UNKNOWN
