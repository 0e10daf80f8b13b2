"""Which files a word on the command line means, and which of a folder are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli.inputs import Skipped, find_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "out").mkdir()
    for name in ("a.PNG", "b.docx", "deep/c.DOCX", "deep/d.pdf", "e.txt", "letter", ".hidden.doc", "out/f.txt"):
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_files_of_a_folder_in_other_formats_are_counted(folder: Path) -> None:
    skipped = Skipped()
    found = find_inputs([str(folder)], folder / "out", skipped)
    assert [file.place.as_posix() for file in found] == ["a.PNG", "deep/d.pdf"]
    assert str(skipped) == "Not read, as their format is not known: 4 (.docx 2, .txt 1, without an ending 1)."


def test_a_folder_of_a_pattern_is_counted_too_and_a_named_file_is_read(folder: Path) -> None:
    skipped = Skipped()
    found = find_inputs([str(folder / "de*"), str(folder / "e.txt")], None, skipped)
    assert [file.place.as_posix() for file in found] == ["deep/d.pdf", "e.txt"]
    assert skipped == {".docx": 1}


def test_nothing_is_said_where_all_is_read(folder: Path) -> None:
    skipped = Skipped()
    find_inputs([str(folder / "a.PNG")], None, skipped)
    assert str(skipped) == ""
