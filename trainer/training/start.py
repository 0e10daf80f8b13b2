"""The adapter that a run begins with, where it does not begin with a new one (`--init-from`).

Owns that the new run has its rank and modules, that its weights arrive, and that pages it has seen stay known as seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer.evaluation.paths import locate_adapter, run_folder
from trainer.evaluation.seen import SEEN_FILE
from trainer.training.errors import TrainingCode, TrainingError

if TYPE_CHECKING:
    from trainer.backends.protocol import AdaptedModel

SHAPING: Final = ("lora_rank", "lora_alpha", "use_rslora", "target_modules")
"""Options that an adapter to begin with decides."""


@dataclass(frozen=True, slots=True)
class StartAdapter:
    """An adapter to begin with.

    Attributes:
        folder: its PEFT folder.
        label: its name in records, without local folders.
        sha256: of its weights.
        seen: lines that identify the pages it was trained on; empty where that is unknown.
    """

    folder: Path
    label: str
    sha256: str
    seen: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `run.json`."""
        return {"name": self.label, "sha256": self.sha256, "seen_pages": len(self.seen)}


def shaping_options(given: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Rank, alpha and modules of the adapter to begin with, as options.

    Args:
        given: a training run's folder, or a PEFT folder.
        chosen: options that the user gave, which must not contradict them.

    Returns:
        The options.

    Raises:
        TrainingError: an option contradicts the adapter.
        ReaderError: there is no adapter, or it cannot be used.
    """
    from trainer.reading.adapters import read_adapter

    adapter = read_adapter(locate_adapter(given).folder)
    config = adapter.config
    values = {
        "lora_rank": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.use_rslora,
        "target_modules": tuple(sorted(adapter.modules)),
    }
    for name in SHAPING[:-1]:
        if name in chosen and chosen[name] != values[name]:
            raise TrainingError(
                TrainingCode.OPTION_INVALID,
                f"{name.replace('_', '-')} is {chosen[name]}, and {given} has {values[name]}",
                "leave it out: a run that begins with an adapter has its shape",
            )
    if "target_modules" in chosen:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            f"target-modules is given, and {given} has modules of its own",
            "leave it out: a run that begins with an adapter has its shape",
        )
    return values


def misfit(given: str) -> TrainingError:
    """The error of an adapter to begin with that is for another base model."""
    return TrainingError(
        TrainingCode.OPTION_INVALID,
        f"{given} does not fit the base model",
        "give the one that it was trained on with --model",
    )


def begin_with(adapted: AdaptedModel, given: str) -> StartAdapter:
    """Copy an adapter's weights into a model's new adapter, which has its shape.

    Raises `TrainingError` if it is for another base model, or `ReaderError` if it cannot be read.
    """
    from trainer.reading.adapters import read_adapter
    from trainer.training.adapter import load_adapter

    place = locate_adapter(given)
    adapter = read_adapter(place.folder)
    try:
        load_adapter(adapted.model, place.folder)
    except TrainingError as error:
        raise misfit(given) from error
    seen = run_folder(place.folder) / SEEN_FILE
    lines = seen.read_text(encoding="ascii").splitlines() if seen.is_file() else []
    return StartAdapter(place.folder, place.label, adapter.sha256, tuple(lines))
