"""Sets documentation in HTML as PDFs with a browser, in styles drawn at random: pages whose maker is not TeX."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

from trainer.nano.fonts.library import FontLibrary

logger = logging.getLogger(__name__)

BROWSERS: Final = ("chromium", "google-chrome", "chrome")
BYTES: Final = (6_000, 90_000)
TIMEOUT_S: Final = 60
_DROPPED: Final = re.compile(r"<(script|style|nav)\b.*?</\1>|<(?:link|img)\b[^>]*>", re.DOTALL | re.IGNORECASE)
_TABLE_STYLES: Final = (
    "table{border-collapse:collapse;width:100%} td,th{border:1px solid #555;padding:2px 5px}",
    "table{border-collapse:collapse} tr:nth-child(even){background:#e4e4e4} td,th{padding:3px 8px;border:0}",
    "table{border-collapse:collapse;width:100%} th{background:#334;color:#fff} td{border-bottom:1px solid #999}",
    "table{border-collapse:collapse} th{border-bottom:2px solid #000} td,th{border:0;padding:1px 6px}",
)


def find_browser() -> str | None:
    """Path of a browser that prints without a window; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def choose_documents(folder: Path, most: int) -> list[Path]:
    """HTML files of a middle size, those with tables first; the same for the same folder."""
    paths = [p for p in sorted(folder.rglob("*.html")) if p.is_file() and not p.is_symlink()]
    paths = [p for p in paths if BYTES[0] <= p.stat().st_size <= BYTES[1]]
    paths.sort(key=lambda p: hashlib.sha256(p.name.encode()).hexdigest())
    paths.sort(key=lambda p: b"<td" not in p.read_bytes())
    return paths[:most]


def typeset(paths: Sequence[Path], fonts: FontLibrary, browser: str, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Print documents, each in a style of its own.

    Args:
        paths: HTML files.
        fonts: faces to set them in.
        browser: as of `find_browser`.
        seed: of the styles.

    Yields:
        Each file that the browser could print, and its PDF.
    """
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            page, printed = Path(scratch) / "page.html", Path(scratch) / "printed.pdf"
            text = _DROPPED.sub("", path.read_text(errors="replace"))
            style = f"<meta charset='utf-8'><style>{random_style(fonts, rng)}</style>"
            page.write_text(f"<!DOCTYPE html>{style}{text}")
            command = [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
                f"--user-data-dir={scratch}/profile", f"--print-to-pdf={printed}", page.as_uri(),
            ]  # fmt: skip
            try:
                subprocess.run(  # noqa: S603 - the browser found on PATH, on a page of our own
                    command, check=True, timeout=TIMEOUT_S, capture_output=True
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
                logger.info("%s could not be printed: %s", path.name, problem)
                continue
            yield path, printed.read_bytes()


def random_style(fonts: FontLibrary, rng: Random) -> str:
    """CSS of a random face, size, page, number of columns and look of tables."""
    face = fonts.pick(rng, kind=rng.choice(("sans", "sans", "serif")))
    bold = next((other for other in fonts.companions(face) if other.style == "bold"), face)
    columns = rng.choice((1, 1, 1, 2))
    faces = "".join(
        f"@font-face{{font-family:F;font-weight:{weight};src:url('{(fonts.folder / each.file).resolve().as_uri()}')}}"
        for each, weight in ((face, "normal"), (bold, "bold"))
    )
    return (
        f"{faces} @page{{size:{rng.choice(('A4', 'A4', 'letter', 'A4 landscape'))};margin:{rng.randint(12, 28)}mm}}"
        f"*{{font-family:F,sans-serif!important;color:inherit}} a{{text-decoration:none;color:#000}}"
        f"body{{font-size:{rng.uniform(7.5, 11.5):.1f}pt;line-height:{rng.uniform(1.1, 1.6):.2f};"
        f"text-align:{rng.choice(('left', 'justify'))};columns:{columns};column-gap:{rng.randint(6, 12)}mm}}"
        f"table,pre{{font-size:{rng.uniform(0.75, 1):.2f}em}} pre{{white-space:pre-wrap}}{rng.choice(_TABLE_STYLES)}"
    )
