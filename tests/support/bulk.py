"""Sources for `deepsynth bulk`, and what is in its output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.support.load import numbered_page
from tests.support.pdf import make_pdf
from tests.support.server import environment

QUICKLY = ("--mode", "tiny")
"""Options with which small pages are read soon."""
FAKE = {"ENGINE": "fake", "IMAGE_WORKERS": "1", "BLANK_PAGES": "read"}
"""Settings with which the fake engine reads any page."""
BROKEN = b"\x89PNG\r\n\x1a\n broken"


def make_pages(folder: Path, count: int) -> None:
    """Write so many images, a PDF, a Parquet file and a tar archive with three documents each, and a broken image."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:05}.png").write_bytes(numbered_page(number))
    (folder / "pages.pdf").write_bytes(make_pdf(["one", "two", "three"]))
    (folder / "broken.png").write_bytes(BROKEN)
    cells = [numbered_page(10**6), None, numbered_page(10**6 + 1)]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), folder / "set.parquet")
    write_tar(folder / "shard.tar", {f"{n}.png": numbered_page(2 * 10**6 + n) for n in range(3)} | {"0.txt": b"text"})


def write_tar(place: Path, members: dict[str, bytes]) -> None:
    """Write an archive; its compression follows from its name."""
    with tarfile.open(place, "w:gz" if place.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def table_rows(dest: Path, table: str) -> list[dict[str, Any]]:
    """Rows of all files of a table, as they were written."""
    parts = sorted((dest / table).glob("part-*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def page_rows(dest: Path, table: str) -> list[str]:
    """Rows as text, in order, to be compared."""
    return sorted(json.dumps(row, sort_keys=True) for row in table_rows(dest, table))


def finished(out: Path) -> int:
    """Documents that are in the journal or in a file."""
    if not out.exists():
        return 0
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    known = {json.loads(line)["source"] for line in lines if line.endswith(b"\n")}
    return len(known | {row["source"] for table in ("pages", "failures") for row in table_rows(out, table)})


def read_here(source: Path, dest: Path) -> None:
    """Read a source with one process and the fake engine."""
    command = [sys.executable, "-m", "service", "bulk", str(source), str(dest), *QUICKLY]
    settings = environment(**FAKE, FAKE_STEP_MS="0")
    subprocess.run(command, env=settings, cwd=source.parent, stderr=subprocess.DEVNULL, timeout=600, check=False)
