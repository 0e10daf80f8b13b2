"""Every command in docs/data.md runs as written, and the document lists every error code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.page_sources import LONG, drawn, write_pages
from tests.support.samples import SampleFolder
from trainer.cli import main
from trainer.data.errors import DataCode, RowCode
from trainer.data.prepare.manifest import verify_set

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, fonts_dir, monkeypatch):
    """What the commands name: scans, a table of receipts, folders with faults, texts, a font."""
    write_pages(tmp_path / "scans", 60)
    write_pages(tmp_path / "found", 60)
    for number in range(4):
        (tmp_path / "found" / f"p{number:02d}.png").write_bytes(b"cut off")
    (tmp_path / "receipts").mkdir()
    lines = ["photo,total"]
    for number in range(60):
        drawn(f"{number} EUR").save(tmp_path / "receipts" / f"{number}.jpg")
        lines.append(f"{number}.jpg,{number} EUR")
    (tmp_path / "receipts" / "receipts.csv").write_text("\n".join(lines), encoding="utf-8")
    letters = [json.dumps({"text": f"{LONG} {number}"}) for number in range(60)]
    (tmp_path / "letters.jsonl").write_text("\n".join(letters), encoding="utf-8")
    news = [json.dumps({"article": f"{LONG} {number}", "highlights": f"News {number}"}) for number in range(60)]
    (tmp_path / "news.jsonl").write_text("\n".join(news), encoding="utf-8")
    kept = SampleFolder(tmp_path / "samples")
    for number in range(40):
        kept.add(f"kept {number}", correction=f"{LONG} {number}")
    shutil.copytree(fonts_dir, tmp_path / "fonts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands():
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_runs(workplace, capsys):
    assert len(commands()) >= 7
    for line in commands():
        python, dash_m, trainer, *words = shlex.split(line)
        assert (python, dash_m, trainer) == ("python", "-m", "trainer")
        assert main(words) == 0, f"{line}\n{capsys.readouterr().err}"
        verify_set(workplace / words[words.index("--out") + 1])
    assert not list((workplace / "sets").glob(".*"))


def test_every_code_is_explained_and_none_else():
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", TEXT.partition("## When it stops")[2]))
    assert named == {code.value for code in (*DataCode, *RowCode)}


def test_every_flag_that_is_named_exists(capsys):
    help_text = ""
    for command in ("prepare", "train"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        help_text += capsys.readouterr().out
    flags = set(re.findall(r"(?<!-)--[a-z][a-z-]+", TEXT))
    assert {flag for flag in flags if flag not in help_text} == set()
