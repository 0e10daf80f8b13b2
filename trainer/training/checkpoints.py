"""Checkpoints of a run: written to a temporary folder, verified and renamed; verified again when resuming.

`checkpoints/step-N/` holds what the loop wrote and `files.json` with the size and sha256 of each file. A folder without
it, or with other content, is not a checkpoint. Knows neither steps nor training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from trainer.training.errors import TrainingCode, TrainingError, is_disk_full

FILES: Final = "files.json"
CHECKPOINTS: Final = "checkpoints"
"""Folder of a run's checkpoints."""
PARTIAL: Final = ".partial"
_STEP: Final = re.compile(r"step-(\d+)")


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, newest first, valid or not."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _STEP.fullmatch(path.name))]
    return sorted(found, reverse=True)


def commit(partial: Path, target: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Verify a written checkpoint, sync it to disk and rename it to `target`, replacing what is there.

    Args:
        partial: the folder, on the same file system as `target`.
        target: the checkpoint's final path.
        expected: shapes of the adapter's tensors by key.

    Raises:
        TrainingError: the adapter in it does not load, is not finite, or has other keys.
    """
    verify_adapter(partial, expected)
    records = {path.name: _record(path) for path in sorted(partial.iterdir()) if path.is_file() and path.name != FILES}
    (partial / FILES).write_text(json.dumps(records, indent=1), encoding="utf-8")
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    replaced = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(target: Path) -> None:
    """Restore the old folder if `commit` was killed between its two renames."""
    replaced = target.with_name(f".{target.name}.replaced")
    if replaced.exists() and not target.exists():
        replaced.rename(target)


def validation_error(folder: Path) -> str | None:
    """What is wrong with a committed folder, if anything."""
    try:
        records = json.loads((folder / FILES).read_text(encoding="utf-8"))
        for name, record in records.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _record(path) != record:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as error:
        return f"{FILES} cannot be read: {type(error).__name__}"
    return None


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint `step-N` in a folder (None without any), and what is wrong with newer ones."""
    faults: list[str] = []
    for _, path in step_folders(folder):
        fault = validation_error(path)
        if fault is None:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    return None, faults


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and leftovers of killed runs."""
    for _, path in step_folders(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in (*folder.glob(f"*{PARTIAL}"), *folder.glob(".*.replaced")):
        shutil.rmtree(path, ignore_errors=True)


def verify_adapter(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `TrainingError` unless a PEFT folder loads, is finite and has the `expected` shapes by key."""
    try:
        json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            _check_keys(folder, file.keys(), expected)
            for key, shape in expected.items():
                tensor = file.get_tensor(key)
                if tuple(tensor.shape) != shape:
                    raise _corrupt(folder, f"{key} has shape {list(tensor.shape)}, not {list(shape)}")
                if not torch.isfinite(tensor).all():
                    raise _corrupt(folder, f"{key} holds values that are not finite")
    except (OSError, ValueError, SafetensorError) as error:
        raise _corrupt(folder, f"it does not load ({type(error).__name__})") from error


@contextmanager
def reporting_full_disk(run: Path) -> Iterator[None]:
    """Turn a full disk, wherever in a run it is noticed, into an error that says what is kept.

    Args:
        run: its folder.

    Yields:
        Nothing.

    Raises:
        TrainingError: the disk is full (`disk_full`).
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        # A checkpoint cut short is of no use, and takes room that the next try needs.
        for partial in list(run.rglob(f"*{PARTIAL}")):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        kept, _ = newest_valid(run / CHECKPOINTS)
        said = f"{kept.name} is complete" if kept is not None else "there is no checkpoint yet"
        raise TrainingError(
            TrainingCode.DISK_FULL,
            f"the disk of {run} is full; {said}",
            "make room and repeat the command with --resume",
        ) from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn disk errors while writing into `folder` into a `TrainingError` that says what to do.

    A full disk is left to `reporting_full_disk`.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_disk_full(error):
            raise  # `reporting_full_disk` knows what the run has kept
        if isinstance(error, OSError):
            raise TrainingError(
                TrainingCode.OUTPUT_UNWRITABLE,
                f"{folder} cannot be written: {error.strerror or error}",
                "choose a folder that you may write with --output-dir",
            ) from error
        raise


def _check_keys(folder: Path, found: Collection[str], expected: Mapping[str, Any]) -> None:
    missing, strange = sorted(expected.keys() - set(found)), sorted(set(found) - expected.keys())
    if missing:
        raise _corrupt(folder, f"{len(missing)} tensors are missing, first {missing[0]}")
    if strange:
        raise _corrupt(folder, f"{len(strange)} tensors are not the adapter's, first {strange[0]}")


def _corrupt(folder: Path, fault: str) -> TrainingError:
    name = folder.name.removesuffix(PARTIAL)
    return TrainingError(
        TrainingCode.CHECKPOINT_CORRUPT,
        f"what was written as {name} is not a valid checkpoint: {fault}",
        "continue from the previous one with --resume; if it happens again, lower --learning-rate or check the disk",
    )


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
