"""A checkpoint's calibration: the file next to its weights that makes probabilities of its tokens' scores.

`python -m trainer calibrate` writes it; without it a checkpoint's scores are given as they are. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.contract.confidence import MonotoneMap

FILE_NAME = "calibration.json"
FORMAT = 1


class CalibrationError(ValueError):
    """A file that is not a calibration in this format; the message says why."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps of one checkpoint; they hold for its weights alone, so not with an adapter."""

    words: MonotoneMap
    digits: MonotoneMap


def read_calibration(folder: Path) -> Calibration | None:
    """Read a checkpoint's calibration.

    Args:
        folder: The checkpoint.

    Returns:
        The maps; None if the checkpoint has none.

    Raises:
        CalibrationError: The file is no calibration.
    """
    path = folder / FILE_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}") from error
    try:
        if record["format"] != FORMAT:
            raise CalibrationError(f"{path} has format {record['format']!r}, not {FORMAT}")
        return Calibration(_map(record["words"]), _map(record["digits"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"{path} is no calibration: {error!r}") from error


def write_calibration(folder: Path, calibration: Calibration, facts: Mapping[str, Any]) -> Path:
    """Write the file.

    Args:
        folder: The checkpoint.
        calibration: Its maps.
        facts: Where they come from, kept in the file: revision of the weights, sets, versions.

    Returns:
        The file's path.
    """
    path = folder / FILE_NAME
    record = {"format": FORMAT, **facts, **asdict(calibration)}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _map(entry: Mapping[str, Any]) -> MonotoneMap:
    return MonotoneMap(
        float(entry["page_weight"]), tuple(map(float, entry["scores"])), tuple(map(float, entry["shares"]))
    )
