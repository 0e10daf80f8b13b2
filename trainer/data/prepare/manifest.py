"""A prepared set's `dataset.json`: reads it, and checks the files it lists."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.data.errors import DataCode, DataError
from trainer.data.sources.splits import TRAIN

MANIFEST_NAME: Final = "dataset.json"
FORMAT_VERSION: Final = 1


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read a prepared set's manifest; raises `DataError` if the folder is not one of this format."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        is_known = manifest["format_version"] == FORMAT_VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            DataCode.SET_CORRUPT,
            f"{folder} has no readable {MANIFEST_NAME}",
            "prepare it with `python -m trainer prepare`",
        ) from error
    if not is_known:
        raise DataError(
            DataCode.SET_CORRUPT,
            f"{folder} is of format {manifest['format_version']}, this version reads {FORMAT_VERSION}",
            "prepare it again",
        )
    return manifest


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """What an adapter's manifest says about its training set.

    Attributes:
        fingerprint: of the whole set, splits included.
        num_samples: of the split for training.
    """

    fingerprint: str
    num_samples: int


def training_part(folder: Path) -> TrainingPart:
    """Fingerprint and training samples of a prepared set, whose files are checked first.

    Raises `DataError` if the folder is not a prepared set, has no training split, or is no longer what was prepared.
    """
    manifest = verify_set(folder)
    try:
        return TrainingPart(str(manifest["fingerprint"]), int(manifest["splits"][TRAIN]["num_samples"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            DataCode.SET_CORRUPT, f"{folder / MANIFEST_NAME} names no split {TRAIN}", "name the set that was trained on"
        ) from error


def verify_set(folder: Path) -> dict[str, Any]:
    """Check every file of a prepared set against its manifest, which is returned.

    Raises `DataError` if a file is missing or has changed.
    """
    manifest = load_manifest(folder)
    for split in manifest["splits"].values():
        for record in split["files"]:
            path = folder / record["name"]
            if not path.is_file():
                raise DataError(DataCode.SET_CORRUPT, f"{path} is missing", "copy the set again, or prepare it again")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record["sha256"]:
                raise DataError(DataCode.SET_CORRUPT, f"{path} has changed", "copy the set again, or prepare it again")
    return manifest
