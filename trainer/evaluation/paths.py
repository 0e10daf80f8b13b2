"""Where the adapter lies that somebody means: a PEFT folder, a training run, or a name on the adapter volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.contract.identity import parse_reference
from shared.contract.refusals import VolumeError
from shared.contract.volume import CONFIG_FILE, AdapterVolume
from trainer.reading.protocol import ReaderError

BEST_FOLDER = "best"
"""Of a training run: the adapter to publish."""


@dataclass(frozen=True, slots=True)
class AdapterLocation:
    """A PEFT folder and how people call it."""

    folder: Path
    label: str
    """Without folders of this machine."""


def locate_adapter(given: str, volume: Path | None = None) -> AdapterLocation:
    """Find an adapter.

    Args:
        given: A PEFT folder, a training run's folder, `name`, or `name@version`.
        volume: The volume that names are looked up on.

    Returns:
        Its place; a name without a version stands for the one in use.

    Raises:
        ReaderError: It is neither a folder nor a name.
        VolumeError: The volume has no such adapter.
    """
    folder = Path(given)
    if folder.is_dir():
        return AdapterLocation(adapter_folder(folder), _label(folder.resolve()))
    if volume is None:
        try:
            parse_reference(given)
        except VolumeError as error:
            raise ReaderError(f"there is no adapter at {given}: give a PEFT folder or a training run") from error
        raise ReaderError(f"{given} is no folder; to look it up by name give the adapter volume with --volume")
    reference = AdapterVolume(volume).resolve(given)
    return AdapterLocation(volume / reference.name / str(reference.version), str(reference))


def adapter_folder(folder: Path) -> Path:
    """The PEFT folder itself, where a run's folder was given as well."""
    is_run = not (folder / CONFIG_FILE).exists() and (folder / BEST_FOLDER / CONFIG_FILE).exists()
    return folder / BEST_FOLDER if is_run else folder


def run_folder(folder: Path) -> Path:
    """The training run that an adapter lies in, or would: of `RUN/best` and `RUN` it is `RUN`."""
    return folder.parent if folder.name == BEST_FOLDER else folder


def _label(folder: Path) -> str:
    """A run's name for `RUN/best`, as `best` tells nobody anything."""
    return run_folder(folder).name
