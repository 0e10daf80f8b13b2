"""How nano reads real pages that nothing was trained on or chosen by, next to Tesseract and RapidOCR, by kind.

    python benchmarks/real_pages.py --office ocr-benchmark --receipts ICDAR-2019-SROIE --magazines test \
        --half open --url http://127.0.0.1:8000 --tesseract --out auto
    python benchmarks/real_pages.py ... --half closed --nano --tesseract --rapidocr

The sets are clones of public repositories, bare or not; their pages are read from the newest commit and kept in a
temporary folder:

    --office     scribeocr/ocr-benchmark: scans of papers, tables and forms with hOCR
    --receipts   zzzDavid/ICDAR-2019-SROIE: scanned shop receipts with the text of each line, in capitals
    --magazines  tesseract-ocr/test: two pages of the ISRI sets with their text

Four office pages that have helped to build the finder of lines are left out. A hash of its name puts each page into one
half: pages of `open` may be looked at to see what goes wrong, those of `closed` only measured. So `--texts` keeps the
readings of open pages alone, and of closed ones only sums are printed. The two magazine pages are open.

Readers take turns page by page, so that another program's load meets all of them. Words are compared as bags after
NFC, without case, typographic quotes, dashes and ligatures as ASCII: recall and precision do not depend on reading
order, the character error rate does. Prints a table, and one JSON object a row; `--out FILE` appends the rows.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.origin import command, keep, origin
from shared.contract.text import ErrorCount, char_errors
from trainer.config import child_environment
from trainer.evaluation.samples import Layout, Sample
from trainer.evaluation.scores import Reading
from trainer.reading.loading import load_model_reader
from trainer.reading.model import ReadingOptions
from trainer.reading.protocol import Reader
from trainer.reading.rapidocr import RapidReader, lines_of
from trainer.reading.service import ServiceReader
from trainer.reading.tesseract import TesseractReader

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
SEEN = frozenset({"filing_01", "filing_03", "singlecol_01", "table_11"})
"""Office pages that the finder of lines was built with."""
LIMIT = 40
"""Receipts of each half."""
_SIGNS = {
    "'": "\u2018\u2019",
    '"': "\u201c\u201d\u201e",
    "-": "\u2010\u2011\u2013\u2014\u2212",
    " ": "\u00a0",
    "": "\u00ad",
}
_LIGATURES = {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl"}
_ASCII = str.maketrans({sign: plain for plain, signs in _SIGNS.items() for sign in signs} | _LIGATURES)

Half = Literal["open", "closed"]


@dataclass(frozen=True, slots=True)
class RealPage:
    """A page of a clone: where its image is, and what it says."""

    name: str
    kind: str
    half: Half
    image: str
    """Path in the repository."""
    truth: str


@dataclass(frozen=True, slots=True)
class Clone:
    """A repository's newest commit, bare or with a work tree."""

    folder: Path

    @property
    def commit(self) -> str:
        """Its hash."""
        return self._git("rev-parse", "HEAD").decode().strip()

    def names(self, folder: str) -> list[str]:
        """Paths of the files below a folder, in order."""
        return sorted(self._git("ls-tree", "-r", "--name-only", "HEAD", "--", f"{folder}/").decode().splitlines())

    def read(self, path: str) -> bytes:
        """A file's content."""
        return self._git("show", f"HEAD:{path}")

    def _git(self, *arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(self.folder), *arguments], capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.folder.name}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class PageFigures:
    """Counts of one reading, from which rates of any group of pages follow."""

    hits: int
    true_words: int
    read_words: int
    chars: ErrorCount
    seconds: float


def half_of(name: str) -> Half:
    """The half of a page, by its name."""
    return "closed" if hashlib.sha256(name.encode()).digest()[0] % 2 else "open"


def office_pages(clone: Clone) -> list[RealPage]:
    """Pages with hOCR, apart from those that were seen."""
    images = {Path(path).stem: path for path in clone.names("img")}
    pages = []
    for path in clone.names("ground_truth"):
        name = Path(path).name.split(".")[0]
        if name in images and name not in SEEN:
            truth = hocr_text(clone.read(path).decode("utf-8"))
            pages.append(RealPage(name, "office", half_of(name), images[name], truth))
    return pages


def receipt_pages(clone: Clone, limit: int) -> list[RealPage]:
    """As many receipts of each half, chosen by the hash of their names."""
    images = {Path(path).stem: path for path in clone.names("data/img")}
    pages: list[RealPage] = []
    counts = Counter[str]()
    boxes = sorted(clone.names("data/box"), key=lambda path: hashlib.sha256(Path(path).stem.encode()).digest())
    for path in boxes:
        name = Path(path).stem
        if name not in images or counts[half_of(name)] >= limit:
            continue
        counts[half_of(name)] += 1
        truth = box_text(clone.read(path).decode("utf-8", errors="replace"))
        pages.append(RealPage(name, "receipt", half_of(name), images[name], truth))
    return pages


def magazine_pages(clone: Clone) -> list[RealPage]:
    """Pages of the ISRI sets, all open: they have been published for so long that no half is held out."""
    paths = clone.names("testing")
    return [
        RealPage(Path(path).name.removesuffix(".tif"), "magazine", "open", path, clone.read(truth).decode("utf-8"))
        for path in paths
        if path.endswith(".3B.tif") and (truth := f"{path.removesuffix('.tif')}.txt") in paths
    ]


class _Hocr(HTMLParser):
    """Collects the words of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"meta", "link", "img", "br"}:
            return
        role = (dict(attrs).get("class") or "").split(" ")[0] if tag == "span" else ""
        self._open.append(role)
        if role in {"ocr_line", "ocr_caption", "ocr_header", "ocr_textfloat"}:
            self.lines.append([])
        if role == "ocrx_word":
            if not self.lines:
                self.lines.append([])
            self.lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and tag not in {"meta", "link", "img", "br"}:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "ocrx_word" in self._open:
            self.lines[-1][-1] += data


def hocr_text(hocr: str) -> str:
    """The words of an hOCR page, a line for each of its lines.

    Source: hOCR 1.2, `ocr_line` and `ocrx_word`.
    """
    parser = _Hocr()
    parser.feed(hocr)
    parser.close()
    lines = (" ".join(word.strip() for word in line if word.strip()) for line in parser.lines)
    return "\n".join(line for line in lines if line)


def box_text(boxes: str) -> str:
    """The text of a receipt from rows of eight coordinates and a line: rows whose middles share a height are one line.

    The file has cells in any order, a reader the lines of the page.
    """
    rows = []
    for fields in csv.reader(io.StringIO(boxes), quoting=csv.QUOTE_NONE):
        text = ",".join(fields[8:]).strip()
        if text:
            xs, ys = ([int(float(value)) for value in fields[first:8:2]] for first in (0, 1))
            rows.append((min(xs), min(ys), max(ys), text))
    return "\n".join(" ".join(cells) for cells in lines_of(rows))


def folded(text: str) -> str:
    """Text as it is compared: NFC, lower case, ASCII for typographic signs, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_ASCII)).lower().split())


def figures_of(truth: str, reading: Reading) -> PageFigures:
    """Compare a reading with the truth."""
    expected, read = folded(truth), folded(reading.text)
    true_words, read_words = Counter(expected.split()), Counter(read.split())
    hits = (true_words & read_words).total()
    return PageFigures(hits, true_words.total(), read_words.total(), char_errors(expected, read), reading.seconds)


def summary(figures: Sequence[PageFigures]) -> dict[str, Any]:
    """Rates of a group of at least one page; all words and characters together."""
    hits = sum(each.hits for each in figures)
    length = sum(each.chars.length for each in figures)
    return {
        "pages": len(figures),
        "words": sum(each.true_words for each in figures),
        "recall": round(hits / max(sum(each.true_words for each in figures), 1), 4),
        "precision": round(hits / max(sum(each.read_words for each in figures), 1), 4),
        "cer": round(sum(each.chars.edits for each in figures) / max(length, 1), 4),
        "seconds_per_page": round(sum(each.seconds for each in figures) / len(figures), 2),
    }


def readers_of(arguments: argparse.Namespace) -> list[Reader]:
    """The readers that the command line names."""
    readers: list[Reader] = []
    if arguments.tesseract:
        # One thread, as everywhere here: its own threads compete for the cores.
        readers.append(TesseractReader(child_environment(), processes=1))
    if arguments.url:
        readers.append(ServiceReader(arguments.url, {}, concurrency=1))
    if arguments.nano:
        readers.append(load_model_reader(str(NANO), "cpu", arguments.threads, ReadingOptions()))
    if arguments.rapidocr:
        readers.append(RapidReader(arguments.threads))
    return readers


def pages_of(arguments: argparse.Namespace) -> tuple[list[tuple[Clone, RealPage]], dict[str, str]]:
    """Pages of the halves and kinds that were asked for, each with its clone; and the commit of each kind's clone."""
    found: list[tuple[Clone, RealPage]] = []
    commits = {}
    for kind, folder in (
        ("office", arguments.office),
        ("receipt", arguments.receipts),
        ("magazine", arguments.magazines),
    ):
        if folder is None:
            continue
        clone = Clone(folder)
        commits[kind] = clone.commit
        if kind == "office":
            pages = office_pages(clone)
        elif kind == "receipt":
            pages = receipt_pages(clone, arguments.limit)
        else:
            pages = magazine_pages(clone)
        found += [(clone, page) for page in pages if arguments.half in ("both", page.half)]
    return found, commits


def list_sha256(pages: Sequence[RealPage]) -> str:
    """Says which pages and truths the figures are about."""
    digest = hashlib.sha256()
    for page in sorted(pages, key=lambda each: (each.kind, each.name)):
        digest.update(f"{page.kind}\t{page.name}\t{page.half}\t{page.truth}\0".encode())
    return digest.hexdigest()


def measure(
    pages: Sequence[tuple[Clone, RealPage]], readers: Sequence[Reader], folder: Path, texts: Path | None
) -> dict[tuple[str, Half, str], list[PageFigures]]:
    """Read all pages by turns; figures by kind, half and reader."""
    found: dict[tuple[str, Half, str], list[PageFigures]] = {}
    for number, (clone, page) in enumerate(pages, 1):
        path = folder / f"{page.kind}-{page.name}{Path(page.image).suffix}"
        path.write_bytes(clone.read(page.image))
        sample = Sample(page.name, page.kind, Layout.PAGE, path, page.truth)
        for reader in readers:
            ((_, reading),) = reader.read([sample])
            figures = figures_of(page.truth, reading)
            found.setdefault((page.kind, page.half, reader.name), []).append(figures)
            if page.half == "open":
                shown = (
                    f"{figures.hits / max(figures.true_words, 1):.3f} {figures.hits / max(figures.read_words, 1):.3f}"
                )
                print(f"{page.kind} {page.name} {reader.name}: {shown} {figures.chars.rate:.3f}", file=sys.stderr)
                if texts is not None:
                    texts.mkdir(parents=True, exist_ok=True)
                    (texts / f"{page.kind}-{page.name}.{reader.name.split(' ')[0]}.txt").write_text(reading.text)
                    (texts / f"{page.kind}-{page.name}.truth.txt").write_text(page.truth)
        path.unlink()
        print(f"{number} of {len(pages)} pages", file=sys.stderr, flush=True)
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--office", type=Path, help="clone of scribeocr/ocr-benchmark")
    parser.add_argument("--receipts", type=Path, help="clone of zzzDavid/ICDAR-2019-SROIE")
    parser.add_argument("--magazines", type=Path, help="clone of tesseract-ocr/test")
    parser.add_argument("--half", choices=["open", "closed", "both"], default="both")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"receipts of each half; {LIMIT}")
    parser.add_argument("--url", help="a running service")
    parser.add_argument("--nano", action="store_true", help="the included model in this process")
    parser.add_argument("--threads", type=int, default=1, help="of the model in this process; 1")
    parser.add_argument("--tesseract", action="store_true", help="the program `tesseract`, on one thread")
    parser.add_argument("--rapidocr", action="store_true", help="the package `rapidocr`, where it is installed")
    parser.add_argument("--texts", type=Path, help="folder for the readings of open pages")
    parser.add_argument("--out", help="file that the rows are appended to, or `auto`")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    pages, commits = pages_of(arguments)
    readers = readers_of(arguments)
    if not pages or not readers:
        raise SystemExit("give at least one clone and one reader; --help shows them")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(pages, readers, Path(folder), arguments.texts)
    about = {"benchmark": "real_pages", **origin("cpu"), "command": command()}
    details = {reader.name: dict(reader.details) for reader in readers}
    print(f"{'kind':<9} {'half':<7} {'reader':<24} {'pages':>5} {'recall':>7} {'prec.':>7} {'CER':>7} {'s/page':>7}")
    rows = []
    for (kind, half), group in groupby(sorted(found), key=lambda key: key[:2]):
        mine = [page for _, page in pages if (page.kind, page.half) == (kind, half)]
        for *_, reader_name in group:
            figures = summary(found[kind, half, reader_name])
            shown = " ".join(f"{figures[name]:>7.3f}" for name in ("recall", "precision", "cer", "seconds_per_page"))
            print(f"{kind:<9} {half:<7} {reader_name:<24} {figures['pages']:>5} {shown}")
            source = {"set_commit": commits[kind], "list_sha256": list_sha256(mine)}
            reader = {"reader": reader_name, "details": details[reader_name]}
            rows.append({"kind": kind, "half": half, **reader, **figures, **source, **about})
    for row in rows:
        keep(row, arguments.out)


if __name__ == "__main__":
    main()
