from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.contract.calibration import FILE_NAME, Calibration, CalibrationError, read_calibration, write_calibration
from shared.contract.confidence import MonotoneMap

MAPS = Calibration(MonotoneMap(2.0, (-3.0, 0.0), (0.25, 1.0)), MonotoneMap(0.0, (-1.0,), (0.5,)))


def test_what_is_written_is_read(tmp_path: Path):
    write_calibration(tmp_path, MAPS, {"weights": "abc"})
    assert read_calibration(tmp_path) == MAPS
    assert json.loads((tmp_path / FILE_NAME).read_text())["weights"] == "abc"


def test_checkpoint_may_have_none(tmp_path: Path):
    assert read_calibration(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"words": None},
        {"digits": {"page_weight": 0, "scores": [0], "shares": ["x"]}},
        {"words": {"page_weight": 0, "scores": [0, 1], "shares": [0.5, 0.4]}},
    ],
)
def test_broken_file_is_named(change: dict, tmp_path: Path):
    path = write_calibration(tmp_path, MAPS, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CalibrationError, match=FILE_NAME):
        read_calibration(tmp_path)
    path.write_text("{")
    with pytest.raises(CalibrationError, match=FILE_NAME):
        read_calibration(tmp_path)
