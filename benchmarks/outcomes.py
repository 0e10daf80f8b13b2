"""How often the service is right about a page: that there is nothing to read, how much was read, rows, turns.

    make serve
    python benchmarks/outcomes.py --of-each 20 --photos FOLDER [--out results.jsonl]
    python benchmarks/outcomes.py --about strips --of-each 60 --photos FOLDER
    python benchmarks/outcomes.py --about coverage --of-each 50
    python benchmarks/outcomes.py --about rows --of-each 50
    python benchmarks/outcomes.py --about turns --of-each 20 [--pages FOLDER]
    python benchmarks/outcomes.py --about costs [--pages FOLDER]

Pages are drawn from a seed (`outcome_pages.py`, `print_pages.py`), photographs are taken from a folder. A page without
text is found if the answer has none; a page with text is missed if the answer is `blank` or `unreadable`. With
`--about strips` pages are as low as a line. With the other measures no model reads: `print_measures.py` holds the
rules against pages whose print is known. Prints a table by kind, and one JSON object last, after Ctrl-C too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from benchmarks.origin import command, keep, origin
from benchmarks.outcome_pages import Drawer, OutcomePage

SAMPLES = Path(__file__).resolve().parents[1] / "docs/samples"
FONTS = Path("/usr/share/fonts")
LATIN = ("DejaVuSans", "DejaVuSerif", "Liberation", "FreeSans", "FreeSerif")
"""Beginnings of the names of faces that are drawn with, where the machine has them."""
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png"}
CLIENTS = 4


@dataclass(slots=True)
class Kind:
    """Outcomes of one kind of page."""

    has_text: bool
    statuses: Counter[str] = field(default_factory=Counter)
    invented: int = 0
    """Pages without text for which the answer has some."""

    @property
    def pages(self) -> int:
        """How many were read."""
        return self.statuses.total()

    @property
    def without_text(self) -> int:
        """Pages that were reported blank or unreadable."""
        return self.statuses["blank"] + self.statuses["unreadable"]


def read(
    client: httpx.Client, urls: Iterator[str], layout: str, page: OutcomePage
) -> tuple[OutcomePage, dict[str, Any]]:
    """What the next of the services says of a page."""
    stream = io.BytesIO()
    page.image.save(stream, "PNG", compress_level=1)
    files = {"file": ("page.png", stream.getvalue(), "image/png")}
    answer = client.post(f"{next(urls)}/ocr", files=files, data={"layout": layout})
    if answer.is_error:
        return page, {"status": "failed", "confidence": None, "text": answer.json()["code"]}
    return page, answer.json()["pages"][0]


def _answers(
    pages: Iterable[OutcomePage], ask: Callable[[OutcomePage], tuple[OutcomePage, dict[str, Any]]], pool: Executor
) -> Iterator[tuple[OutcomePage, dict[str, Any]]]:
    """Answers in the order of the pages, of which few are drawn ahead: all of them take gigabytes."""
    asked = deque[Future[tuple[OutcomePage, dict[str, Any]]]]()
    for page in pages:
        asked.append(pool.submit(ask, page))
        if len(asked) > 2 * CLIENTS:
            yield asked.popleft().result()
    yield from (each.result() for each in asked)


def table(kinds: dict[str, Kind]) -> str:
    """Outcomes by kind, in Markdown."""
    lines = [
        "| kind | has text | pages | ok | blank | unreadable | text invented |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kind in kinds.items():
        counts = " | ".join(str(kind.statuses[status]) for status in ("ok", "blank", "unreadable"))
        invented = "" if kind.has_text else kind.invented
        lines.append(f"| {name} | {'yes' if kind.has_text else 'no'} | {kind.pages} | {counts} | {invented} |")
    return "\n".join(lines)


def _measure_print(options: argparse.Namespace, drawer: Drawer, fonts: int) -> None:
    """Measure what needs no model."""
    from benchmarks import print_measures

    if options.about == "coverage":
        found, figures = print_measures.coverage(drawer, options.of_each)
    elif options.about == "rows":
        found, figures = print_measures.rows(drawer, options.of_each)
    elif options.about == "costs":
        found, figures = print_measures.costs(options.pages or SAMPLES)
    else:
        found, figures = print_measures.turns(drawer, options.of_each, options.pages)
    print(found)
    facts = {"seed": options.seed, "fonts": fonts, "command": command(), **origin("cpu")}
    keep({"benchmark": "outcomes", "about": options.about, **figures, **facts}, options.out)


def main() -> None:
    """Draw, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--about", choices=("blank", "costs", "coverage", "rows", "strips", "turns"), default="blank")
    parser.add_argument("--pages", type=Path, help="folder of upright pages, PNG, for `turns`; with texts for `costs`")
    parser.add_argument("--url", nargs="+", default=["http://127.0.0.1:8000"], help="services that take pages by turns")
    parser.add_argument("--layout", choices=("auto", "page", "lines"), default="auto", help="how pages are read")
    parser.add_argument("--of-each", type=int, default=20, metavar="N", help="pages of each kind")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--fonts", type=Path, default=FONTS)
    parser.add_argument("--photos", type=Path, help="folder of photographs without text")
    parser.add_argument("--out", help="append the row to this file; auto: to the committed results")
    options = parser.parse_args()
    fonts = sorted(
        path for path in options.fonts.rglob("*.ttf") if path.name.startswith(LATIN) and "Mono" not in path.name
    )
    photos = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in PHOTO_ENDINGS) if options.photos else []
    drawer = Drawer(options.seed, fonts, photos)
    if options.about not in {"blank", "strips"}:
        _measure_print(options, drawer, len(fonts))
        return
    kinds: dict[str, Kind] = {}
    with httpx.Client(timeout=1200) as client, ThreadPoolExecutor(CLIENTS) as pool:
        pages = drawer.strips(options.of_each) if options.about == "strips" else drawer.pages(options.of_each)
        answers = _answers(pages, partial(read, client, cycle(options.url), options.layout), pool)
        # Kinds come by turns, so what an interrupted run has read is a smaller set of the same.
        with contextlib.suppress(KeyboardInterrupt):
            for number, (page, answer) in enumerate(answers, 1):
                kind = kinds.setdefault(page.kind, Kind(bool(page.text)))
                kind.statuses[answer["status"]] += 1
                kind.invented += not page.text and answer["status"] == "ok" and bool(answer["text"])
                if (page.text and answer["status"] != "ok") or (not page.text and answer["text"]):
                    sys.stderr.write(
                        f"{page.kind}: {answer['status']} {answer['confidence']} {answer['text'][:60]!r}\n"
                    )
                if number % 50 == 0:
                    sys.stderr.write(f"{number} pages\n")
        pool.shutdown(cancel_futures=True)
    empty, printed = ([kind for kind in kinds.values() if kind.has_text is has_text] for has_text in (False, True))
    num_empty, num_printed = sum(kind.pages for kind in empty), sum(kind.pages for kind in printed)
    print(table(kinds))
    row = {
        "benchmark": "outcomes",
        "about": options.about,
        "pages": num_empty + num_printed,
        "recall": round(sum(kind.without_text for kind in empty) / num_empty, 4),
        "false_alarms": round(sum(kind.without_text for kind in printed) / num_printed, 4),
        "invented": sum(kind.invented for kind in empty),
        "kinds": {name: {**kind.statuses, "has_text": kind.has_text} for name, kind in kinds.items()},
        "seed": options.seed,
        "fonts": len(fonts),
        "photos": len(photos),
        "layout": options.layout,
        "command": command(),
        **origin("cpu"),
    }
    keep(row, options.out)


if __name__ == "__main__":
    main()
