"""Documentation in HTML set by a browser: which files, in which styles, and what becomes of a browser's failure."""

from pathlib import Path
from random import Random

import pytest

from trainer.nano.pdf.typeset import choose_documents, random_style, typeset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain.html").write_text("<p>" + "words and more words " * 400)
    (tmp_path / "table.html").write_text("<table><tr><td>1<td>2</table>" + "words of a table " * 500)
    (tmp_path / "short.html").write_text("<table><tr><td>1</table>")
    return tmp_path


def browser(tmp_path: Path, script: str) -> str:
    program = tmp_path / "browser"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_files_with_tables_come_first_and_short_ones_not_at_all(folder):
    assert [path.name for path in choose_documents(folder, 5)] == ["table.html", "plain.html"]
    assert [path.name for path in choose_documents(folder, 1)] == ["table.html"]


def test_what_the_browser_prints_is_given_with_its_file(folder, library, tmp_path):
    keep = tmp_path / "seen.html"
    program = browser(
        tmp_path,
        f"""for a; do case $a in --print-to-pdf=*) out=${{a#*=}};; file://*) page=${{a#file://}};; esac; done
cp "$page" {keep}; printf PDF > "$out" """,
    )
    (folder / "table.html").write_text("<script>no()</script><img src=x><td>cell</td>" + "x" * 7000)
    printed = list(typeset(choose_documents(folder, 1), library, program, seed=3))
    assert printed == [(folder / "table.html", b"PDF")]
    shown = keep.read_text()
    assert "no()" not in shown
    assert "<img" not in shown
    assert "<td>cell</td>" in shown
    assert random_style(library, Random(3)) in shown


def test_files_that_the_browser_cannot_print_are_left_out(folder, library, tmp_path):
    assert list(typeset(choose_documents(folder, 2), library, browser(tmp_path, "exit 1"), seed=3)) == []
