"""`python -m service` as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pdf import make_pdf
from tests.support.server import environment
from tests.support.service import png

pytestmark = pytest.mark.integration


def call(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    chosen = {"ENGINE": "fake", "DECODE_WORKERS": "1", "FAKE_STEP_MS": "0", **settings}
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(**chosen), check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(png("one"))
    (tmp_path / "two.pdf").write_bytes(make_pdf(["a", "b"]))
    (tmp_path / "bad.png").write_bytes(b"junk")
    return tmp_path


def test_text_of_one_file_is_all_that_is_printed(folder: Path) -> None:
    ended = call("ocr", "one.png", folder=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 1
    assert ended.stdout == call("ocr", "one.png", folder=folder).stdout


def test_several_files_come_in_order_and_a_bad_one_does_not_stop_the_rest(folder: Path) -> None:
    ended = call("ocr", "one.png", "bad.png", "missing.png", "two.pdf", folder=folder)
    assert ended.returncode == 1
    assert [line for line in ended.stdout.splitlines() if line.startswith("==")] == ["== one.png ==", "== two.pdf =="]
    assert "bad.png: The file is not a PNG, JPEG, WebP, TIFF or PDF. (unsupported_format)" in ended.stderr
    assert "missing.png: No such file or directory" in ended.stderr


def test_json_is_one_object_a_file(folder: Path) -> None:
    ended = call("ocr", "--json", "--pages", "2", "two.pdf", folder=folder)
    answer = json.loads(ended.stdout)
    assert (answer["file"], [page["page"] for page in answer["pages"]]) == ("two.pdf", [2])


def test_task_and_query_reach_the_engine(folder: Path) -> None:
    plain = call("ocr", "one.png", folder=folder)
    located = call("ocr", "--json", "--task", "locate", "--query", "total", "one.png", folder=folder)
    assert json.loads(located.stdout)["pages"][0]["regions"]
    assert plain.stdout.strip() not in located.stdout


@pytest.mark.parametrize(
    "arguments", [["ocr"], ["ocr", "--task", "locate", "x"], ["ocr", "--task", "sing", "x"], ["sing"], []]
)
def test_wrong_usage_is_2_with_a_word_of_help(folder: Path, arguments: list[str]) -> None:
    ended = call(*arguments, folder=folder)
    assert ended.returncode == 2
    assert "usage:" in ended.stderr


def test_misspelt_setting_is_2_with_the_nearest_name(folder: Path) -> None:
    ended = call("serve", folder=folder, PROT="1")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "DEEPSYNTH_PROT is not a setting; did you mean DEEPSYNTH_PORT?"


def test_help_shows_what_to_type(folder: Path) -> None:
    ended = call("--help", folder=folder)
    assert ended.returncode == 0
    assert "python -m service ocr scan.png" in ended.stdout
    assert "exit status" in call("ocr", "--help", folder=folder).stdout


def test_describe_prints_a_page(folder: Path) -> None:
    assert call("describe", "errors", folder=folder).stdout.startswith("# Errors")
    assert call("describe", "nothing", folder=folder).returncode == 2
