"""Figures of Markdown become files next to it; nothing else of a text is written anywhere."""

from __future__ import annotations

import base64
from pathlib import Path, PurePath

import pytest

from service.cli.inputs import InputFile
from service.cli.output import OutputFolder

FIGURE = base64.b64encode(b"jpeg bytes").decode()


def written(folder: Path, text: str, extension: str = ".md") -> dict[str, bytes]:
    file = InputFile("scans/my report.pdf", Path("my report.pdf"), PurePath("scans/my report.pdf"))
    OutputFolder(folder, extension, [file]).write(file, text.encode(), is_partial=False)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_figures_are_files_that_the_markdown_links(tmp_path: Path) -> None:
    links = [f"![page-{page}-figure-1.jpeg](data:image/jpeg;base64,{FIGURE})" for page in (1, 12)]
    assert written(tmp_path, f"a\n\n{links[0]}\n\nb {links[1]}\n") == {
        "scans/my report.figures/page-1-figure-1.jpeg": b"jpeg bytes",
        "scans/my report.figures/page-12-figure-1.jpeg": b"jpeg bytes",
        "scans/my report.md": (
            b"a\n\n![page-1-figure-1.jpeg](my%20report.figures/page-1-figure-1.jpeg)\n\n"
            b"b ![page-12-figure-1.jpeg](my%20report.figures/page-12-figure-1.jpeg)\n"
        ),
    }


@pytest.mark.parametrize(
    ("text", "extension"),
    [
        (f"![../page-1-figure-1.jpeg](data:image/jpeg;base64,{FIGURE})", ".md"),
        (f"![other.jpeg](data:image/jpeg;base64,{FIGURE})", ".md"),
        (f"![page-1-figure-1.jpeg](data:image/png;base64,{FIGURE})", ".md"),
        ("![page-1-figure-1.jpeg](data:image/jpeg;base64,)", ".md"),
        (f"![page-1-figure-1.jpeg](data:image/jpeg;base64,{FIGURE})", ".txt"),
    ],
)
def test_nothing_else_is_taken_for_a_figure(tmp_path: Path, text: str, extension: str) -> None:
    assert written(tmp_path, text, extension) == {f"scans/my report{extension}": text.encode()}
