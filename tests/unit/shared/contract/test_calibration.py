from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shared.contract.calibration import FILE_NAME, Calibration, CalibrationError, read_calibration, write_calibration
from shared.contract.confidence import MonotoneMap

MAPS = Calibration(MonotoneMap(2.0, (-3.0, 0.0), (0.25, 1.0)), MonotoneMap(0.0, (-1.0,), (0.5,)))


def test_what_is_written_is_read(tmp_path: Path):
    write_calibration(tmp_path, MAPS, {"weights": "abc"})
    assert read_calibration(tmp_path) == MAPS
    assert json.loads((tmp_path / FILE_NAME).read_text())["weights"] == "abc"


def test_a_digit_is_right_if_its_page_is_readable_and_it_is_right_there(tmp_path: Path):
    readable = MonotoneMap(0.0, (-2.0, -1.0), (0.0, 1.0))
    write_calibration(tmp_path, replace(MAPS, readable=readable), {})
    maps = read_calibration(tmp_path)
    assert maps is not None
    assert [maps.digit_share(-1.0, mean) for mean in (-0.5, -1.5, -3.0)] == [0.5, 0.25, 0.0]
    assert MAPS.digit_share(-1.0, -3.0) == 0.5


def test_files_of_the_format_before_are_read(tmp_path: Path):
    path = write_calibration(tmp_path, MAPS, {})
    record = json.loads(path.read_text())
    del record["readable"]
    path.write_text(json.dumps({**record, "format": 1}))
    assert read_calibration(tmp_path) == MAPS


def test_checkpoint_may_have_none(tmp_path: Path):
    assert read_calibration(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
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
