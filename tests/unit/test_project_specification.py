"""docs/specification.md is true: files, flags, settings, routes, metrics and figures are where it says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from service.config import PREFIX, ServiceSettings, load_settings
from service.schemas import OcrAnswer
from service.telemetry.metrics import TABLE
from trainer.cli import build_parser
from trainer.commands.parser import CommandParser

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Cells of a section's tables, without their heads."""
    lines = [
        line for line in section(title).splitlines() if line.startswith("| ") and not line.startswith("| specified")
    ]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in found if row[0] != "aim"]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def command(name: str) -> CommandParser:
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    found = commands.choices[name]
    assert isinstance(found, CommandParser)
    return found


def test_specified_files_and_targets_exist() -> None:
    named = [name for row in rows("Files") for name in names(row[0])]
    targets = {name.removeprefix("make ") for name in named if name.startswith("make ")}
    assert [name for name in named if not name.startswith("make ") and not (ROOT / name).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()
    assert len(named) > len(targets) > 4


@pytest.mark.parametrize("row", rows("Flags"), ids=lambda row: f"{row[1]} {row[0]}")
def test_a_specified_flag_is_taken_and_means_the_flag_named(row: list[str]) -> None:
    (given,), (program,), (meant,) = map(names, row)
    parser = command(program)
    for written in (given, f"--{given[2:].replace('_', '-')}"):
        assert parser._own_name(f"{written}=1") == f"{meant}=1"


@pytest.mark.parametrize("row", rows("Settings"), ids=lambda row: row[0])
def test_a_specified_setting_has_its_default(row: list[str]) -> None:
    (variable,) = names(row[0])
    name = variable.removeprefix(PREFIX).lower()
    assert name in ServiceSettings.model_fields
    default = getattr(load_settings({}, env_file=None), name)
    wanted = names(row[1])
    assert (default is None) if not wanted else str(default).lower() == wanted[0], (variable, default)


def test_specified_routes_and_members_exist() -> None:
    for route, place in rows("Requests and answers"):
        method, path = names(route)[0].split()
        source = (ROOT / names(place)[0]).read_text(encoding="utf-8")
        assert path in source, (method, path)
    sentence = next(line for line in section("Requests and answers").splitlines() if line.startswith("Fields"))
    form, answer = sentence.split("Members of the answer")
    fields = (ROOT / "service/routes/form.py").read_text(encoding="utf-8")
    assert [name for name in names(form) if name not in fields] == []
    assert set(names(answer)) <= OcrAnswer.model_fields.keys()


def test_specified_metrics_have_their_labels() -> None:
    table = {spec.name: list(spec.labels) for spec in TABLE}
    assert {names(row[0])[0]: names(row[1]) for row in rows("Metrics")}.items() <= table.items()


@pytest.mark.parametrize("row", rows("Acceptance"), ids=lambda row: row[0])
def test_a_figure_is_in_the_file_that_its_row_names(row: list[str]) -> None:
    _, measured, result, where = row
    (link,) = re.findall(r"\]\(([^)]+)\)", where)
    source = (ROOT / "docs" / link).read_text(encoding="utf-8")
    figures = [name for name in names(measured) if not name.startswith("--")]
    assert figures
    assert [figure for figure in figures if figure not in source] == []
    assert result.split()[0].strip(";") in {"met", "open"}
