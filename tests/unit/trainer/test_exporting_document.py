"""docs/exporting.md: its commands parse as they are written, and its codes exist."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.support.programs import ROOT
from trainer.cli import build_parser

TEXT = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m trainer (.+)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    assert build_parser().parse_args(shlex.split(command)).run


def test_every_code_is_raised_somewhere():
    codes = set(re.findall(r"`([a-z]+_[a-z]+)`", TEXT))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "trainer").rglob("*.py"))
    assert len(codes) >= 7
    assert [code for code in codes if f'"{code}"' not in sources] == []
