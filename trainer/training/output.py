"""A run's folder: who writes into it, and the record of what the run is.

Owns the lock and `run.json`. Knows neither model nor loop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from trainer.backends.protocol import AdaptedModel
from trainer.config import process_rank
from trainer.evaluation.provenance import current_date, machine, package_version, package_versions, source_commit
from trainer.evaluation.seen import SEEN_FILE
from trainer.training.checked import BEST
from trainer.training.checkpoints import CHECKPOINTS, restore_replaced, writing_to
from trainer.training.data import RunData
from trainer.training.distributed import barrier
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.events import LOG_FILE
from trainer.training.options import TrainingOptions
from trainer.training.reward_options import RewardOptions
from trainer.training.run_lock import LOCK, lock_run
from trainer.training.start import StartAdapter

RUN_FILE: Final = "run.json"
CACHE: Final = "cache"
_FREE_OPTIONS: Final = frozenset({
    "device", "feature_disk_gb", "feature_memory_gb", "hub_model_id", "keep_checkpoints", "logging_steps", "output_dir",
    "max_steps", "num_epochs", "push_to_hub", "use_tensorboard", "use_wandb", "wandb_project",
})  # fmt: skip
"""Options that a resumed run may change: they do not affect what is learnt, or say for how long."""
_PACKAGES: Final = ("peft", "accelerate", "unsloth", "bitsandbytes", "trl")
NAMED: Final = {"init_from": "adapter to begin with", "rewards": "choice of rewards"}
"""Parts of the record that a resumed run must have again, as messages name them."""


def rank() -> int:
    """Number of this process among those of the run."""
    return process_rank().rank


@contextmanager
def run_folder(output: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make and lock the folder of a run.

    Args:
        output: the folder; made if it does not exist.
        resume: continue the run in it.
        overwrite: delete that run.

    Yields:
        Nothing.

    Raises:
        TrainingError: it holds another run or other files, or another process writes into it.
    """
    with writing_to(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = lock_run(output, rank())
    if lock is None:
        raise TrainingError(
            TrainingCode.OUTPUT_BUSY, f"another process is training in {output}", "wait for it, or stop it"
        )
    try:
        with writing_to(output):
            if rank() == 0:
                _settle(output, resume=resume, overwrite=overwrite)
            barrier()  # or one would write what another deletes
            (output / CHECKPOINTS).mkdir(exist_ok=True)
            (output / CACHE).mkdir(exist_ok=True)
        yield
    finally:
        lock.close()


def make_record(
    options: TrainingOptions,
    adapted: AdaptedModel,
    pages: RunData,
    start: StartAdapter | None = None,
    rewards: RewardOptions | None = None,
) -> dict[str, Any]:
    """The content of `run.json`: options, data, model and versions; no local paths except those in the options."""
    trainable = sum(each.numel() for each in adapted.model.parameters() if each.requires_grad)
    return {
        "format": 1,
        "date": current_date(),
        "commit": source_commit(),
        "options": options.as_json(),
        "init_from": start.as_json() if start else None,
        "rewards": rewards.as_json() if rewards else None,
        "base_model": adapted.base_name,
        "backend": adapted.details,
        "modules": len(adapted.modules),
        "trainable_parameters": trainable,
        "data": pages.as_json(),
        "machine": machine(),
        "versions": package_versions() | {name: package_version(name) for name in _PACKAGES},
    }


def settle_record(output: Path, record: dict[str, Any], *, resume: bool) -> None:
    """Write a run's record, or when resuming compare it with the earlier one.

    Raises `TrainingError` if the earlier run had other options or other data.
    """
    path = output / RUN_FILE
    if resume and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(record))
        changed = [
            name.replace("_", "-")
            for name, value in now["options"].items()
            if name not in _FREE_OPTIONS and before["options"].get(name) != value
        ]
        # A run from before these were recorded had neither.
        changed += [NAMED[name] for name in NAMED if before.get(name) != now[name]]
        parts, earlier = now["data"]["parts"], before["data"]["parts"]
        changed += [f"set of {name} pages" for name, value in parts.items() if earlier.get(name) != value]
        if changed:
            raise TrainingError(
                TrainingCode.RESUME_MISMATCH,
                f"{output} holds a run with another {', '.join(changed)}",
                "repeat what it was started with, or name another --output-dir",
            )
        return
    if rank() == 0:
        with writing_to(output):
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(path)


def write_seen(output: Path, lines: Sequence[str]) -> None:
    """Write what identifies the pages that are trained on, so that none of them can prove the adapter."""
    if rank() == 0:
        with writing_to(output):
            partial = output / f"{SEEN_FILE}.partial"
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
            partial.replace(output / SEEN_FILE)


def _settle(output: Path, *, resume: bool, overwrite: bool) -> None:
    for name in (BEST,):
        restore_replaced(output / name)
    strange = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    if not strange or resume:
        return
    is_run = (output / RUN_FILE).is_file() or strange <= {CHECKPOINTS, CACHE}
    # One that was refused before its first event, for a missing package or a full disk, is nothing to keep.
    has_begun = (output / RUN_FILE).is_file() and bool(strange & {LOG_FILE, BEST})
    # Only delete what this program made: --overwrite on a home folder must not empty it.
    if not is_run or (not overwrite and has_begun):
        raise TrainingError(
            TrainingCode.OUTPUT_EXISTS,
            f"{output} holds {'a run' if is_run else 'something else'} already",
            "continue it (--resume), replace it (--overwrite), or name another --output-dir"
            if is_run
            else "name another --output-dir",
        )
    for path in output.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(LOCK):
            path.unlink()
