"""Chooses pages of Debian's documentation in PDF whose text can be trusted, and packs them for `pdf_pages`."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pikepdf
import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types

from trainer.nano.fonts.library import FontLibrary
from trainer.nano.packages import SourcePackage, read_package_list, unpack_packages
from trainer.nano.pdf.pages import INDEX_NAME
from trainer.nano.pdf.text import PageText, RefusedPageError, line_key, read_page
from trainer.nano.pdf.typeset import choose_documents, find_browser, typeset

logger = logging.getLogger(__name__)

PAGES_PER_DOCUMENT: Final = 8
TRIES_PER_PAGE: Final = 2
PRINTED_DOCUMENTS: Final = 12
"""Most documents in HTML of a package."""
MAX_DOCUMENT_BYTES: Final = 40_000_000
MAX_PACKED_BYTES_A_PAGE: Final = 60_000
MIN_CHARACTERS: Final = 200
MIN_CONTRAST: Final = 40
MAX_CODE_SHARE: Final = 0.03
"""Most of a page's characters that may be backslashes and braces: manuals of TeX hold more code than prose."""
EVALUATION_LINES: Final = Path(__file__).parent / "evaluation_lines.txt"
"""Keys of the lines of pages that nano is judged by; no page with one of them is packed."""


def build_pdfs(out_dir: Path, cache_dir: Path, *, pages_per_document: int = PAGES_PER_DOCUMENT) -> dict[str, int]:
    """Pack pages of the listed packages' PDFs.

    Args:
        out_dir: receives `pdf/` and `pdf-heldout/`.
        cache_dir: where packages are downloaded and unpacked.
        pages_per_document: most pages of one file.

    Returns:
        Documents and pages by folder, and refused pages by reason.
    """
    packages = [package for package in read_package_list() if package.purpose in {"pages", "pages-heldout"}]
    folders = unpack_packages(packages, cache_dir, keep=("*.pdf", "*.pdf.gz"))
    printed = [package for package in read_package_list() if package.purpose == "web"]
    folders |= {f"web {name}": folder for name, folder in unpack_packages(printed, cache_dir).items()}
    packages += [replace(package, name=f"web {package.name}") for package in printed]
    known = frozenset(EVALUATION_LINES.read_text().split())
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for folder in ("pdf", "pdf-heldout"):
        partial = out_dir / f"{folder}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files: dict[str, list[int]] = {}
        sources: dict[str, str] = {}
        for package in packages:
            if (package.purpose == "pages-heldout") != (folder == "pdf-heldout"):
                continue
            for path, data in _documents(package, folders[package.name], out_dir / "fonts"):
                name = hashlib.sha256(data).hexdigest()[:16] + ".pdf"
                if len(data) > MAX_DOCUMENT_BYTES or name in seen:
                    continue
                seen.add(name)
                count = pack_document(data, partial / name, known, seen, counts, pages_per_document)
                if count:
                    files[name] = list(range(count))
                    sources[name] = f"{package.name}: {path.name}"
                    counts[f"{folder}_documents"] += 1
                    counts[f"{folder}_pages"] += count
            logger.info("%s: %s", package.name, dict(counts))
        (partial / INDEX_NAME).write_text(json.dumps({"files": files, "sources": sources}, indent=0))
        shutil.rmtree(out_dir / folder, ignore_errors=True)
        partial.rename(out_dir / folder)
    return dict(counts)


def pack_document(
    data: bytes, out: Path, known: frozenset[str], seen: set[str], counts: Counter[str], most: int
) -> int:
    """Write a document of a file's usable pages.

    Args:
        data: the file.
        out: where the document goes; not written where no page can be used.
        known: keys of lines that no page may hold.
        seen: texts of pages packed so far, as hashes; grows.
        counts: refused pages by reason; grows.
        most: pages at most.

    Returns:
        How many pages it has.
    """
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError:
        counts["refused_unreadable"] += 1
        return 0
    order = list(range(len(document)))
    random.Random(len(data)).shuffle(order)
    chosen: list[int] = []
    for number in order[: most * TRIES_PER_PAGE]:
        if len(chosen) == most:
            break
        page = document[number]
        try:
            content = read_page(page)
            check_page(page, content, known)
            key = hashlib.sha256(content.text().encode()).hexdigest()
            if key in seen:
                counts["refused_seen"] += 1
                continue
            seen.add(key)
            chosen.append(number)
        except RefusedPageError as reason:
            counts[f"refused_{reason}"] += 1
        finally:
            page.close()
    if not chosen:
        return 0
    packed = pdfium.PdfDocument.new()
    packed.import_pages(document, chosen)
    packed.save(out)
    packed.close()
    document.close()
    drop_pictures(out)
    if out.stat().st_size > MAX_PACKED_BYTES_A_PAGE * (len(chosen) + 2):
        out.unlink()
        counts["refused_large"] += len(chosen)
        return 0
    return len(chosen)


def drop_pictures(path: Path) -> None:
    """Put one grey point in each picture of a document: samples lay clouds over them, and they are most of its bytes.

    Args:
        path: the document, which is replaced.
    """
    with pikepdf.open(path, allow_overwriting_input=True) as document:
        document.remove_unreferenced_resources()
        for thing in document.objects:
            if isinstance(thing, pikepdf.Stream) and thing.get("/Subtype") == "/Image":
                for name in ("/SMask", "/Mask", "/ImageMask", "/Decode", "/DecodeParms", "/Filter", "/Intent"):
                    if name in thing:
                        del thing[name]
                thing["/Width"] = thing["/Height"] = 1
                thing["/BitsPerComponent"] = 8
                thing["/ColorSpace"] = pikepdf.Name.DeviceGray
                thing.write(b"\x80")
        document.save(path, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def check_page(page: pdfium.PdfPage, content: PageText, known: frozenset[str]) -> None:
    """Refuse pages with little text, of code, with words that cannot be seen, and those nano is judged by.

    Args:
        page: the page.
        content: what `read_page` made of it.
        known: keys of lines that it may not hold.

    Raises:
        RefusedPageError: the page is one of these.
    """
    text = content.text()
    if len(text) < MIN_CHARACTERS:
        raise RefusedPageError("little text")
    if sum(character in "\\{}" for character in text) > MAX_CODE_SHARE * len(text):
        raise RefusedPageError("code")
    if known.intersection(key for line in text.splitlines() if (key := line_key(line))):
        raise RefusedPageError("evaluation")
    scale = 1.5
    image = page.render(scale=scale, grayscale=True).to_numpy()
    faint = 0
    words = [word for word in content.words if word.text]
    for word in words:
        y0, y1, x0, x1 = (round(side * scale) for side in (word.box.y0, word.box.y1, word.box.x0, word.box.x1))
        region = image[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
        faint += not region.size or int(np.ptp(region)) < MIN_CONTRAST
    if faint > 0.005 * len(words):
        raise RefusedPageError("invisible words")


def _documents(package: SourcePackage, folder: Path, fonts: Path) -> Iterator[tuple[Path, bytes]]:
    if package.purpose == "web":
        browser = find_browser()
        if browser is None or not fonts.is_dir():
            logger.warning("%s is left out: it needs a browser, and the faces that `nano fonts` packs", package.name)
            return
        yield from typeset(
            choose_documents(folder, PRINTED_DOCUMENTS), FontLibrary(fonts), browser, seed=len(package.name)
        )
        return
    for path in sorted(path for path in folder.rglob("*.pdf*") if path.is_file() and not path.is_symlink()):
        yield path, gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
