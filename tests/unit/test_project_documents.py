"""What the documents tell people to type: each command takes the arguments that are shown."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from service.__main__ import COMMANDS
from trainer.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "shared/nano/README.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
SERVICE = re.compile(r"(?:(?:^|\s)deepsynth|python -m service)\s+(.*)")
TRAINER = re.compile(r"(?:python -m trainer|compose run --rm trainer(?:-gpu)?)\s+(.*)")
PLACEHOLDER = re.compile(r"\.\.\.|(?<=\s)\[|\$\(")
END = re.compile(r"\s(?:#|\||&&|&$|>|<)")
"""Where the shell, or a remark, ends a command."""


def lines(document: str) -> list[str]:
    """Lines of code: of fences that show a shell, and indented ones, continued lines joined."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = re.findall(r"```(?:console|sh|bash|shell)?\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = [line[4:] for line in rest.splitlines() if line.startswith("    ") and not line.lstrip().startswith("-")]
    code = "\n".join([*fenced, *indented])
    return [line.removeprefix("$ ") for line in re.sub(r"\\\n\s*", "", code).splitlines()]


def words(rest: str) -> list[str]:
    return shlex.split(END.split(rest)[0])


def commands(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for line in lines(document):
            match = pattern.search(line)
            if match and not PLACEHOLDER.search(match[1]) and match[1][:1].islower() and "`" not in line:
                found.append((document, match[1]))
    return found


def parses(parser: argparse.ArgumentParser, arguments: list[str]) -> bool:
    try:
        parser.parse_args(arguments)
    except SystemExit as end:
        return end.code == 0
    return True


def test_commands_of_the_service_take_what_the_documents_show() -> None:
    found = [(document, words(rest)) for document, rest in commands(SERVICE)]
    found = [(document, each) for document, each in found if each and each[0] in COMMANDS]
    assert len(found) > 10
    wrong = []
    for document, (name, *arguments) in found:
        parser = argparse.ArgumentParser(prog=name)
        importlib.import_module(f"service.cli.{name}").add_arguments(parser)
        if not parses(parser, arguments):
            wrong.append((document, name, arguments))
    assert wrong == []


def test_commands_of_the_trainer_take_what_the_documents_show() -> None:
    found = [(document, words(rest)) for document, rest in commands(TRAINER)]
    assert len(found) > 20
    assert [(document, each) for document, each in found if not parses(build_parser(), each)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {match[1] for line in lines(document) if (match := re.match(r"make ([a-z][a-z0-9-]*)", line))}
    assert named - targets == set()
