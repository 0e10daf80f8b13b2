from __future__ import annotations

from pathlib import Path

import pytest

from service.cli.describe import PAGES, write_pages

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name: str) -> None:
    page = PAGES[name]
    assert (ROOT / page.path).read_text() == page.render(), "run: python -m service describe --write ."


def test_pages_are_written(tmp_path: Path) -> None:
    paths = write_pages(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in paths) == sorted(page.path for page in PAGES.values())
    assert "| `DEEPSYNTH_PORT` | `8000` | >= 0, <= 65535 |" in (tmp_path / "docs/configuration.md").read_text()
