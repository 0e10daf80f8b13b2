"""Which files a word on the command line means, and which of a folder are left out."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest

from service.cli.inputs import InputFile, Skipped, find_inputs


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


@pytest.mark.parametrize("out", ["in", "in/deep", "."])
def test_a_pattern_within_the_outputs_folder_means_its_files(folder: Path, out: str) -> None:
    found = find_inputs([str(folder / "deep" / "*.pdf")], folder.parent / out)
    assert [file.place.as_posix() for file in found] == ["d.pdf"]
    assert found[0].problem is None


def test_the_outputs_folder_is_left_out_of_a_pattern_around_it(folder: Path) -> None:
    (folder / "out" / "done.pdf").touch()
    found = find_inputs([str(folder / "**" / "*.pdf")], folder / "out")
    assert [file.place.as_posix() for file in found] == ["deep/d.pdf"]


def test_pipes_are_found_and_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    for word in (folder, folder / "*.png"):
        (found,) = [file for file in find_inputs([str(word)]) if file.path == folder / "pipe.png"]
        assert (found.code, found.problem is None) == ("not_a_file", False)
    (named,) = find_inputs([str(folder / "pipe.png")])
    assert named.problem is None


def test_a_name_is_shown_without_what_would_steer_a_terminal() -> None:
    name = "in/a\n\x1b[2Jb\u202e\udcff ü.png"
    assert InputFile(name, None, PurePath(name)).shown == r"in/a\n\x1b[2Jb\u202e\udcff ü.png"
