"""Locates an adapter: a PEFT folder, a training run, or a name on the adapter volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.contract.identity import parse_reference
from shared.contract.refusals import VolumeError
from shared.contract.volume import CONFIG_FILE, AdapterVolume
from trainer.reading.protocol import ReaderError

BEST_FOLDER = "best"
"""Folder of a training run's adapter to publish."""


@dataclass(frozen=True, slots=True)
class AdapterLocation:
    """A PEFT folder and its name in records."""

    folder: Path
    label: str
    """Name in records, without local folders."""


def locate_adapter(given: str, volume: Path | None = None) -> AdapterLocation:
    """Find an adapter by its PEFT folder, a training run's folder, `name` (the version in use) or `name@version`.

    Args:
        given: the folder or name.
        volume: the adapter volume in which names are looked up.

    Returns:
        Its location.

    Raises:
        ReaderError: it is neither a folder nor a name.
        VolumeError: the volume has no such adapter.
    """
    folder = Path(given)
    if folder.is_dir():
        return AdapterLocation(adapter_folder(folder), _label(folder.resolve()))
    if volume is None:
        try:
            parse_reference(given)
        except VolumeError as error:
            raise ReaderError(f"there is no adapter at {given}: give a PEFT folder or a training run") from error
        raise ReaderError(f"{given} is not a folder; to look it up by name give the adapter volume with --volume")
    reference = AdapterVolume(volume).resolve(given)
    return AdapterLocation(volume / reference.name / str(reference.version), str(reference))


def adapter_folder(folder: Path) -> Path:
    """The PEFT folder itself, also if a run's folder was given."""
    is_run = not (folder / CONFIG_FILE).exists() and (folder / BEST_FOLDER / CONFIG_FILE).exists()
    return folder / BEST_FOLDER if is_run else folder


def run_folder(folder: Path) -> Path:
    """The training run's folder for an adapter's: `RUN` for both `RUN/best` and `RUN`."""
    return folder.parent if folder.name == BEST_FOLDER else folder


def _label(folder: Path) -> str:
    """A run's name for `RUN/best`, as `best` alone says nothing."""
    return run_folder(folder).name
