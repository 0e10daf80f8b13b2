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
FORMAT = 2
"""Since 2 with `readable`, which 1 did not have."""
_FORMATS = (1, 2)


class CalibrationError(ValueError):
    """A file that is not a calibration in this format; the message says why."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps of one checkpoint; they hold for its weights alone, so not with an adapter."""

    words: MonotoneMap
    digits: MonotoneMap
    """With `readable`: of digits on pages that the model reads."""
    readable: MonotoneMap | None = None
    """From a page's mean log probability to the chance that it is one the model reads at all: in its script, say. None:
    the digits' map knows of such pages."""

    def digit_share(self, log_probability: float, page_mean: float) -> float:
        """The probability that a digit is right: that its page is readable, and that it is right on such a page.

        One map cannot tell a doubtful digit on a page that is read well from one on a page in another script, which is
        almost surely wrong.

        Args:
            log_probability: Its own.
            page_mean: `TokenScores.mean` of its page.

        Returns:
            From 0 to 1.
        """
        share = self.digits.share(log_probability, page_mean)
        return share if self.readable is None else share * self.readable.share(page_mean, 0.0)


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
        if record["format"] not in _FORMATS:
            raise CalibrationError(f"{path} has format {record['format']!r}, not {' or '.join(map(str, _FORMATS))}")
        readable = record.get("readable")
        return Calibration(_map(record["words"]), _map(record["digits"]), None if readable is None else _map(readable))
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
