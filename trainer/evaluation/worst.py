"""The worst pages as one HTML file that can be looked at anywhere: image, truth, each reading, and what differs.

Self-contained: images are inside, nothing is loaded. Every text is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape

from shared.contract.text import normalise
from trainer.evaluation.run import ScoredPage
from trainer.evaluation.samples import open_page

LONGEST_SIDE_PX = 1400
"""Pages are shrunk to this for the report: enough to read them, small enough to send."""

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9dce1, #3a3f47); --quiet: light-dark(#5c6470, #9aa3af);
  --missing: light-dark(#ffd9d6, #6b2320); --extra: light-dark(#d5f0d8, #1f5128); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
section { border-top: 1px solid var(--line); padding: 1.25rem 0; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem; }
@media (max-width: 60rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
img { max-width: 100%; border: 1px solid var(--line); }
h3 { font-size: .85rem; margin: 0 0 .25rem; color: var(--quiet); }
pre { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1rem; }
del { background: var(--missing); text-decoration: line-through; }
ins { background: var(--extra); text-decoration: none; }
.quiet { color: var(--quiet); font-weight: normal; }
"""


def worst_pages(pages: Sequence[ScoredPage], number: int) -> list[ScoredPage]:
    """Pages on which the first reader makes the most errors per character; pages without errors are left out."""
    wrong = [page for page in pages if page.scores[0].chars.edits]
    return sorted(wrong, key=lambda page: page.scores[0].chars.rate, reverse=True)[:number]


def worst_report(pages: Sequence[ScoredPage], reader_names: Sequence[str], number: int) -> str:
    """The report.

    Args:
        pages: All pages.
        reader_names: Names of the readers, in the order of the pages' readings.
        number: Most pages to show.

    Returns:
        An HTML document.
    """
    chosen = worst_pages(pages, number)
    sections = "".join(_section(place, page, reader_names) for place, page in enumerate(chosen, 1))
    title = f"Worst {len(chosen)} of {len(pages)} pages, {reader_names[0]}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>In each reading <del>red</del> was missed and <ins>green</ins> was added; white "
        f"space is folded as it is for the rates.</p>{sections}</body></html>\n"
    )


def marked_difference(truth: str, reading: str) -> str:
    """A reading as HTML: what it lacks as `del`, what it adds as `ins`."""
    expected, read = normalise(truth), normalise(reading)
    parts = []
    # Without autojunk's shortcut, which takes frequent letters of long texts for noise.
    for kind, start, stop, read_start, read_stop in SequenceMatcher(None, expected, read, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escape(expected[start:stop]))
            continue
        if start < stop:
            parts.append(f"<del>{escape(expected[start:stop])}</del>")
        if read_start < read_stop:
            parts.append(f"<ins>{escape(read[read_start:read_stop])}</ins>")
    return "".join(parts)


def _section(place: int, page: ScoredPage, reader_names: Sequence[str]) -> str:
    sample = page.sample
    heading = f'{place}. {escape(sample.name)} <span class="quiet">{escape(sample.tier)}</span>'
    return (
        f'<section><h2>{heading}</h2><div class="columns"><div><img alt="" src="{_image_url(page)}"></div><div>'
        f"<h3>Truth</h3><pre>{escape(sample.truth)}</pre>{''.join(_readings(page, reader_names))}</div></div></section>"
    )


def _readings(page: ScoredPage, reader_names: Sequence[str]) -> Iterator[str]:
    for name, reading, score in zip(reader_names, page.readings, page.scores, strict=True):
        note = "" if reading.ended else ", unfinished"
        yield (
            f"<h3>{escape(name)}: CER {100 * score.chars.rate:.1f} %{note}</h3>"
            f"<pre>{marked_difference(page.sample.truth, reading.text)}</pre>"
        )


def _image_url(page: ScoredPage) -> str:
    image = open_page(page.sample.image_path)
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
